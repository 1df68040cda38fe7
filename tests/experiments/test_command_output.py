"""What a grid script says at its end, in its help, and on terminals that lack characters."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import cli, launch
from cluster.closing import failures
from cluster.storage.results import Store
from diffup.errors import UserError, command_line, replace_unprintable
from diffup.grid.cell import AnyCell
from experiments import ablations, cross_dataset, dataset_grid, full_grid, method_study, mini_grid, protocol_study
from experiments import search as search_script
from tests.cluster.planning.test_plan import BASELINES, EVALUATED, GRID, TRAINED, finish

SCRIPTS = (ablations, cross_dataset, dataset_grid, full_grid, method_study, mini_grid, protocol_study)


def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, *more: str, report: Any = None, cells: Any = GRID
) -> int:
    """`cli.run` on a grid whose launch has ended with `code`."""
    monkeypatch.setattr(cli, "launch", lambda *_, **__: code)
    return cli.run(study(cells, report), ["--results", str(tmp_path), *more])


def study(cells: Any = GRID, report: Any = None) -> cli.Study[cli.GridOptions]:
    """A study of these cells."""
    return cli.Study(
        name="fake", description="", options=cli.GridOptions, build=lambda _: (list(cells), {}), report=report
    )


def test_training_alone_has_no_tables_and_that_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*_: object) -> None:
        raise UserError("no cell has finished")

    assert run_with(monkeypatch, tmp_path, 0, "--select", "kind=train", report=report) == 0
    said = capsys.readouterr()
    assert said.err == "" and "no tables: there are no evaluation cells" in said.out
    assert run_with(monkeypatch, tmp_path, 0, report=report, cells=[TRAINED]) == 0
    assert run_with(monkeypatch, tmp_path, 0, report=report) == 1  # there are some here


def fail(store: Store, cells: list[AnyCell]) -> None:
    for number, cell in enumerate(cells):
        store.write_error(cell, f"ValueError: reason {number}\nsecond line", f"Traceback {number}")


@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_the_last_lines_say_how_many_cells_failed_the_first_error_and_where_tracebacks_are(
    count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    cells = [TRAINED, *EVALUATED, *BASELINES, *(c for c in GRID if c not in (TRAINED, *EVALUATED, *BASELINES))]
    many: list[AnyCell] = [*cells, *_others(20 - len(cells))]
    fail(store, many[:count])

    def report(*_: object) -> None:
        print("a table")

    assert run_with(monkeypatch, tmp_path, 1, report=report, cells=many) == 1
    how_many, first, where = capsys.readouterr().out.splitlines()[-3:]
    assert how_many.startswith(f"{count} of {len(many)} cells failed")
    assert f"{many[0].key()} " in first and first.endswith("ValueError: reason 0 second line")
    named = re.findall(r"\S+/error\.json", where)
    assert named == [str(store.folder(cell.key()) / "error.json") for cell in many[: min(count, 10)]]
    assert ("and 2 more" in where) == (count == 12)


def _others(count: int) -> list[AnyCell]:
    from diffup.grid.axes import PROTOTYPE, evaluation_cells
    from tests.cluster.planning.test_plan import BACKBONES, DATA, KEEP

    made = evaluation_cells(DATA, 1, BACKBONES, [(k, "mask") for k in range(1, 20)], sample=PROTOTYPE, **KEEP)
    return list(made[:count])


def test_a_table_that_can_not_be_made_does_not_hide_the_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*_: object) -> None:
        raise UserError("no cell has finished")

    fail(Store(tmp_path), [TRAINED])
    assert run_with(monkeypatch, tmp_path, 1, report=report) == 1
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines()[-1].startswith("  tracebacks: ")
    assert "no tables: no cell has finished" in said.out


def test_an_interrupted_launch_has_tables_only_of_finished_cells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*_: object) -> None:
        print("a table")

    finish(Store(tmp_path), TRAINED)
    assert run_with(monkeypatch, tmp_path, 1, report=report) == 1
    said = capsys.readouterr().out
    assert "a table" not in said and said.splitlines()[-1] == "no tables: no cell has finished"
    finish(Store(tmp_path), BASELINES[0])
    assert run_with(monkeypatch, tmp_path, 1, report=report) == 1
    said = capsys.readouterr().out
    assert "a table" in said and "no tables" not in said


def test_nothing_is_said_of_failures_where_there_are_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store, TRAINED)
    assert failures(store, GRID) == []


def test_an_error_of_the_system_names_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "launch", full)
    assert cli.run(study(), ["--results", str(tmp_path)]) == launch.SOME_FAILED
    assert f"error: {tmp_path}: [Errno 28] No space left" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_states_the_number_of_episodes_that_a_grid_has(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script.STUDY.parse(["--help"])
    assert caught.value.code == 0
    shown = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    words = re.search(r"--episodes N per cell \(default: ([^);]*)(; with another protocol than paired[^)]*)?\)", shown)
    assert words is not None, shown
    default = script.STUDY.options.__dataclass_fields__["episodes"].default
    if words[1].isdigit():
        assert default == (None if words[2] else int(words[1]))
        assert int(words[1]) == script.EPISODES
    else:
        assert default is None and words[1] == "as many as the protocol has"


@pytest.mark.usefixtures("shapes4i")
@pytest.mark.parametrize("uri", ["s3://bucket/x", "gs://bucket/x", "S3://bucket/x"])
def test_a_search_refuses_an_object_store_by_name(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        assert cli.run(search_script.STUDY, ["--embedded", "--results", uri, *more]) == 2
        assert f"error: --results {uri}: a search" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--features", "--past", "--weights-dir", "--lists", "--manifests"])
def test_options_that_name_folders_refuse_object_stores(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        full_grid.STUDY.parse([option, "s3://bucket/x", "--dry-run"])
    wanted = f"error: {option}: give a folder of this machine, not s3://bucket/x\n"
    assert caught.value.code == 2 and capsys.readouterr().err == wanted


@given(
    st.text(),
    st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8", "koi8-r"]),
    st.sampled_from(["strict", "surrogateescape"]),
)
def test_any_text_can_be_printed_in_any_encoding(text: str, encoding: str, errors: str) -> None:
    stream, before = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors), sys.stdout
    sys.stdout = stream
    try:
        replace_unprintable()
        print(text)
        stream.flush()
    finally:
        sys.stdout = before
    wanted = text.encode(encoding, "replace").decode(encoding)
    assert stream.buffer.getvalue().decode(encoding) == f"{wanted}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "cp1252"])
def test_a_command_prints_its_help_in_any_encoding(encoding: str) -> None:
    env = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONIOENCODING": encoding}
    for module in ("experiments.mini_grid", "cluster.tracking", "diffup.episodes.protocols"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_every_command_does_so() -> None:
    seen = list[str]()

    def main() -> int:
        seen.append(str(stream.errors))
        return 0

    stream, before = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), sys.stdout
    sys.stdout = stream
    try:
        assert command_line(main) == 0
    finally:
        sys.stdout = before
    assert seen == ["replace"]
