"""What is checked before a launch touches anything: data, weights, and what the machine has."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell


def preflight(cells: Sequence[AnyCell], datasets: dict[str, Path], weights_dir: Path | None) -> dict[str, str]:
    """Find what would make cells fail: data sets that are not there, weights files that are damaged or don't fit, and
    foreign methods that can't be imported.

    Args:
        cells: to be run.
        datasets: ``dataset.json`` by data set name; others are looked up by name.
        weights_dir: folder of local weights; each file that a cell names is loaded once.

    Returns:
        absolute paths of all data sets in the plan.

    Raises:
        UserError: a user's mistake, with file and remedy.
    """
    from diffup.data.dataset import resolve_dataset
    from diffup.evaluation.adapter import load_method

    paths = {name: str(path.absolute()) for name, path in datasets.items()}
    for name in sorted({cell.dataset for cell in cells} - set(paths)):
        paths[name] = str(Path(resolve_dataset(name)).absolute())
    samples = [cell.sample for cell in cells if isinstance(cell, Cell) and cell.sample.method == "adapter"]
    for function, version in sorted({(sample.function, sample.function_version) for sample in samples}):
        load_method(function, version)
    models = {(cell.backbone, cell.weights) for cell in cells}
    models |= {(cell.input.companion, cell.input.companion_weights) for cell in cells if cell.input.companion}
    files = [(backbone, weights) for backbone, weights in sorted(models) if weights.startswith("sha256:")]
    if weights_dir is not None and files:
        from diffup.backbones.load import load_backbone

        for backbone, weights in files:
            load_backbone(backbone, weights, weights_dir=weights_dir)
    return paths


def check_workers(cells: Sequence[AnyCell], workers: int) -> None:
    """Raise UserError if a training cell's steps have fewer episodes than there are workers to share them."""
    for cell in cells:
        if isinstance(cell, TrainingCell) and cell.train.episodes < workers:
            raise UserError(
                f"--train-workers {workers}: training cell {cell.key()} has steps of {cell.train.episodes} episodes; "
                f"use at most {cell.train.episodes} workers"
            )


def gpu_memory_mb() -> float:
    """Memory of the smallest GPU of this machine in MB, 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 2**20


def git_commit() -> str:
    """Commit of the working copy that this code lies in, ``""`` if it is none."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
