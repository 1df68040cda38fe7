"""Serving the page: a private folder for what Gradio writes, an address, and an orderly end on Ctrl+C or SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.errors import UserError, extra

if TYPE_CHECKING:
    from diffup.demo.session import Session

HOST = "127.0.0.1"
PORTS = range(7860, 7960)
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # no call to its servers
    "GRADIO_RUN_HISTORY": "False",  # it would keep inputs and results in the browser
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, for all temporary files of the process, removed when the block ends.

    The page keeps pictures in memory; here would be what Gradio writes by itself.
    """
    with tempfile.TemporaryDirectory(prefix="diffup-demo-", ignore_cleanup_errors=True) as folder:
        before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "TMPDIR", *SETTINGS)}
        os.environ |= {"GRADIO_TEMP_DIR": folder, "TMPDIR": folder, **SETTINGS}
        default, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = default
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


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


def serve(session: Session, checkpoint: str, *, port: int | None, share: bool) -> None:
    """Serve the page until the process is interrupted or ended; call it inside `private_folder`.

    Raises:
        UserError: Gradio is not installed, the port can't be used, or there is no way to share.
    """
    with extra("demo"):
        from diffup.demo.app import css, make_page, theme

    page, stop = make_page(session, checkpoint), threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _, address, shared = page.launch(
            server_name=HOST, server_port=free_port(port), share=share, quiet=True, prevent_thread_lock=True,
            footer_links=[], enable_monitoring=False, max_file_size=1, css=css(), theme=theme(),
        )  # fmt: skip
        if share and not shared:
            raise UserError("no public address could be made (is the network reachable?); run it without --share")
        print(f"DiffUp is at {shared or address} (Ctrl+C ends it)", flush=True)
        stop.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        page.close(verbose=False)
