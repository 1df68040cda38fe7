"""Access to an MLflow store: URIs without secrets, creation and upgrade by one process, fast failure when it is down.

A password in a URI is kept in this process's environment: the URI that is shown, sent to workers or written anywhere
has ``***`` in its place. Workers get it from their environment too (``MLFLOW_TRACKING_PASSWORD``), as MLflow does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

from cluster.tracking.moved import relocate
from diffup.errors import REPORT, UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
HIDDEN = "***"
USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)([^/?#]*)@", re.IGNORECASE)
ENVIRONMENT = {
    # A tracking server that does not answer must not hold cells up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
PROBE_SECONDS = 3.0
REST_SECONDS = 60.0
# Errors that concern one request, not the store: others may succeed.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

_resting: dict[str, float] = {}  # by URI: until when (monotonic) this process doesn't try again


def resolve_uri(uri: str, results: Path) -> str:
    """An absolute tracking URI with ``***`` for a password, which goes to the environment; by default a sqlite file in
    the results directory.

    Raises:
        UserError: a scheme that MLflow has no database or server for, or a secret where it can't be recognized.
    """
    if not uri:
        return sqlite_uri(results / "mlflow.db")
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme.split("+")[0] not in SCHEMES:
        raise UserError(
            f"--tracking-uri {uri!r}: give a database or a server, such as sqlite:////ABSOLUTE/mlflow.db or "
            f"http://127.0.0.1:5000 (MLflow no longer keeps runs in plain folders)"
        )
    if re.search(r"[?&]password=", rest, re.IGNORECASE):
        raise UserError("--tracking-uri: write the password as user:password@, not behind the question mark")
    if scheme == "sqlite" and rest.startswith("///") and not rest.startswith("////"):
        return f"{sqlite_uri(Path.cwd())}/{Path(rest.removeprefix('///'))}"
    found = USERINFO.match(uri)
    if not found:
        return uri
    user, colon, password = found[2].partition(":")
    if not colon and scheme.startswith("http"):
        raise UserError(f"--tracking-uri {scheme}://…@…: give user:password@, or a token in the environment as {TOKEN}")
    if colon and password != HIDDEN:
        os.environ[PASSWORD] = unquote(password)
    if scheme.startswith("http"):
        os.environ[USER] = unquote(user)
    return shown(uri)


def sqlite_uri(path: Path) -> str:
    """The URI of a database file, with ``%``, ``?`` and ``#`` in the path escaped.

    Raises:
        UserError: the path has such a character, and the installed SQLAlchemy (before 2.1) does not read escapes.
    """
    text = re.sub("[%?#]", lambda found: f"%{ord(found[0]):02X}", str(path))
    if text != str(path) and tuple(map(int, version("sqlalchemy").split(".")[:2])) < (2, 1):
        raise UserError(f"{path}: this SQLAlchemy opens no path with '%', '?' or '#'; upgrade it to 2.1, or rename it")
    return f"sqlite:///{text}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, None for other URIs."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def shown(uri: str) -> str:
    """The URI without its password."""
    found = USERINFO.match(uri)
    if not found or ":" not in found[2]:
        return uri
    return f"{found[1]}{found[2].partition(':')[0]}:{HIDDEN}@{uri[found.end() :]}"


def tracking_uri(uri: str) -> str:
    """The URI to give to MLflow: with a database's password; a server's credentials MLflow reads from the environment.

    For a ``sqlite:///`` path with escapes the driver is named: MLflow would otherwise create a second, empty folder
    whose name has the escapes in it.
    """
    if uri.startswith("sqlite:///") and "%" in uri:
        return f"sqlite+pysqlite{uri.removeprefix('sqlite')}"
    found = USERINFO.match(uri)
    if not found:
        return uri
    if uri.startswith("http"):
        return f"{found[1]}{uri[found.end() :]}"
    user, colon, password = found[2].partition(":")
    if password == HIDDEN:
        if PASSWORD not in os.environ:
            raise ConnectionError(f"the environment has no {PASSWORD} for {uri}")
        password = quote(os.environ[PASSWORD], safe="")
    return f"{found[1]}{user}{colon}{password}@{uri[found.end() :]}"


def client_of(uri: str) -> MlflowClient:
    """A client of the store at a resolved URI."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=tracking_uri(uri))


