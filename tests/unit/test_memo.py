"""Prior maps on disk: what is read is what was made, and a bad file or a full disk costs time only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cluster import context as opened
from diffup.memo import PriorMemo, afresh
from tests.unit.disks import full_disk


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
    first = PriorMemo(tmp_path).of("source")("key", Value, make)
    again = PriorMemo(tmp_path).of("source")("key", Value, make)
    assert make.calls == 1
    assert torch.equal(first.map_hw, again.map_hw) and torch.equal(first.seed_1, again.seed_1)


@pytest.mark.parametrize(("source", "key"), [("other", "key"), ("source", "other"), ("source", ("key", 1))])
def test_another_source_or_key_is_another_value(tmp_path: Path, source: str, key: object) -> None:
    PriorMemo(tmp_path).of("source")("key", Value, Maker(0.25))
    assert PriorMemo(tmp_path).of(source)(key, Value, Maker(0.75)).map_hw[0, 0] == 0.75


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:20], lambda kept: kept[:-3] + bytes([kept[-3] ^ 64]) + kept[-2:]]
)
def test_a_damaged_file_is_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    PriorMemo(tmp_path).of("s")("k", Value, Maker())
    [path] = tmp_path.rglob("*.drawn")
    path.write_bytes(damage(path.read_bytes()))
    make = Maker()
    assert PriorMemo(tmp_path).of("s")("k", Value, make).map_hw.shape == (4, 4)
    assert make.calls == 1
    PriorMemo(tmp_path).of("s")("k", Value, make)
    assert make.calls == 1


def test_a_full_memo_writes_no_more(tmp_path: Path) -> None:
    memo = PriorMemo(tmp_path, limit_bytes=100)  # a value has 72 bytes
    memo.of("s")("first", Value, Maker())
    memo.of("s")("second", Value, Maker())
    assert len(list(tmp_path.rglob("*.drawn"))) == 1


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    assert PriorMemo(tmp_path).of("s")("k", Value, Maker()).seed_1 == 7
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert PriorMemo(tmp_path / "file").of("s")("k", Value, Maker()).seed_1 == 7


def test_afresh_keeps_nothing() -> None:
    make = Maker()
    afresh("k", Value, make), afresh("k", Value, make)
    assert make.calls == 2


def test_another_version_of_the_method_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened.WorkContext(results=tmp_path, datasets={})
    make = Maker()
    for code in ("first", "first", "second"):
        monkeypatch.setattr(opened, "code_hash", lambda code=code: code)
        opened.keep_for(context, "source")("key", Value, make)
    assert make.calls == 2
