"""Shards: what is written is read, in full or not at all; damage is seen, never used."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup.evaluation.shards import DATA, INDEX, ShardStore


def rows(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "half": torch.randn(count, 3, 4, generator=generator).half(),
        "size": torch.randint(1, 9, (count, 2), generator=generator),
        "odd": torch.randn(count, 5, generator=generator),
    }


def store(folder: Path) -> ShardStore:
    opened = ShardStore(folder)
    opened.refresh()
    return opened


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    written: dict[str, dict[str, torch.Tensor]] = {}
    for number, size in enumerate(sizes):
        made = rows(size, seed + number)
        ids = [f"{number}/{row}" for row in range(size)]
        ShardStore(folder).write(ids, made)
        written |= {key: {name: values[row] for name, values in made.items()} for row, key in enumerate(ids)}
    opened = store(folder)
    assert len(opened) == len(written)
    assert opened.missing([*written, "other", "other"]) == ["other"]
    for key, expected in written.items():
        found = opened.get(key)
        assert found is not None and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_readers_see_the_same_pages(tmp_path: Path) -> None:
    store(tmp_path).write(["a"], rows(1))
    first, second = store(tmp_path).get("a"), store(tmp_path).get("a")
    assert first is not None and second is not None
    first["odd"][0] = 7.0  # a private page: neither the file nor another reader changes
    assert second["odd"][0] != 7.0
    again = store(tmp_path).get("a")
    assert again is not None and again["odd"][0] != 7.0


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_byte_is_never_used(tmp_path: Path, seed: int) -> None:
    ids = [f"image {row}" for row in range(4)]
    good = rows(4)
    store(tmp_path).write(ids, good)
    (path,) = tmp_path.glob(f"*{DATA if seed % 4 else INDEX}")
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    opened = store(tmp_path)
    for row, key in enumerate(ids):
        found = opened.get(key)
        assert found is None or all(torch.equal(found[name], good[name][row]) for name in good)


@pytest.mark.parametrize("suffix", [DATA, INDEX])
def test_a_truncated_file_counts_as_absent(tmp_path: Path, suffix: str) -> None:
    store(tmp_path).write(["a", "b"], rows(2))
    (path,) = tmp_path.glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    opened = store(tmp_path)
    assert opened.get("a") is None and opened.missing(["a"]) == ["a"]
    assert opened.check()
    opened.remove(opened.check())
    assert not list(tmp_path.iterdir())


def test_damage_is_found_and_mended(tmp_path: Path) -> None:
    good = rows(2)
    store(tmp_path).write(["a", "b"], good)
    (path,) = tmp_path.glob(f"*{DATA}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    opened = store(tmp_path)
    assert opened.get("b") is None and opened.missing(["a", "b"]) == ["b"]
    assert len(opened.check()) == 1
    opened.remove(opened.check())
    store(tmp_path).write(["a", "b"], good)
    assert store(tmp_path).check() == []


@pytest.mark.slow
def test_a_kill_leaves_whole_shards_only(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from diffup.evaluation.shards import ShardStore\n"
        "s = ShardStore(Path(sys.argv[1]))\n"
        "for i in range(10**6): s.write([f'{i}'], {'x': torch.full((1, 50_000), float(i))})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as writer:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob(f"*{INDEX}"))) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        writer.kill()
    opened = store(tmp_path)
    assert len(opened) >= 5 and not opened.damaged
    for path in tmp_path.glob(f"*{INDEX}"):
        (key,) = json.loads(path.read_bytes())["ids"]
        found = opened.get(key)
        assert found is not None and (found["x"] == float(key)).all()


def test_a_store_learns_of_new_and_removed_shards(tmp_path: Path) -> None:
    opened = store(tmp_path)
    store(tmp_path).write(["a"], rows(1))
    assert opened.missing(["a"]) == ["a"]
    opened.refresh()
    assert opened.missing(["a"]) == []
    for path in tmp_path.iterdir():
        path.unlink()
    opened.refresh()
    assert opened.missing(["a"]) == ["a"] and opened.get("a") is None


def damage(folder: Path, suffix: str = DATA) -> Path:
    """Change the last row of the folder's only shard."""
    (path,) = folder.glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    return path


def repair(folder: Path, how: str) -> None:
    """As another process makes a damaged shard's rows again."""
    other = store(folder)
    if how != "overwritten":
        other.remove([path.name.removesuffix(DATA) for path in folder.glob(f"*{DATA}")])
    other.write(["a", "b"], rows(2))


@pytest.mark.parametrize("how", ["removed and written", "overwritten"])
@pytest.mark.parametrize("look", ["get", "missing", "refresh"])
def test_a_repaired_shard_is_found_again_by_who_saw_the_damage(tmp_path: Path, how: str, look: str) -> None:
    good = rows(2)
    store(tmp_path).write(["a", "b"], good)
    damage(tmp_path)
    opened = store(tmp_path)
    assert opened.get("b") is None and opened.get("b") is None and opened.missing(["a", "b"]) == ["b"]
    opened.refresh()
    assert opened.get("b") is None and opened.damaged, "as long as nobody has repaired it"
    repair(tmp_path, how)
    if look == "refresh":
        opened.refresh()
        assert not opened.damaged
    elif look == "missing":
        assert opened.missing(["a", "b"]) == []
    found = opened.get("b")
    assert found is not None and all(torch.equal(found[name], good[name][1]) for name in good)
    assert not opened.damaged and not opened.marked() and opened.missing(["a", "b"]) == []


@pytest.mark.parametrize("suffix", [DATA, INDEX])
def test_a_shard_that_could_not_be_read_is_found_once_it_is_repaired(tmp_path: Path, suffix: str) -> None:
    store(tmp_path).write(["a", "b"], rows(2))
    (path,) = tmp_path.glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    opened = store(tmp_path)
    opened.refresh()
    assert opened.damaged and opened.missing(["a"]) == ["a"]
    repair(tmp_path, "overwritten")
    opened.refresh()
    assert not opened.damaged and opened.get("a") is not None


def test_a_shard_that_was_replaced_while_it_was_open_is_not_marked(tmp_path: Path) -> None:
    store(tmp_path).write(["a", "b"], rows(2))
    damage(tmp_path)
    opened = store(tmp_path)
    assert opened.get("a") is not None, "the damaged file is open"
    repair(tmp_path, "removed and written")
    assert opened.get("b") is not None
    assert not opened.damaged and not opened.marked()


def test_damage_that_comes_back_is_seen_again(tmp_path: Path) -> None:
    store(tmp_path).write(["a", "b"], rows(2))
    opened = store(tmp_path)
    for _ in range(3):
        damage(tmp_path)
        opened = store(tmp_path) if not opened.damaged else opened
        assert opened.get("b") is None and opened.marked()
        repair(tmp_path, "removed and written")
        assert opened.get("b") is not None and not opened.marked()
        opened = store(tmp_path)


def test_a_header_that_can_not_be_read_ends_in_absence(tmp_path: Path) -> None:
    store(tmp_path).write(["a", "b"], rows(2))
    (path,) = tmp_path.glob(f"*{DATA}")
    content = bytearray(path.read_bytes())
    content[8:12] = b"oops"
    path.write_bytes(content)
    opened = store(tmp_path)
    assert opened.get("a") is None and opened.get("b") is None and opened.damaged
    repair(tmp_path, "overwritten")
    assert opened.get("a") is not None and opened.get("b") is not None
