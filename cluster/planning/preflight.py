"""Checks before a launch writes anything: what its cells need, and what this machine has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.backbones.hub import offline, weights_cached
from diffup.backbones.registry import SOURCE, parse_backbone
from diffup.backbones.weights import file_stems, weights_file
from diffup.episodes.protocols import Protocol, get_protocol
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, Cell, TrainingCell
from diffup.grid.datasets import lists_of

if TYPE_CHECKING:
    from diffup.data.dataset import Dataset

SHOWN = 10
NEXT = "Leave these cells out with --select, or mend what they need"


@dataclass
class Feasible:
    """Cells of a plan that can't run.

    Attributes:
        wrong: cells that can't run, by reason.
        unchecked: cells that could not be checked here, by what is not available.
        images: number of images by data set, of those that are here.
    """

    wrong: dict[str, list[AnyCell]] = field(default_factory=dict)
    unchecked: dict[str, list[AnyCell]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of cells that can't run."""
        return sum(map(len, self.wrong.values()))

    def lines(self) -> list[str]:
        """A line for each of the first `SHOWN` reasons, and one that counts the rest."""
        shown = [
            f"{len(cells)} cell{'s' * (len(cells) > 1)}: {reason}" for reason, cells in list(self.wrong.items())[:SHOWN]
        ]
        rest = len(self.wrong) - len(shown)
        return shown + ([f"… and {rest} more reasons"] if rest else [])

    def error(self) -> UserError:
        """All of it as one error."""
        return UserError(f"{self.count} cells can't run:\n  " + "\n  ".join(self.lines()) + f"\n{NEXT}")


def check_feasible(
    cells: Sequence[AnyCell], datasets: dict[str, Path], weights_dir: Path | None, *, elsewhere: bool = False
) -> Feasible:
    """Check what cells need, without loading a model or an image.

    Args:
        cells: to be run.
        datasets: as in `cluster.launch.launch`. Cells of a named data set that is not available are not looked at.
        weights_dir: folder of local weights.
        elsewhere: whether cells run on other machines, whose weights can't be checked here.
    """
    from diffup.data.dataset import open_dataset, resolve_dataset

    @cache
    def opened(name: str) -> Dataset | str:
        try:
            path = datasets[name] if name in datasets else resolve_dataset(name)
        except UserError:
            return ""
        try:
            return open_dataset(path)
        except UserError as error:
            return f"data set {name!r}: {error}"

    @cache
    def weights(backbone: str, identity: str) -> str:
        return "" if elsewhere else _weights(backbone, identity, weights_dir)

    found, reasons = Feasible(), _Reasons(datasets)
    untrained: dict[str, str] = {}
    for cell in sorted(cells, key=lambda cell: isinstance(cell, Cell)):
        dataset = opened(cell.dataset)
        if dataset == "":
            found.unchecked.setdefault(f"data set {cell.dataset} is not available", []).append(cell)
            continue
        reason = dataset if isinstance(dataset, str) else reasons.of(cell, dataset)
        if not isinstance(dataset, str):
            found.images[cell.dataset] = len(dataset.image_ids)
        adapted = isinstance(cell, Cell) and cell.sample.method == "adapter"
        if not reason and not adapted:
            reason = weights(cell.backbone, cell.weights)
            if not reason and cell.input.companion:
                reason = weights(cell.input.companion, cell.input.companion_weights)
        if not reason and isinstance(cell, Cell):
            reason = untrained.get(cell.checkpoint, "")
        if reason:
            found.wrong.setdefault(reason, []).append(cell)
            if isinstance(cell, TrainingCell):
                untrained[cell.key()] = reason
    return found


