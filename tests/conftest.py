"""Fixtures and settings of all tests: one thread, no network, no writes to the user's home, skips that CI can trust.

A skip is lawful for two reasons only, and both are counted before pytest's last line: no CUDA GPU, or no shared data
(real photographs and weights that the product does not ship). Under ``DIFFUP_CI=1`` any other skip is a failure, so
that a test of LaTeX or of a page can't silently stop running.

With ``pytest -n 2`` the tests of a file stay in one process, for its fixtures.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cluster.storage.backend import ObjectStore
    from diffup import DiffUp
    from diffup.data.dataset import Dataset
    from tests.helpers.toy import ToyDataset

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "no CUDA GPU"
NO_SHARED_DATA = "no shared data"

_scratch = pytest.StashKey[list[Path]]()
_skips: Counter[str] = Counter()


def _in_ci() -> bool:
    return os.environ.get("DIFFUP_CI", "") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before anything imports torch, ray or mlflow; no example fails for being slow."""
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")
    home = Path(tempfile.mkdtemp(prefix="diffup-home-"))
    # Short, since Ray puts sockets below it, and a socket's path may have 107 characters.
    ray_tmpdir = Path(tempfile.mkdtemp(prefix="du-", dir="/tmp" if os.path.isdir("/tmp") else None))
    config.stash[_scratch] = [home, ray_tmpdir]
    if hasattr(config, "workerinput"):  # a worker of xdist: generated data sets are shared
        (home / "datasets").symlink_to(Path(os.environ["DIFFUP_HOME"]) / "datasets")
    else:
        (home / "datasets").mkdir()
    os.environ |= {
        "DIFFUP_HOME": str(home),
        "RAY_TMPDIR": str(ray_tmpdir),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MPLBACKEND": "Agg",
    }
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):  # tests leave a user's own cluster and store alone
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's directories; a Ray process that is still ending may hold some files for a moment."""
    for directory in config.stash.get(_scratch, []):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process. The first process begins with the files that start Ray, which take
    seconds of waiting, the others with the rest; who has finished takes from the other's end.

    The groups of ``--dist loadgroup`` have no effect with pytest 9.2 and xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            first = node is self.nodes[0]
            files = list(self.workqueue) if first else list(reversed(self.workqueue))
            path = next((path for path in files if _starts_ray(config.rootpath / path) is first), files[0])
            self.workqueue.move_to_end(path, last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


@lru_cache
def _starts_ray(path: Path) -> bool:
    return "pytest.mark.ray" in path.read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on a machine without CUDA; torch is imported only if there is such a test."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def _lawful(reason: str) -> str | None:
    """Which of the two lawful reasons a skip has, if any."""
    return next((lawful for lawful in (NO_GPU, NO_SHARED_DATA) if lawful in reason), None)


def _judge_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under ``DIFFUP_CI``, turn a skip that is not lawful into a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    where, line, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("?", 0, str(report.longrepr))
    if _in_ci() and not _lawful(reason):
        report.outcome = "failed"
        report.longrepr = (
            f"{where}:{line}: {reason}\nDIFFUP_CI is set: only a missing GPU or missing shared data may skip a test"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `_judge_skip`."""
    report = yield
    _judge_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See `_judge_skip`: a module skips as a whole through ``pytest.importorskip`` or at module level."""
    report = yield
    _judge_skip(report)
    return report


def _count_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Count a lawful skip in the process that prints the summary; xdist sends the reports of its workers there."""
    if report.skipped and (lawful := _lawful(str(report.longrepr))):
        _skips[lawful] += 1


pytest_runtest_logreport = pytest_collectreport = _count_skip


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests could not run here, before pytest's own last line."""
    counts = ", ".join(f"{count} for {reason}" for reason, count in sorted(_skips.items())) or "none"
    terminalreporter.write_line(f"lawful skips: {counts}")


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """A function that returns the path of a program, and skips the test without it (fails under ``DIFFUP_CI``)."""

    def require(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"program {name!r} is not installed; .ci/run installs it on Debian")
        return path

    return require


def _shared() -> Path:
    """``$DIFFUP_SHARED``, else ``../shared`` beside the repository; skips the test if there is neither."""
    named = os.environ.get("DIFFUP_SHARED")
    directory = Path(named) if named else ROOT.parent / "shared"
    if named and not directory.is_dir():
        pytest.fail(f"DIFFUP_SHARED={named} is not a directory")
    if not (directory / "data").is_dir():
        pytest.skip(f"{NO_SHARED_DATA}: {directory / 'data'} does not exist (set DIFFUP_SHARED)")
    return directory.resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of real data: ``msrc15/dataset.json`` and ``coco128/dataset.json`` lie in it. Never write there."""
    return _shared() / "data"


@pytest.fixture(scope="session")
def shared_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with HSNet's, PFENet's and VRP-SAM's list files, one folder an archive, unpacked."""
    folder = tmp_path_factory.mktemp("lists")
    for archive in sorted((_shared() / "reference" / "splits").glob("*.tar.xz")):
        with tarfile.open(archive) as held:
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4 has it, Debian 12's 3.11.2 does not
                held.extraction_filter = tarfile.data_filter
            held.extractall(folder / archive.name.removesuffix(".tar.xz"))
    return folder


@pytest.fixture(scope="session")
def shared_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights directory with ``resnet50``, ``mobilenetv2_100`` and ``deit_tiny_patch16_224``: ``$DIFFUP_WEIGHTS``
    where that is set, else the shared weights, unpacked into a temporary directory."""
    named = os.environ.get("DIFFUP_WEIGHTS")
    if named:
        if not Path(named).is_dir():
            pytest.fail(f"DIFFUP_WEIGHTS={named} is not a directory")
        return Path(named).resolve()
    source = _shared() / "weights"
    if not source.is_dir():
        pytest.skip(f"{NO_SHARED_DATA}: {source} does not exist (set DIFFUP_WEIGHTS)")
    unpacked = tmp_path_factory.mktemp("weights")
    for path in source.iterdir():
        if path.suffix in (".safetensors", ".json"):
            (unpacked / path.name).symlink_to(path)
        elif path.suffix == ".xz":
            with lzma.open(path) as packed, open(unpacked / path.stem, "wb") as out:
                shutil.copyfileobj(packed, out)
    return unpacked


@pytest.fixture(scope="session")
def shapes4i() -> Path:
    """``dataset.json`` of the whole embedded data set in ``$DIFFUP_HOME``; generated once for all processes."""
    from diffup.data.dataset import resolve_dataset

    datasets = Path(os.environ["DIFFUP_HOME"], "datasets").resolve()
    with (datasets.parent / "shapes4i.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return resolve_dataset("shapes4i")


@pytest.fixture
def one_thread() -> Generator[None]:
    """torch computes on one thread during the test, and as before after it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small shapes4i."""
    from tests.helpers.trained import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result store with one training cell, `tests.helpers.trained.CELL`."""
    from tests.helpers.trained import make_results

    return make_results(data, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def model(results: Path) -> DiffUp:
    """That cell's checkpoint, loaded."""
    from diffup import DiffUp
    from tests.helpers.trained import CELL

    return DiffUp.load(results / CELL.key())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Folder of indexes."""
    return tmp_path / "cache"


@pytest.fixture
def json_path(tmp_path: Path) -> Path:
    """``dataset.json`` of a sound data set in VOC layout."""
    from tests.helpers.folders import write_voc

    return write_voc(tmp_path / "toy")


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to copy: making its schema takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def s3_server() -> Generator[str]:
    """The address of a local S3 server: one for all tests of a process, as file systems are kept per process."""
    moto = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    app, lock = moto.DomainDispatcherApplication(moto.create_backend_app), threading.Lock()

    def answer(environ: Any, start_response: Any) -> Any:
        """moto looks for an object and writes it in two steps, so that two exclusive writers could both win."""
        with lock if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> Generator[str]:
    """The server, with an empty bucket where there is none, and the environment that points to it."""
    from tests.helpers.object_store import SECRET

    boto3 = pytest.importorskip("boto3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="results")
        yield s3_server


@pytest.fixture
def remote(endpoint: str, tmp_path: Path) -> ObjectStore:
    """A prefix that is the test's alone."""
    from cluster.storage.backend import ObjectStore

    return ObjectStore(f"s3://results/{tmp_path.name}")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyDataset:
    """What `cluster.execution.inputs` opens, whatever the path: the toy data set and the toy backbone."""
    from cluster.execution import inputs
    from tests.helpers.toy import ToyBackbone, ToyDataset

    made = ToyDataset()
    monkeypatch.setattr(inputs, "_open", lambda path: made)
    monkeypatch.setattr(inputs, "_backbone", lambda *where: ToyBackbone())
    inputs._features.cache_clear()
    inputs.cues_of.cache_clear()
    return made
