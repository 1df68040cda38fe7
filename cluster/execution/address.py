"""Whether a Ray cluster answers at an address, found within a minute; Ray itself tries for 14 minutes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from diffup.errors import UserError

CONNECT_SECONDS, HEALTH_SECONDS = 10.0, 30.0
CLIENT_PORT = "10001"  # of ray://HOST
DASHBOARDS = ("http", "https")


def check_address(address: str, named_by: str) -> None:
    """Make sure that something answers at a cluster's address, and that it is a Ray head.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` or, for jobs, a dashboard's ``http://HOST:PORT``.
        named_by: what the user would have to change, for the message.

    Raises:
        UserError: nothing answers there, or the address has another form.
    """
    hint = f"; unset {named_by} to use this machine alone" if named_by == "RAY_ADDRESS" else ""
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
