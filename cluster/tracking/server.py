"""MLflow's own server over the sqlite store of a results directory."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from cluster.tracking.client import PATIENCE, QUIET, open_store, resolve_uri, tracking_uri

# Without the seven processes that MLflow 3 starts to run jobs of its own: nothing here asks for one.
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
WORKERS = 1  # one process: sqlite writes one at a time anyway


def serve(results: Path, host: str, port: int) -> NoReturn:
    """Become ``mlflow server``, on a store that this process has made ready.

    Args:
        results: the result store; runs lie in its ``mlflow.db``, artifacts in ``mlartifacts/``.
        host: address to listen at.
        port: to listen at.
    """
    uri = resolve_uri("", results)
    open_store(uri)
    if not _loopback(host):
        print(
            f"warning: MLflow's server has no authentication: whoever reaches {host}:{port} reads and changes all "
            f"runs. Keep it on 127.0.0.1, behind an SSH tunnel or a proxy that asks for a password",
            file=sys.stderr,
        )
    for name, value in (PATIENCE | QUIET | NO_JOBS).items():
        os.environ.setdefault(name, value)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", tracking_uri(uri), "--artifacts-destination", str(results / "mlartifacts")]
    print(f"MLflow at http://{host}:{port}  ({uri}); use --tracking-uri http://{host}:{port}", flush=True)
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "--workers", str(WORKERS)])


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
