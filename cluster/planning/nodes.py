"""Before a launch begins: does each node see what cells read, and write where they write?

A folder that one node does not mount is the worst kind of mistake: a path that happens to exist there too takes the
node's results, and nobody ever sees them. So the driver leaves a note in each shared folder, every node must find it,
and must leave an answer that the driver finds. A feature store of its own costs a node time only: that is a warning.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage.atomic import check_writable
from cluster.storage.backend import FolderPlace, Place
from cluster.storage.remote import RemotePlace
from cluster.storage.results import Store
from diffup.errors import UserError

FEATURES, NODE = "the feature store", "the node"
PATIENCE = 10.0  # seconds until a file server shows all nodes what one of them wrote
ARRIVAL = 1200.0  # seconds for an autoscaler's first node, spot machines included
DEATH = 30.0  # seconds until Ray notices that a node is gone
ANSWER = 120.0  # seconds for a node to start a process and answer


def shared_by_nodes(
    store: Store, features: Path | None, weights_dir: Path | None, datasets: dict[str, str]
) -> tuple[dict[str, Place], dict[str, Path], list[Path]]:
    """What `check_nodes` is to look at: places to read and write, paths to read, and folders of each machine's own.

    Args:
        store: of the results.
        features: folder of the shards, made here; None: there are none.
        weights_dir: folder of local weights, if one was named.
        datasets: paths by name.
    """
    places: dict[str, Place] = {"the results": RemotePlace(store.remote) if store.remote else FolderPlace(store.root)}
    if features is not None:
        features.mkdir(parents=True, exist_ok=True)
        if not store.remote:
            places[FEATURES] = FolderPlace(features)
    paths = {f"data set {name}": Path(path) for name, path in datasets.items()}
    if weights_dir is not None:
        paths["folder of weights"] = weights_dir.absolute()
    return places, paths, [folder for folder in (store.root, features) if folder is not None and store.remote]


def wait_for_nodes(*, stopping: Callable[[], bool] = lambda: False, patience: float = ARRIVAL) -> None:
    """Wait until a node can run cells: an autoscaler's first worker takes minutes, and says what others will be like.

    Args:
        stopping: whether not to wait any more.
        patience: seconds.

    Raises:
        UserError: none came.
    """
    deadline, told = time.monotonic() + patience, False
    while not ray.cluster_resources().get("CPU") and not stopping():
        if not told:
            print(f"no node can run cells yet; waiting up to {patience / 60:.0f} min for one", flush=True)
            told = True
        if time.monotonic() > deadline:
            raise UserError(
                f"no node that can run cells came within {patience / 60:.0f} min; let the cluster keep one worker "
                "(min_workers: 1, minReplicas: 1), or look at ray status"
            )
        time.sleep(1)


def gpu_memory_mb() -> float:
    """Memory of a GPU of the cluster in MB, of this machine's where it has one; 0 without any."""
    from cluster.planning import preflight as checks

    if (own := checks.gpu_memory_mb()) or not ray.cluster_resources().get("GPU"):
        return own
    asked = ray.remote(checks.gpu_memory_mb).options(num_cpus=0, num_gpus=0.01).remote()
    try:
        return float(ray.get(asked, timeout=ANSWER))
    except (RayError, GetTimeoutError):
        return 0.0


def check_nodes(
    places: Mapping[str, Place], paths: Mapping[str, Path], own: Sequence[Path] = (), *, patience: float = PATIENCE
) -> list[str]:
    """Look at all of them from each node that can run cells, but this one.

    Args:
        places: read and written by cells, by what they are called in messages.
        paths: only read; what this machine has, the others must have.
        own: folders that each machine has for itself, and writes to.
        patience: seconds that a file may take to be seen elsewhere.

    Returns:
        warnings, of nodes whose feature store is not the driver's.

    Raises:
        UserError: a node does not see another of them or can't write there; all nodes and what they lack are named.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU", 0) > 0]
    if not nodes:
        return []
    paths = {what: path for what, path in paths.items() if path.exists()}
    mark = f".node-{uuid.uuid4().hex[:12]}"
    try:
        for place in places.values():
            place.write(mark, mark.encode())
        complaints = _ask([node["NodeID"] for node in nodes], places, paths, own, mark, patience)
        for what, place in places.items():
            for node, said in complaints.items():
                if {NODE, what}.isdisjoint(said) and not _appears(place, f"{mark}-{node}", b"seen", patience):
                    said[what] = f"what it writes to {what} ({_where(place)}) is not seen here"
    except OSError as error:
        raise UserError(f"can't write to what all nodes share: {error}") from error
    finally:
        for place in places.values():
            for name in (mark, *(f"{mark}-{node['NodeID']}" for node in nodes)):
                with suppress(OSError):
                    place.delete(name)
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes}
    warnings = [
        f"node {names[node]}: {said.pop(FEATURES)}; it computes what others have encoded"
        for node, said in complaints.items()
        if FEATURES in said
    ]
    bad = [f"node {names[node]}: {'; '.join(said.values())}" for node, said in complaints.items() if said]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(nodes) + 1} nodes can't take part:\n  "
            + "\n  ".join(bad)
            + "\nMount the folder there under the same path (or keep results in an object store: --results s3://…), or "
            "take the node out of the cluster; nothing has been run"
        )
    return warnings


def _ask(
    nodes: Sequence[str], places: Mapping[str, Place], paths: Mapping[str, Path], own: Sequence[Path], mark: str,
    patience: float,
) -> dict[str, dict[str, str]]:  # fmt: skip
    """What each node says, see `look`; without those that are gone before they answer."""
    asked = {}
    for node in nodes:
        at = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=at, max_retries=1)
        asked[node] = task.remote(dict(places), dict(paths), list(own), mark, f"{mark}-{node}", patience)
    said, unheard = dict[str, dict[str, str]](), dict[str, str]()
    deadline = time.monotonic() + ANSWER
    for node, answer in asked.items():
        try:
            said[node] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            unheard[node] = f"it did not answer in {ANSWER:.0f} s"
        except RayError as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            unheard[node] = f"it can't run this project's code: {last[:200]}"
    deadline = time.monotonic() + DEATH
    while unheard and time.monotonic() < deadline:  # Ray takes some seconds to know that a node is gone
        time.sleep(1)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        unheard = {node: why for node, why in unheard.items() if node in alive}
    return said | {node: {NODE: why} for node, why in unheard.items()}


def look(
    places: Mapping[str, Place], paths: Mapping[str, Path], own: Sequence[Path], mark: str, answer: str, patience: float
) -> dict[str, str]:
    """What a node says: complaints, by what they are of.

    Args:
        places: where `answer` is written if `mark` is there.
        paths: to be there.
        own: folders of each machine's own, to be written to.
        mark, answer, patience: see `check_nodes`.
    """
    said = {what: f"it has no {what} ({path})" for what, path in paths.items() if not path.exists()}
    for folder in own:
        try:
            check_writable(folder)
        except OSError as error:
            said[str(folder)] = f"it can't write to {folder}: {error}"
    for what, place in places.items():
        where = _where(place)
        try:
            if not _appears(place, mark, mark.encode(), patience):
                said[what] = f"it does not see {what} ({where}) as the driver does"
                continue
            place.write(answer, b"seen")
        except OSError as error:
            said[what] = f"it can't use {what} ({where}): {error}"
    return said


def _appears(place: Place, name: str, content: bytes, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while (found := place.read(name)) != content:
        if found is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _where(place: Place) -> str:
    return str(getattr(place, "uri", None) or getattr(place, "root", place))
