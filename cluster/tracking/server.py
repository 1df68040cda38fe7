"""MLflow's own server over the sqlite store of a results directory."""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from cluster.tracking.client import open_store, resolve_uri, tracking_uri
from cluster.tracking.view import pages
from diffup.errors import UserError


def serve(results: Path, host: str, port: int) -> NoReturn:
    """Become ``mlflow server``, on a store that this process has created or upgraded.

    Args:
        results: the result store; runs are in its ``mlflow.db``, artifacts in ``mlartifacts/``.
        host: address to listen at.
        port: to listen at.

    Raises:
        UserError: that address is taken, or none of this machine.
    """
    uri = resolve_uri("", results)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(f"can't listen at {host}:{port} ({error.strerror}); choose another --port") from error
    open_store(uri)
    if not _is_loopback(host):
        print(
            f"warning: MLflow's server has no authentication: anyone who reaches {host}:{port} reads and changes all "
            f"runs. Keep it on 127.0.0.1, behind an SSH tunnel or a proxy that asks for a password",
            file=sys.stderr,
        )
    # Without the seven processes that MLflow 3 starts to run jobs of its own: nothing here asks for one.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", tracking_uri(uri), "--artifacts-destination", str(results / "mlartifacts")]
    command += ["--workers", "1"]  # sqlite writes one at a time anyway
    print(f"MLflow  {pages(results, f'http://{host}:{port}')}  ({uri})", flush=True)
    os.execv(sys.executable, command)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
