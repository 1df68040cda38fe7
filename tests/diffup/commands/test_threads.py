"""Threads are set up before torch is loaded, which reads how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from diffup.commands.threads import use_threads

LOADED = "import sys, diffup.commands.predict, diffup.commands.demo; print('torch' in sys.modules)"


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    use_threads(None)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    use_threads(None)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_commands_load_torch_later() -> None:
    assert subprocess.check_output([sys.executable, "-c", LOADED], text=True).strip() == "False"


def test_their_number_reaches_torch() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
