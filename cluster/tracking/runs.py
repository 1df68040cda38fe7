"""What the MLflow run of a cell holds: tags, parameters, metrics and artifacts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.atomic import now
from cluster.storage.layout import CELL, EPISODES, RESULT
from diffup.data.spec import ALL_CLASSES
from diffup.evaluation.metrics import labels
from diffup.grid.cell import AnyCell, TrainingCell, cell_to_dict

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PARENT, OWNER, RESULTS = "mlflow.parentRunId", "store", "results"
TAGS = ("kind", "dataset", "protocol", "fold", "shots", "annotation", "backbone", "trained_on", "variant", "train_seed")
MADE_BY = ("git_commit", "code_hash", "host", "device")
NOTHING = "nothing to find and nothing found"
TEXT_LENGTH = 500
PARAMS_A_BATCH = 100  # MLflow's limit
PAGE = 1000
_INPUTS = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs of cells go: plain strings without secrets, so that it can be sent to a worker.

    Attributes:
        uri: of the MLflow store.
        experiment_id, parent_run: of the launch; no parent for a cell whose launch is not known.
        store: id of the result store; ``""`` in notes of earlier versions.
    """

    uri: str
    experiment_id: str
    parent_run: str
    store: str = ""

    def to_dict(self) -> dict[str, str]:
        """As plain JSON types."""
        return asdict(self)


def milliseconds(stamp: str) -> int:
    """A time of the store as MLflow counts it."""
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)


def tags_of(cell: AnyCell, tracking: Tracking, provenance: Mapping[str, Any]) -> dict[str, str]:
    """Tags to group and filter runs by."""
    document = cell_to_dict(cell)
    tags = {name: str(document[name]) for name in TAGS if name in document}
    tags |= {name: str(provenance[name]) for name in MADE_BY if name in provenance}
    if tracking.parent_run:
        tags[PARENT] = tracking.parent_run
    return {**tags, "key": cell.key(), OWNER: tracking.store}


