"""The trainable: one trial runs one cell, writes the store and logs the MLflow run. Workers live on across trials.

A cell that raises fails alone and is not tried again: its error is recorded, and Tune sees a trial that ended. Only the
death of a worker process is Tune's business.
"""

from __future__ import annotations

import importlib
import platform
import traceback
from pathlib import Path
from typing import Any

from ray import tune

from cluster.files import now
from cluster.store import Record, Store, code_hash
from cluster.tracking import Tracking, log_cell, log_failure
from diffup.card import versions
from experiments.cell import AnyCell, Cell, TrainingCell, cell_from_dict

PACKAGES = ("diffup", "torch", "torchvision", "timm", "open_clip_torch", "numpy", "pandas", "pillow", "ray", "mlflow")
NOT_IDENTITY = ("key", "cell_version")


class CellTrial(tune.Trainable):
    """Runs ``config["cell"]``; one step is the whole cell."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Resources by the kind of cell, so that one Tuner serves several resource classes."""
        return tune.PlacementGroupFactory([dict(config["resources"][config["cell"]["kind"]])])

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing is loaded here: the work keeps backbones and features in module globals."""
        self.task = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next cell in the same process."""
        self.task = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the cell."""
        return {**run_cell(self.task), "done": True}


def cell_of(config: dict[str, Any]) -> AnyCell:
    """The cell in a trial's configuration."""
    return cell_from_dict({name: value for name, value in config["cell"].items() if name not in NOT_IDENTITY})


def run_cell(task: dict[str, Any]) -> dict[str, Any]:
    """Run one cell and record what came of it.

    Args:
        task: ``cell`` (document), ``results`` (absolute), ``work`` (module with ``execute`` and ``WorkContext``),
            ``options`` (arguments of WorkContext), ``tracking`` (`Tracking` as a dict, or None), ``git_commit``.

    Returns:
        ``key``, ``status`` (``"finished"`` or ``"failed"``), and ``headline`` and ``episodes``, or ``error``.
    """
    store, started = Store(Path(task["results"])), now()
    tracking = Tracking(**task["tracking"]) if task["tracking"] else None
    cell = cell_of(task)
    key = cell.key()
    before = store.read(key)
    if before.status == "finished":  # by a worker of a launch that was killed, or by this one before it died
        return _finished(key, before, store, cell, tracking)
    try:
        store.write_cell(cell)
        outcome, batch_size = _execute(cell, task)
        provenance = {
            **outcome.provenance,
            "code_hash": code_hash(),
            "git_commit": task["git_commit"],
            "versions": versions(PACKAGES),
            "host": platform.node(),
            "batch_size": batch_size,
        }
        if loaded := provenance.get("weights_hash"):
            store.pin_weights(cell.backbone, cell.weights, loaded)
        store.write_result(
            cell,
            metrics={name: float(value) for name, value in outcome.metrics.items()},
            provenance=provenance,
            started=started,
            episodes=outcome.episodes,
            panels=outcome.panels,
        )
    except Exception as error:
        message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        store.write_error(cell, message, trace)
        if tracking is not None:
            log_failure(tracking, cell, message, trace, started)
        return {"key": key, "status": "failed", "error": message}
    return _finished(key, store.read(key), store, cell, tracking)


def _finished(key: str, record: Record, store: Store, cell: AnyCell, tracking: Tracking | None) -> dict[str, Any]:
    if tracking is not None:
        log_cell(tracking, store, cell, record)
    metrics = record.metrics
    headline = f"mIoU {metrics['miou']:.1f}" if "miou" in metrics else f"loss {metrics.get('loss', float('nan')):.4f}"
    episodes = cell.episodes if isinstance(cell, Cell) else 0
    return {"key": key, "status": "finished", "headline": headline, "episodes": episodes}


def _execute(cell: AnyCell, task: dict[str, Any]) -> tuple[Any, int]:
    """Do the work; where a GPU runs out of memory, with half the batch (never identity for an evaluation cell)."""
    work = importlib.import_module(task["work"])
    options = dict(task["options"])
    options["results"] = Path(task["results"])
    options["weights_dir"] = Path(options["weights_dir"]) if options["weights_dir"] else None
    while True:
        try:
            return work.execute(cell, work.WorkContext(**options)), options["batch_size"]
        except Exception as error:
            full = type(error).__name__ == "OutOfMemoryError"
            if not full or isinstance(cell, TrainingCell) or options["batch_size"] < 2:
                raise
            options["batch_size"] //= 2
