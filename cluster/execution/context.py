"""What a worker needs to know: the options of a launch and the launch's own facts. Loads neither torch nor Ray, so that
the driver, which computes nothing itself, starts without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import Options, Work
from cluster.storage.results import Store
from cluster.tracking.runs import Tracking

KEEPS_NO_FEATURES = ("pixels", "none")  # caches in which cells that run together share what they compute


@dataclass(frozen=True, kw_only=True)
class WorkContext(Options):
    """The options of a launch, with paths and the launch's own facts resolved: all that a worker needs to know.

    Attributes:
        results: folder of the result store, absolute.
        features: folder of the feature cache; None: everything is computed.
        datasets: path of ``dataset.json`` by data set name, and what else cells read: see `diffup.grid.datasets.Data`.
        remote: URI of the object store of which `results` and `features` are this machine's copies, ``""`` if none.
        device, threads: how to compute.
        progress: whether to draw progress bars.
        launch: name of the launch.
        tracking: where runs are logged, if anywhere.
        git_commit: of this code.
        work: in place of `cluster.execution.run_cell`.
    """

    results: Path
    datasets: dict[str, str]
    remote: str = ""
    device: str = "cpu"
    threads: int = 1
    progress: bool = False
    launch: str = ""
    tracking: Tracking | None = None
    git_commit: str = ""
    work: Work | None = None

    @property
    def store(self) -> Store:
        """The result store."""
        return Store(self.results, self.remote)