def is_trouble(error: Exception) -> bool:
    """Whether an error comes from MLflow, its database, the network or a file; others are bugs."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    known = isinstance(error, OSError | ImportError | UserError | subprocess.SubprocessError)
    return known or not packages.isdisjoint(("mlflow", "sqlalchemy", "sqlite3", "alembic", "requests", "pyarrow"))


def is_refusal(error: Exception) -> bool:
    """Whether an error concerns one request alone, and others may succeed."""
    return getattr(error, "error_code", "") in REFUSALS


def attempt(uri: str, failure: str, work: Callable[[MlflowClient], T], *, now: bool = False) -> T | None:
    """Do something with MLflow that may fail without consequences: an error is a warning.

    Args:
        uri: of the store, resolved.
        failure: what to say if it fails, e.g. ``"cell … can't be logged"``.
        work: what to do.
        now: also within `REST_SECONDS` of a failure of this store, during which this process otherwise doesn't try.

    Returns:
        what `work` returns; None if it failed or was not tried.
    """
    if rests(uri) and not now:
        return None
    try:
        require_answer(uri)
        return work(client_of(uri))
    except Exception as error:
        note_failure(uri, error)
        warn(failure, error)
        return None


def warn(failure: str, error: Exception) -> None:
    """Warn that tracking failed, without secrets; a bug shows its traceback too."""
    if not is_trouble(error):
        traceback.print_exception(error)
        print(REPORT, file=sys.stderr)
    lines = str(error).strip().splitlines()
    text = lines[0][:200] if lines else type(error).__name__
    for name in (PASSWORD, TOKEN):
        if secret := os.environ.get(name):
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    warnings.warn(
        f"MLflow: {failure}: {text}. The grid goes on; results are in the store, and a later launch or `python -m "
        f"cluster.tracking sync` logs what is missing",
        stacklevel=2,
    )


def rests(uri: str) -> bool:
    """Whether the store failed this process less than `REST_SECONDS` ago."""
    return time.monotonic() < _resting.get(uri, 0.0)


def note_failure(uri: str, error: Exception) -> None:
    """Leave the store alone for `REST_SECONDS`, unless the error concerns one request alone."""
    if not is_refusal(error) and not isinstance(error, FileNotFoundError):
        _resting[uri] = time.monotonic() + REST_SECONDS


def require_answer(uri: str) -> None:
    """Raise ConnectionError unless a server answers within `PROBE_SECONDS`; databases are not asked.

    MLflow's own client retries each request for 10 to 30 s before it gives up on a server that is down.
    """
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(f"{tracking_uri(uri).rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as answer:
        if answer.code >= 502:  # a proxy without its server; any other answer is an answer
            raise ConnectionError(f"{uri} answers {answer.code}") from answer
    except OSError as error:
        raise ConnectionError(f"{uri} does not answer: {getattr(error, 'reason', error)}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which ends with the process; without effect on file systems that can't lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def alone(uri: str) -> contextlib.AbstractContextManager[None]:
    """One process at a time: of 8 that opened a fresh sqlite store at once, 7 failed (measured with MLflow 3.17)."""
    path = sqlite_path(uri)
    return contextlib.nullcontext() if path is None else locked(path.with_name(f".{path.name}.lock"))


def open_store(uri: str) -> MlflowClient:
    """A client of a store with the schema of this MLflow: created, or upgraded with a copy of the old one beside it.

    Raises:
        Exception: it can't be reached.
    """
    require_answer(uri)
    with alone(uri):
        client = client_of(uri)
        try:
            client.get_experiment_by_name("Default")
        except Exception as error:
            if "out-of-date database schema" not in str(error) or not uri.startswith("sqlite:///"):
                raise
            upgrade(uri)
            client = client_of(uri)
        if (path := sqlite_path(uri)) is not None:
            relocate(path)
    return client


def upgrade(uri: str) -> None:
    """Bring an older sqlite store to this MLflow's schema; a copy of the old one is kept beside it."""
    path = sqlite_path(uri)
    assert path is not None, uri
    shutil.copy2(path, path.with_name(f"{path.name}.before-upgrade-{int(time.time())}"))
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", tracking_uri(uri)]
    subprocess.run(command, check=True, capture_output=True)
