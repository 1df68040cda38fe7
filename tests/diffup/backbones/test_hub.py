"""A hub that does not answer: it is said at once."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread

import pytest

from diffup.backbones.hub import unreachable
from diffup.backbones.load import load_backbone
from diffup.errors import UserError


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffup.backbones.load.build_timm", lambda *_, **__: pytest.fail("the hub was asked"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "refused" in unreachable(1.0)
        with pytest.raises(UserError, match=r"could not be downloaded .*does not answer.*--weights-dir"):
            load_backbone("resnet18", "hub")


def test_a_hub_that_refuses_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = Thread(target=refuse)
        thread.start()
        assert unreachable(20.0) == ""
        thread.join()
