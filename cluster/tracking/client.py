"""Reaching an MLflow store: its URI without secrets, a fresh store made by one process, and leaving a dead one alone.

A password in a URI stays in this process's environment: the URI that is shown, sent to workers or written anywhere has
``***`` in its place. Workers get it from their environment too (``MLFLOW_TRACKING_PASSWORD``), as MLflow itself does.
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
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from diffup.errors import REPORT, UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
HIDDEN = "***"
USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)([^/?#]*)@", re.IGNORECASE)
# A tracking server that does not answer must not hold cells up for minutes.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
PROBE_SECONDS = 3.0
REST_SECONDS = 60.0
# Answers that blame one request, not the store: others may go well.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

_resting: dict[str, float] = {}  # until when (monotonic) this process leaves a store alone


def resolve_uri(uri: str, results: Path) -> str:
    """An absolute tracking URI with ``***`` for a password, which goes to the environment; by default a sqlite file in
    the results directory.

    Raises:
        UserError: a scheme that MLflow has no database or server for, or a secret where it can't be told from a name.
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
    """The URI of a database file, with what would end or change the path in a URI escaped.

    Raises:
        UserError: the path has such a character, and this SQLAlchemy takes no escapes (before 2.1).
    """
    text = str(path)
    for character in "%?#":
        text = text.replace(character, f"%{ord(character):02X}")
    uri = f"sqlite:///{text}"
    if text != str(path) and tuple(map(int, version("sqlalchemy").split(".")[:2])) < (2, 1):
        raise UserError(f"{path}: this SQLAlchemy opens no path with '%', '?' or '#'; upgrade it to 2.1, or rename it")
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, None for other URIs."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def shown(uri: str) -> str:
    """The URI as it may be read by anyone."""
    found = USERINFO.match(uri)
    if not found or ":" not in found[2]:
        return uri
    return f"{found[1]}{found[2].partition(':')[0]}:{HIDDEN}@{uri[found.end() :]}"


def tracking_uri(uri: str) -> str:
    """What MLflow gets for a URI as shown: a server's user and password it takes from the environment.

    It makes the folder of a ``sqlite:///`` path without undoing escapes, which would be a second, empty one: with the
    driver named it makes none.
    """
    if uri.startswith("sqlite:///") and "%" in uri:
        return f"sqlite+pysqlite{uri.removeprefix('sqlite')}"
    found = USERINFO.match(uri)
    if not found:
        return uri
    if uri.startswith("http"):
        return f"{found[1]}{uri[found.end() :]}"
    user, _, password = found[2].partition(":")
    if password == HIDDEN:
        if PASSWORD not in os.environ:
            raise ConnectionError(f"the environment has no {PASSWORD} for {uri}")
        password = quote(os.environ[PASSWORD], safe="")
    return f"{found[1]}{user}{':' if password else ''}{password}@{uri[found.end() :]}"


def client_of(uri: str) -> MlflowClient:
    """A client of the store at a URI as shown."""
    for name, value in (PATIENCE | QUIET).items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=tracking_uri(uri))


def is_trouble(error: Exception) -> bool:
    """Whether an error is of MLflow, its database, the network or a file, as tracking meets them; others are bugs."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    known = isinstance(error, OSError | ImportError | UserError | subprocess.SubprocessError)
    return known or not packages.isdisjoint(("mlflow", "sqlalchemy", "sqlite3", "alembic", "requests", "pyarrow"))


def warn(what: str, error: Exception) -> None:
    """Say that tracking failed and that nothing else did; a bug shows its traceback too."""
    if not is_trouble(error):
        traceback.print_exception(error)
        print(REPORT, file=sys.stderr)
    lines = str(error).strip().splitlines()
    text = lines[0][:200] if lines else type(error).__name__
    for name in (PASSWORD, TOKEN):
        if secret := os.environ.get(name):
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    warnings.warn(
        f"MLflow: {what}: {text}. The grid goes on; results are in the store, and a later launch or `python -m "
        f"cluster.tracking.launch_runs sync` logs what is missing",
        stacklevel=2,
    )


def rests(uri: str) -> bool:
    """Whether the store failed this process less than `REST_SECONDS` ago: then nobody should wait for it again."""
    return time.monotonic() < _resting.get(uri, 0.0)


def note_failure(uri: str, error: Exception) -> None:
    """Leave the store alone for a while, unless the error blames one request alone."""
    if getattr(error, "error_code", "") not in REFUSALS and not isinstance(error, FileNotFoundError):
        _resting[uri] = time.monotonic() + REST_SECONDS


def require_answer(uri: str) -> None:
    """Raise ConnectionError unless a server answers within `PROBE_SECONDS`; databases are taken at their word.

    MLflow's own client retries each request of a cell for 10 to 30 s before it gives a dead server up.
    """
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(f"{tracking_uri(uri).rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as answer:
        if answer.code >= 502:  # a proxy speaks for a server that is not there; any other answer is an answer
            raise ConnectionError(f"{uri} answers {answer.code}") from answer
    except OSError as error:
        raise ConnectionError(f"{uri} does not answer: {getattr(error, 'reason', error)}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while this lasts; it dies with its process. Does nothing where files can't be locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time: of 8 that opened a fresh sqlite store at once, 7 failed (measured with MLflow 3.17)."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with locked(path.with_name(f".{path.name}.lock")):
        yield


def open_store(uri: str) -> MlflowClient:
    """A client of a store that has this MLflow's schema: made, or upgraded with a copy of the old one kept beside it.

    Raises:
        Exception: it can't be reached.
    """
    require_answer(uri)
    with _alone(uri):
        client = client_of(uri)
        try:
            client.get_experiment_by_name("Default")
        except Exception as error:
            if "out-of-date database schema" not in str(error) or not uri.startswith("sqlite:///"):
                raise
            upgrade(uri)
            client = client_of(uri)
    return client


KIND = {"mlflow.experimentKind": "custom_model_development"}  # else its pages are those of language models


def open_experiment(
    client: MlflowClient, uri: str, name: str, results: Path, renamed: Callable[[], str] = lambda: ""
) -> str:
    """Id of the experiment of this name; made if it isn't there, restored if it was deleted.

    Args:
        client, uri: of the MLflow store.
        name: of the experiment.
        results: where artifacts go, unless a server keeps them.
        renamed: is asked if there is none of this name: the id of the one that was given another name, or ``""``.
    """
    from mlflow.exceptions import MlflowException

    with _alone(uri):
        found = client.get_experiment_by_name(name)
        if found is None and (other := renamed()):
            return other
        if found is None:
            # A server keeps artifacts where it is told to; beside a database they need an absolute place.
            place = None if uri.startswith("http") else (results / "mlartifacts").as_uri()
            try:
                made: str = client.create_experiment(name, artifact_location=place, tags=KIND)
                return made
            except MlflowException:  # another machine was first
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
    kept: str = found.experiment_id
    return kept


def upgrade(uri: str) -> None:
    """Bring an older sqlite store to this MLflow's schema; a copy of the old one is kept beside it."""
    path = sqlite_path(uri)
    assert path is not None, uri
    shutil.copy2(path, path.with_name(f"{path.name}.before-upgrade-{int(time.time())}"))
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", tracking_uri(uri)], check=True, capture_output=True
    )
