"""Sessions of Ray: a cluster of this launch's own, or one that runs already, whose address is checked within a minute
(Ray itself tries for 14 minutes).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffup.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Ray puts Unix sockets below its folder, in session_<26 characters>_<pid>/sockets/; their paths end at 107 characters.
LONGEST_FOLDER = 42
PREFIX = "diffup-"
STARTS = 3
PACKAGES = ("diffup", "experiments", "analysis", "cluster")
OBJECT_STORE_BYTES = 100 * 2**20  # trials pass nothing through it
CONNECT_SECONDS, HEALTH_SECONDS = 10.0, 30.0
CLIENT_PORT = "10001"  # of ray://HOST
DASHBOARDS = ("http", "https")


def running_cluster() -> bool:
    """Whether a cluster is named by the environment (also true inside ``ray job submit``)."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def _own_folder() -> tuple[Path, int]:
    """A new folder for Ray's session, locked for as long as this process lives."""
    chosen = os.environ.get("RAY_TMPDIR", "")
    if chosen and len(chosen) > LONGEST_FOLDER - len(PREFIX) - 8:
        raise UserError(f"RAY_TMPDIR={chosen} is too long for Ray's Unix sockets; give a path of at most 27 characters")
    base = Path(chosen or tempfile.gettempdir())
    if len(str(base)) > LONGEST_FOLDER - len(PREFIX) - 8:
        base = Path("/tmp")
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(base)
        while (made := _locked_folder(base)) is None:
            pass
    except OSError as error:
        raise UserError(f"{base} can't hold Ray's session ({error}); set RAY_TMPDIR to a folder that can") from error
    return made


def _locked_folder(base: Path) -> tuple[Path, int] | None:
    """A new folder and its lock; None where another launch took the lock first, and so removes the folder."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        if os.stat(folder / "lock").st_ino == os.fstat(handle).st_ino:
            return folder, handle
    except FileNotFoundError:
        pass
    os.close(handle)
    return None


def _remove_left_behind(base: Path) -> None:
    """Remove folders of launches that were killed: nobody holds their lock any more."""
    for lock in base.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def _own_token() -> dict[str, str]:
    """A token for this launch's cluster alone, so that neither the user's token file is read nor one is made."""
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of a launch: joins the cluster of ``RAY_ADDRESS``, else starts one that nobody else sees.

    Raises:
        UserError: ``RAY_TMPDIR`` is too long, or the cluster named can't be reached.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the launch reports what failed, in one line each
    warnings.filterwarnings("ignore", module=r"ray\..*")
    silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    setup = {"worker_process_setup_hook": _worker_setup(str(ROOT))}
    if running_cluster():
        address = os.environ["RAY_ADDRESS"]
        if address.startswith(DASHBOARDS):
            raise UserError(
                f"RAY_ADDRESS={address} is a dashboard, for `python -m cluster submit`; name the head's HOST:6379, or "
                "unset it to use this machine alone"
            )
        check_address(address, "RAY_ADDRESS")
        import ray

        try:
            with _hushed():
                ray.init(address="auto", runtime_env={"env_vars": THREADS, **setup}, **silent)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS={address} can't be joined ({why[:200]}); unset it to use this machine "
                "alone"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder, handle = _own_folder()
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    output = {"PYTHONIOENCODING": "utf-8:replace"}  # into log files
    with _environment({**THREADS, **output, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **_own_token()}):
        import ray  # only now: Ray reads the mode of its authentication once, when it is imported

        try:
            _start(
                include_dashboard=False,
                _temp_dir=str(folder),
                object_store_memory=OBJECT_STORE_BYTES,
                # Ray's own workers, which are there already, can't take one: seconds, for what is seldom needed.
                runtime_env=setup if _shadowed() else None,
                **silent,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _start(**how: Any) -> None:
    """Start Ray on this machine. It waits 30 s for its own processes, too little where many others want the CPUs: then
    it is started again.

    Raises:
        UserError: it does not start.
    """
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            with _hushed():
                ray.init(address="local", **how)
            return
        except (TypeError, ValueError, AttributeError, NameError):  # a bug
            raise
        except Exception as error:  # of several kinds, `Exception` itself among them
            ray.shutdown()
            if attempt == STARTS:
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"Ray did not start on this machine in {STARTS} attempts ({why[:200]}); it may be overloaded, or "
                    "short of memory. Re-run to resume"
                ) from error


def _shadowed() -> bool:
    """Whether a folder that Ray puts first on a worker's path has modules with the names of our packages."""
    folders = {Path.cwd(), Path(sys.argv[0]).resolve().parent} - {ROOT}
    return any((folder / f"{name}{end}").exists() for folder in folders for name in PACKAGES for end in ("", ".py"))


def _worker_setup(root: str) -> Callable[[], None]:
    """What each worker process does first. Nested, so that it is sent by value: before it has run, ``import cluster``
    may find a file of that name in the user's working directory, which Ray puts first on a worker's path."""

    packages = PACKAGES

    def prepare() -> None:
        import importlib
        import os
        import sys

        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        if os.path.isdir(os.path.join(root, "cluster")):  # else a node that has the code elsewhere
            sys.path.insert(0, root)
            for name in packages:
                importlib.import_module(name)  # what is imported stays, whatever comes first on the path
            sys.path.remove(root)

    return prepare


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Nothing that Ray's C++ part writes to stderr meanwhile; errors come as exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the workers that Ray starts meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_address(address: str, named_by: str) -> None:
    """Make sure that something answers at a cluster's address, and that it is a Ray head.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` or, for jobs, a dashboard's ``http://HOST:PORT``.
        named_by: what the user would have to change, for the message.

    Raises:
        UserError: nothing answers there, or the address has another form.
    """
    hint = {
        "RAY_ADDRESS": "; unset RAY_ADDRESS to use this machine alone",
        "--address": "; docs/cluster.md says how to start one, --address or RAY_ADDRESS names its dashboard",
    }.get(named_by, "")
    why = _refused(address)
    if not why and "://" not in address and not _healthy(address):
        why = "what answers there is no Ray head" if address != "auto" else "no cluster runs on this machine"
    if why:
        raise UserError(f"no Ray cluster answers at {named_by}={address} ({why}){hint}")


def _refused(address: str) -> str:
    """Why no connection can be made, ``""`` if one can or the address names no host."""
    if address == "auto":
        return ""
    scheme, _, rest = address.rpartition("://")
    host, colon, port = rest.split("/")[0].rpartition(":")
    if not colon and scheme:
        host, port = port, {"https": "443", "http": "80"}.get(scheme, CLIENT_PORT)
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        return "write HOST:PORT, such as 10.0.0.5:6379"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS can't have
        return str(error) or type(error).__name__
    return ""


def _healthy(address: str) -> bool:
    """Whether Ray's own check finds a head there; in a process of its own, which can be ended."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check"]
    env = {**os.environ, "RAY_ADDRESS": address}
    try:
        return not subprocess.run(
            [*command, "--address", address], env=env, capture_output=True, timeout=HEALTH_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return False
