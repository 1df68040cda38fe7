"""Prior maps on disk: what is read is what was made, and a bad file or a full disk costs time only."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cluster.execution import inputs as opened
from cluster.execution.context import WorkContext
from diffup.training.draw_cache import DrawCache, afresh
from tests.helpers.disks import full_disk


@dataclass(frozen=True)
class Value:
    map_hw: torch.Tensor
    seed_1: torch.Tensor


class Maker:
    def __init__(self, fill: float = 0.5) -> None:
        self.calls, self.fill = 0, fill

    def __call__(self) -> Value:
        self.calls += 1
        return Value(torch.full((4, 4), self.fill), torch.tensor([7]))


def test_the_second_process_reads_what_the_first_made(tmp_path: Path) -> None:
    make = Maker()
    first = DrawCache(tmp_path).of("source")("key", Value, make)
    again = DrawCache(tmp_path).of("source")("key", Value, make)
    assert make.calls == 1
    assert torch.equal(first.map_hw, again.map_hw) and torch.equal(first.seed_1, again.seed_1)


@pytest.mark.parametrize(("source", "key"), [("other", "key"), ("source", "other"), ("source", ("key", 1))])
def test_another_source_or_key_is_another_value(tmp_path: Path, source: str, key: object) -> None:
    DrawCache(tmp_path).of("source")("key", Value, Maker(0.25))
    assert DrawCache(tmp_path).of(source)(key, Value, Maker(0.75)).map_hw[0, 0] == 0.75


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:20], lambda kept: kept[:-3] + bytes([kept[-3] ^ 64]) + kept[-2:]]
)
def test_a_damaged_file_is_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    DrawCache(tmp_path).of("s")("k", Value, Maker())
    [path] = tmp_path.rglob("*.drawn")
    path.write_bytes(damage(path.read_bytes()))
    make = Maker()
    assert DrawCache(tmp_path).of("s")("k", Value, make).map_hw.shape == (4, 4)
    assert make.calls == 1
    DrawCache(tmp_path).of("s")("k", Value, make)
    assert make.calls == 1


def test_a_full_memo_writes_no_more(tmp_path: Path) -> None:
    memo = DrawCache(tmp_path, limit_bytes=100)  # a value has 72 bytes
    memo.of("s")("first", Value, Maker())
    memo.of("s")("second", Value, Maker())
    assert len(list(tmp_path.rglob("*.drawn"))) == 1


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    assert DrawCache(tmp_path).of("s")("k", Value, Maker()).seed_1 == 7
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert DrawCache(tmp_path / "file").of("s")("k", Value, Maker()).seed_1 == 7


def test_afresh_keeps_nothing() -> None:
    make = Maker()
    afresh("k", Value, make), afresh("k", Value, make)
    assert make.calls == 2


def test_another_version_of_the_method_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = WorkContext(results=tmp_path, datasets={})
    make = Maker()
    for code in ("first", "first", "second"):
        monkeypatch.setattr(opened, "code_hash", lambda code=code: code)
        opened.keep_for(context, "source")("key", Value, make)
    assert make.calls == 2


LIMIT = 2000


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.drawn"))


def fill(folder: Path, name: str, count: int = 20, limit: int = LIMIT) -> None:
    keep = DrawCache(folder, limit_bytes=limit).of(name)
    for key in range(count):
        keep(key, Value, Maker())


def test_the_limit_is_the_folders_and_not_each_processs(tmp_path: Path) -> None:
    memos = [DrawCache(tmp_path, limit_bytes=LIMIT) for _ in range(6)]  # all opened while the folder is empty
    for key in range(10):
        for number, memo in enumerate(memos):
            memo.of(number)(key, Value, Maker())
            assert held(tmp_path) <= LIMIT
    assert held(tmp_path) > LIMIT / 2


@pytest.mark.slow
def test_the_limit_holds_while_several_processes_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=fill, args=(tmp_path, f"writer {i}", 40, 8000)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert 4000 < held(tmp_path) <= 8000
    assert int((tmp_path / "bytes").read_text()) == held(tmp_path)


def test_what_was_deleted_makes_room(tmp_path: Path) -> None:
    fill(tmp_path, "first")
    before = held(tmp_path)
    for path in tmp_path.rglob("*.drawn"):
        path.unlink()
    fill(tmp_path, "second")
    assert held(tmp_path) == before


@pytest.mark.parametrize("count", ["", "no number", None])
def test_a_lost_count_is_made_again(count: str | None, tmp_path: Path) -> None:
    fill(tmp_path, "first")
    if count is None:
        (tmp_path / "bytes").unlink()
    else:
        (tmp_path / "bytes").write_text(count)
    fill(tmp_path, "second")
    assert LIMIT / 2 < held(tmp_path) <= LIMIT


def test_values_that_nobody_uses_leave_a_full_folder_and_used_ones_stay(tmp_path: Path) -> None:
    fill(tmp_path, "other code")
    old = sorted(tmp_path.rglob("*.drawn"))
    then = time.time() - 2 * 86400
    for path in old:
        os.utime(path, (then, then))
    used = Maker()
    DrawCache(tmp_path, limit_bytes=LIMIT).of("other code")(0, Value, used)
    assert used.calls == 0, "read, and thereby used now"
    fill(tmp_path, "this code")
    new = set(tmp_path.rglob("*.drawn"))
    assert held(tmp_path) <= LIMIT and len(new & set(old)) == 1
    DrawCache(tmp_path, limit_bytes=LIMIT).of("other code")(0, Value, used)
    assert used.calls == 0


def test_a_process_that_found_the_folder_full_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "first")
    memo = DrawCache(tmp_path, limit_bytes=LIMIT)
    memo.of("second")(0, Value, Maker())
    count = len(list(tmp_path.rglob("*.drawn")))
    for path in tmp_path.rglob("*.drawn"):
        path.unlink()
    memo.of("second")(0, Value, Maker())
    assert count and not list(tmp_path.rglob("*.drawn")), "not with every value"
    memo._full_until = 0.0
    memo.of("second")(0, Value, Maker())
    assert len(list(tmp_path.rglob("*.drawn"))) == 1
