"""Jobs are followed through connections that break, and carry no secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster import job
from cluster.job import follow, main

LOG = ["plan\n", "cell 1\ncell 2\n", "done\n"]


class Client:
    """A job server whose log connection breaks after so many chunks, attempt by attempt."""

    def __init__(self, breaks: list[int], code: int | None = 0, last: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.breaks, self.code, self.last = breaks, code, last
        self.asked = 0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        left = self.breaks.pop(0) if self.breaks else None
        for number, lines in enumerate(LOG):
            if number == left:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield lines
        self.asked = -1  # the whole log was read

    def get_job_info(self, name: str) -> Any:
        status = self.last if self.asked < 0 else JobStatus.RUNNING
        return SimpleNamespace(status=status, driver_exit_code=self.code if self.asked < 0 else None)


def test_a_log_is_printed_once_however_often_its_connection_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    client: Any = Client([0, 1, 1, 2], code=3, last=JobStatus.FAILED)
    assert follow(client, "j", wait=0) == 3
    out, err = capsys.readouterr()
    assert out == "".join(LOG)
    assert err == "job j: FAILED\n"


def test_a_head_that_stays_away_is_given_up_with_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PATIENCE", 2)
    client: Any = Client([1] * 50)
    assert follow(client, "j", wait=0) == 1
    out, err = capsys.readouterr()
    assert out == LOG[0]
    assert "close code 1006; job j may go on: python -m cluster logs j" in err


def test_ctrl_c_leaves_the_job_alone(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Client):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            yield "plan\n"
            raise KeyboardInterrupt

    client: Any = Interrupted([])
    assert follow(client, "j", wait=0) == 1
    assert "job j goes on; end it with: python -m cluster stop j" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY=x", "Ray shows a job's environment"),
        ("hf_token=x", "Ray shows a job's environment"),
        ("MLFLOW_TRACKING_URI=https://me:pw@host", "Ray shows a job's environment"),
        ("OMP_NUM_THREADS=4", "leave it out"),
        ("=x", "write NAME=VALUE"),
    ],
)
def test_an_environment_that_must_not_go_along_is_refused(
    pair: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--env", pair, "experiments/full_grid.py"]) == 2
    said = capsys.readouterr().err
    assert words in said and "pw" not in said


def test_a_port_is_no_refusal() -> None:
    closed = RuntimeError("Failed to connect to Ray at address: http://127.0.0.1:44401.")
    assert "no Ray cluster answers" in job._why("http://127.0.0.1:44401", closed)
    assert "refused the token" in job._why("http://h", RuntimeError("Request failed with status code 401: x"))


def test_large_files_are_named_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.py").touch()
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(job.LIMIT_BYTES + 1)
    assert main(["submit", "--working-dir", str(tmp_path), "s.py"]) == 2
    assert "weights.bin" in capsys.readouterr().err
    (tmp_path / ".rayignore").write_text("*.bin\n")
    assert job.check_size(tmp_path) == len("*.bin\n")
