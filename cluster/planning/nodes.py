"""Checks before a launch begins that each node sees what cells read, and writes where they write.

A folder that one node does not mount is the worst kind of mistake: a path that happens to exist there too takes the
node's results, and nobody ever sees them. So the driver writes a note to each shared storage, every node must find it,
and must write an answer that the driver finds. A feature cache of its own costs a node time only: that is a warning.
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
from cluster.storage.backend import Backend, appears
from cluster.storage.layout import FEATURES
from cluster.storage.results import Store
from diffup.errors import UserError

CACHE, NODE = "the feature cache", "the node"
PATIENCE = 10.0  # seconds until a file server shows all nodes what one of them wrote
ARRIVAL = 1200.0  # seconds for an autoscaler's first node, spot machines included
DEATH = 30.0  # seconds until Ray notices that a node is gone
ANSWER = 120.0  # seconds for a node to start a process and answer


def shared_by_nodes(
    store: Store, features: Path | None, weights_dir: Path | None, datasets: dict[str, str]
) -> tuple[dict[str, Backend], dict[str, Path], list[Path]]:
    """What `check_nodes` is to look at: storage to read and write, paths to read, and folders of each machine's own.

    Args:
        store: of the results.
        features: folder of the feature cache, made here; None: there is none.
        weights_dir: folder of local weights, if one was named.
        datasets: paths by name.
    """
    storage, own = {"the results": store.sync.backend}, [store.root] if store.sync.is_copy else []
    if features is not None:
        features.mkdir(parents=True, exist_ok=True)
        cache = store.sync.below(FEATURES, features)
        if cache.is_copy:
            own.append(features)
        else:
            storage[CACHE] = cache.backend
    paths = {f"data set {name}": Path(path) for name, path in datasets.items()}
    if weights_dir is not None:
        paths["folder of weights"] = weights_dir.absolute()
    return storage, paths, own


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
    """Memory of a GPU of the cluster in MB, of this machine's where it has one; 0 where Ray knows of none."""
    from cluster.planning import preflight as checks

    if not ray.cluster_resources().get("GPU"):
        return 0.0
    if own := checks.gpu_memory_mb():
        return own
    asked = ray.remote(checks.gpu_memory_mb).options(num_cpus=0, num_gpus=0.01).remote()
    try:
        return float(ray.get(asked, timeout=ANSWER))
    except (RayError, GetTimeoutError):
        return 0.0


def check_nodes(
    storage: Mapping[str, Backend], paths: Mapping[str, Path], own: Sequence[Path] = (), *, patience: float = PATIENCE
) -> list[str]:
    """Look at all of them from each node that can run cells, but this one.

    Args:
        storage: read and written by cells, by its name in messages.
        paths: only read; what this machine has, the others must have.
        own: folders that each machine has for itself, and writes to.
        patience: seconds that a file may take to be seen elsewhere.

    Returns:
        warnings, of nodes whose feature cache is not the driver's.

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
        for backend in storage.values():
            backend.write(mark, mark.encode())
        complaints = _ask([node["NodeID"] for node in nodes], storage, paths, own, mark, patience)
        for what, backend in storage.items():
            for node, said in complaints.items():
                if {NODE, what}.isdisjoint(said) and not appears(backend, f"{mark}-{node}", b"seen", patience=patience):
                    said[what] = f"what it writes to {what} ({backend}) is not seen here"
    except OSError as error:
        raise UserError(f"can't write to the shared storage: {error}") from error
    finally:
        for backend in storage.values():
            for name in (mark, *(f"{mark}-{node['NodeID']}" for node in nodes)):
                with suppress(OSError):
                    backend.delete(name)
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes}
    warnings = [
        f"node {names[node]}: {said.pop(CACHE)}; it computes what others have encoded"
        for node, said in complaints.items()
        if CACHE in said
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
    nodes: Sequence[str], storage: Mapping[str, Backend], paths: Mapping[str, Path], own: Sequence[Path], mark: str,
    patience: float,
) -> dict[str, dict[str, str]]:  # fmt: skip
    """What each node says, see `look`; without those that are gone before they answer."""
    asked = {}
    for node in nodes:
        at = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        task = ray.remote(look).options(num_cpus=0, scheduling_strategy=at, max_retries=1)
        asked[node] = task.remote(dict(storage), dict(paths), list(own), mark, f"{mark}-{node}", patience)
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
    storage: Mapping[str, Backend],
    paths: Mapping[str, Path],
    own: Sequence[Path],
    mark: str,
    answer: str,
    patience: float,
) -> dict[str, str]:
    """What a node says: complaints, by what they are of.

    Args:
        storage: where `answer` is written if `mark` is there.
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
    for what, backend in storage.items():
        try:
            if not appears(backend, mark, mark.encode(), patience=patience):
                said[what] = f"it does not see {what} ({backend}) as the driver does"
                continue
            backend.write(answer, b"seen")
        except OSError as error:
            said[what] = f"it can't use {what} ({backend}): {error}"
    return said
