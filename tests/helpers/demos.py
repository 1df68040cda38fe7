"""``diffup demo`` as a process, for tests: its own home and temporary folder, no network but this machine."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180.0  # a busy machine


@dataclass
class Demo:
    """A running page: its process, address, folder, and seconds from the command until it was ready."""

    process: subprocess.Popen[str]
    address: str
    folder: Path
    seconds: float

    def errors(self) -> str:
        """What it has printed to stderr."""
        return (self.folder / "errors.txt").read_text()


@contextmanager
def running(checkpoint: str, folder: Path, *options: str) -> Iterator[Demo]:
    """A page on a free port; files that it writes outside its private folder would be in `folder`."""
    for name in ("home", "tmp", "cwd"):
        (folder / name).mkdir()
    environment = {
        **os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "GRADIO_RUN_HISTORY"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "diffup.cli", "demo", "--checkpoint", checkpoint, "--port", "0", *options]
    began = time.monotonic()
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder / "cwd", env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, f"{line!r}; {(folder / 'errors.txt').read_text()}"
        yield Demo(process, found.group(), folder, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