class _Reasons:
    """Why a cell can't be run on a data set; each question is asked once for all cells that share it."""

    def __init__(self, datasets: dict[str, Path]) -> None:
        self._datasets = datasets
        self._known: dict[tuple[object, ...], str] = {}

    def of(self, cell: AnyCell, dataset: Dataset) -> str:
        protocol, lists = get_protocol(cell.protocol), self._datasets.get(lists_of(cell.dataset))
        if isinstance(cell, TrainingCell):
            shared = (cell.dataset, cell.protocol, cell.fold, cell.train.hold_out, cell.train_seed)
            return self._ask(shared, lambda: _training(cell, dataset, protocol, lists))
        if cell.manifest or protocol.needs_lists(cell.dataset):
            return ""  # its episodes are given, and were matched with the data set when the grid was built
        what = (cell.dataset, cell.protocol, cell.fold, cell.shots, cell.tested, cell.hold_out)
        return self._ask((*what, cell.train_seed if cell.hold_out else 0), lambda: _evaluation(cell, dataset, protocol))

    def _ask(self, what: tuple[object, ...], find: Callable[[], str]) -> str:
        if what not in self._known:
            try:
                self._known[what] = find()
            except UserError as error:  # no such fold, or no class is left
                self._known[what] = str(error)
        return self._known[what]


def _training(cell: TrainingCell, dataset: Dataset, protocol: Protocol, lists: Path | None) -> str:
    from diffup.episodes.sampling import held_out_classes, training_pools

    where = f"{dataset.name}, fold {cell.fold}"
    if not dataset.base_classes(cell.fold):
        return f"{where} has all classes, which leaves no base class to train on; put classes into other 'folds'"
    held_out = held_out_classes(dataset, cell.fold, cell.train.hold_out, cell.train_seed)
    pools = training_pools(dataset, cell.fold, protocol, lists)
    sizes = {c: len(ids) for c, ids in pools.items() if c not in held_out}
    if max(sizes.values(), default=0) >= 2:  # classes with fewer are left out of training
        return ""
    named = ", ".join(f"{dataset.classes[c]} {size}" for c, size in list(sizes.items())[:SHOWN])
    return f"{where}: no base class has two training images under protocol {protocol.name!r} ({named}); add images"


def _evaluation(cell: Cell, dataset: Dataset, protocol: Protocol) -> str:
    from diffup.episodes.sampling import held_out_classes

    if cell.classes == "held_out":
        classes = held_out_classes(dataset, cell.fold, cell.hold_out, cell.train_seed)
    else:
        classes = cell.tested or dataset.novel_classes(cell.fold)
    needed = 2 if protocol.draw == "HSNet's stream" else cell.shots + 1  # HSNet's supports may repeat
    short = {dataset.classes[c]: len(ids) for c in classes if len(ids := dataset.eligible(c, protocol)) < needed}
    if not short:
        return ""
    named = ", ".join(f"{name} {size}" for name, size in list(short.items())[:SHOWN])
    more = f" and {len(short) - SHOWN} more classes" if len(short) > SHOWN else ""
    return (
        f"{dataset.name}, fold {cell.fold}: {cell.shots} shots need {needed} images of each class under protocol "
        f"{protocol.name!r}; too few of {named}{more}; add images, or take fewer shots (--shots where the study "
        f"has it, else --select 'shots=1|2', with those that are wanted)"
    )


def _weights(backbone: str, identity: str, weights_dir: Path | None) -> str:
    if identity.startswith("sha256:") and weights_file(backbone, weights_dir) is None:
        where = f"{weights_dir} has no file of them" if weights_dir else "pass --weights-dir with the folder of them"
        return f"weights {identity} of {backbone}: {where}"
    if identity == "hub" and offline() and weights_cached(backbone) is False:
        stem = file_stems(parse_backbone(backbone))[0]
        return (
            f"weights of {backbone} are not in the hub's cache and HF_HUB_OFFLINE is set; go online once, or pass "
            f"--weights-dir with {stem}.safetensors"
        )
    return ""


def preflight(cells: Sequence[AnyCell], datasets: dict[str, Path], weights_dir: Path | None) -> dict[str, str]:
    """Find what would make cells fail: data sets that are not there, weights files that are damaged or don't fit, and
    backbones of one's own and foreign methods that can't be used.

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
    kinds = (SOURCE, "sha256:") if weights_dir is not None else (SOURCE,)
    files = [(backbone, weights) for backbone, weights in sorted(models) if weights.startswith(kinds)]
    if files:
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
    """Commit of the working copy that this code is in, ``""`` if it is none."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