def params_of(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A document flat, as ``sample.steps`` and the like; empty texts are left out."""
    flat: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= params_of(value, f"{prefix}{name}.")
        elif value != "":
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{name}"] = text[:TEXT_LENGTH]
    return flat


def run_name(cell: AnyCell) -> str:
    """A cell's name among those of its experiment, short enough for a column: its tags have the rest."""
    fold = "all" if cell.fold == ALL_CLASSES else f"f{cell.fold}"
    seed = f" s{cell.train_seed}" if cell.train_seed else ""
    if isinstance(cell, TrainingCell):
        return f"train {cell.variant} {cell.backbone} {fold}{seed}"
    return f"{cell.variant} {cell.shots}x{cell.annotation} {cell.backbone} {fold}{seed}"


def intervals(cell: AnyCell, episodes: Path) -> dict[str, float]:
    """``miou_low``, ``miou_high`` and those of FB-IoU: the 95 % intervals of the tables, of one fold and seed.

    Args:
        cell: an evaluation cell; others have none.
        episodes: its episode table.

    Returns:
        nothing for a table without counts by episode; only defined figures.
    """
    if isinstance(cell, TrainingCell) or not episodes.is_file():
        return {}
    import pandas as pd

    from diffup.evaluation.stats import EPISODE_COLUMNS, EpisodeCounts, bootstrap

    try:
        table = pd.read_parquet(episodes, columns=list(EPISODE_COLUMNS))
        (scores,) = bootstrap([EpisodeCounts.of({name: table[name] for name in EPISODE_COLUMNS})], stream=cell.fold)
    except (ValueError, KeyError):  # of other columns, as a foreign method may write them
        return {}
    found = {}
    for name, figure in (("miou", scores.miou), ("fb_iou", scores.fb_iou)):
        found[f"{name}_low"], found[f"{name}_high"] = figure.interval()
    return {name: value for name, value in found.items() if value == value}


def log_dataset(client: MlflowClient, run_id: str, cell: AnyCell) -> None:
    """Name the cell's data as the input of its run, which MLflow shows and filters by."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"name": cell.dataset, "fold": cell.fold, "protocol": getattr(cell, "protocol", "")})
    data = Dataset(cell.dataset, cell.dataset_hash or "unknown", "diffup", source)
    context = "training" if isinstance(cell, TrainingCell) else "evaluation"
    with _INPUTS:  # of two that log a new data set at once MLflow's server refuses one
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])


def log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    *,
    stamp: int = 0,
    step: int = 0,
) -> None:
    """Log parameters and metrics in one request, or in several if there are more parameters than one may hold.

    Metrics have six significant digits: MLflow's table cuts longer ones off. The cell's own files have them all.
    """
    from mlflow.entities import Metric, Param

    stamp = stamp or milliseconds(now())
    values = [Metric(name, float(f"{value:.6g}"), stamp, step) for name, value in (metrics or {}).items()]
    named = [Param(name, value) for name, value in (params or {}).items()]
    client.log_batch(run_id, metrics=values, params=named[:PARAMS_A_BATCH])
    for start in range(PARAMS_A_BATCH, len(named), PARAMS_A_BATCH):
        client.log_batch(run_id, params=named[start : start + PARAMS_A_BATCH])


def log_curve(client: MlflowClient, run_id: str, name: str, points: Sequence[tuple[int, float]], stamp: int) -> None:
    """Log a metric by step, in one request."""
    from mlflow.entities import Metric

    if points:
        client.log_batch(run_id, metrics=[Metric(name, float(value), stamp, int(step)) for step, value in points])


def per_class(episodes: pd.DataFrame) -> pd.DataFrame:
    """IoU in percent and number of episodes of each class, from an episode table.

    Classes of one name are distinguished by their number. A class without anything to find or found has no IoU: a
    column `undefined` says so where there is one.
    """
    groups = episodes.groupby("class_id" if "class_id" in episodes else "class_name", sort=True)
    sums, names = groups[["inter_fg", "union_fg"]].sum(), groups["class_name"].first().astype(str)
    ids: list[Any] = names.index.tolist()
    table = sums.assign(
        class_name=list(labels(dict(zip(ids, names))).values()),
        iou=(100 * sums["inter_fg"] / sums["union_fg"]).where(sums["union_fg"] > 0),
        episodes=groups.size(),
        undefined=[NOTHING if union == 0 else "" for union in sums["union_fg"]],
    )
    columns = ["class_name", "iou", "episodes", *(["undefined"] if table["iou"].isna().any() else [])]
    return table[columns].rename_axis(None).sort_values("class_name", kind="stable", ignore_index=True)


def gather_artifacts(cell: Path, folder: Path) -> None:
    """Put what a run shows beside its metrics into a folder, so that it is sent in one call.

    Args:
        cell: folder of the cell in the result store.
        folder: where to; empty.
    """
    for name in (CELL, RESULT, EPISODES):  # with these a result store can be read back from MLflow alone
        if (cell / name).is_file():
            (folder / name).symlink_to(cell / name)
    for panel in sorted((cell / "panels").glob("*.jpg")):
        (folder / "panels").mkdir(exist_ok=True)
        (folder / "panels" / panel.name).symlink_to(panel)
    if (cell / EPISODES).is_file():
        import pandas as pd
        import pyarrow.parquet

        wanted = ["class_name", "inter_fg", "union_fg"]
        columns = set(pyarrow.parquet.read_schema(cell / EPISODES).names)
        if set(wanted) <= columns:
            episodes = pd.read_parquet(cell / EPISODES, columns=[*wanted, *({"class_id"} & columns)])
            per_class(episodes).to_csv(folder / "per_class.csv", index=False, float_format="%.4f")


def every(search: Callable[..., Any], **query: Any) -> list[Any]:
    """All pages of what one of a client's ``search_…`` methods finds."""
    found: list[Any] = []
    page = None
    while True:
        answer = search(**query, max_results=PAGE, page_token=page)
        found += answer
        page = answer.token
        if not page:
            return found


def find_runs(client: MlflowClient, experiment_ids: Sequence[str], where: str = "") -> list[Run]:
    """All runs of the experiments that match MLflow's filter `where`, without deleted ones."""
    return every(client.search_runs, experiment_ids=list(experiment_ids), filter_string=where)
