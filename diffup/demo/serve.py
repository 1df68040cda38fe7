"""Serving the page: a private folder for what Gradio writes, an address, and an orderly end on Ctrl+C or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup.demo.session import Session

HOST = "127.0.0.1"
PORTS = range(7860, 7960)
ENDS = (signal.SIGINT, signal.SIGTERM)
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # no call to its servers
    "GRADIO_RUN_HISTORY": "False",  # it would keep inputs and results in the browser
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, for all temporary files of the process, removed when the block ends.

    The page keeps pictures in memory; here would be what Gradio writes by itself. Ctrl+C and SIGTERM end the block, and
    then the process, in good order.
    """
    names = ("GRADIO_TEMP_DIR", "TMPDIR", *SETTINGS)
    before, default = {name: os.environ.get(name) for name in names}, tempfile.tempdir
    handlers = {number: signal.signal(number, _end) for number in ENDS}
    try:
        with tempfile.TemporaryDirectory(prefix="diffup-demo-", ignore_cleanup_errors=True) as folder:
            os.environ |= {"GRADIO_TEMP_DIR": folder, "TMPDIR": folder, **SETTINGS}
            tempfile.tempdir = folder
            yield Path(folder)
    finally:
        tempfile.tempdir = default
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(*_: object) -> None:
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)  # once is enough: the folder is being removed
    raise SystemExit(0)


def check_installed() -> None:
    """Raise a UserError where Gradio is not installed."""
    if find_spec("gradio") is None:
        raise UserError("gradio is not installed; run: pip install 'diffup[demo]'")


def free_port(wanted: int | None) -> int:
    """`wanted` if it is free, or the first free one of `PORTS`.

    Raises:
        UserError: it is in use, not allowed, or none is free.
    """
    for port in PORTS if wanted is None else [wanted]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                if wanted is not None:
                    raise UserError(f"port {wanted} can't be used ({error}); choose another with --port") from error
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"ports {PORTS.start} to {PORTS.stop - 1} are all in use; choose another with --port")


def serve(session: Session, checkpoint: str, *, port: int, share: bool) -> None:
    """Serve the page until the process is interrupted or ended; call it inside `private_folder`.

    Raises:
        UserError: there is no way to share.
    """
    from diffup.demo.app import css, make_page, theme  # Gradio reads the settings when it is imported

    page = make_page(session, checkpoint)
    if share:
        print("asking Gradio for a public address …", flush=True)
    try:
        _, address, shared = page.launch(
            server_name=HOST, server_port=port, share=share, quiet=True, prevent_thread_lock=True, footer_links=[],
            enable_monitoring=False, max_file_size=1, css=css(), theme=theme(),
        )  # fmt: skip
        if share and not shared:
            raise UserError("no public address could be made (is the network reachable?); run it without --share")
        print(f"DiffUp is at {shared or address} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
