"""A disk that is full, for tests."""

from __future__ import annotations

import errno
import os

import pytest


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sync fail as on a full disk: what was written so far is there, and not on the disk."""

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
