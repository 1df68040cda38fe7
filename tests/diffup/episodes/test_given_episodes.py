"""Episodes from outside: what makes them unusable is found before anything runs, with counts and the first three."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup.data.dataset import Dataset, open_dataset
from diffup.episodes.manifest import episode_problems, fitted, from_rows, read_manifest, rows, small_images
from diffup.episodes.protocols import PROTOCOLS, get_protocol
from diffup.episodes.sampling import make_manifest
from diffup.errors import UserError
from diffup.grid.datasets import open_data
from tests.helpers.folders import write_voc

PAIRED = get_protocol("paired")
NAMES: dict[str, Any] = {"dataset": "toy", "protocol": "paired", "fold": 0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four images of each of four classes; each also shows the next class, too small for the protocols."""
    return open_dataset(write_voc(tmp_path_factory.mktemp("toy"), per_class=4))


def json_of(toy: Dataset) -> Path:
    return toy.root / "dataset.json"


def sound(toy: Dataset, shots: int = 2) -> list[Any]:
    return rows(make_manifest(toy, PAIRED, 0, shots, 6, 0))


def write(folder: Path, held: object, name: str = "fold0_shots2.json") -> Path:
    (folder / name).write_text(json.dumps(held))
    return folder / name


# What is done to a row [query, supports, class] of fold 0, and what the message says; no cat shows a class of fold 0.
DAMAGES: dict[str, tuple[Any, str]] = {
    "the query as support": (lambda q, s, c: [q, [s[0], q], c], "their query among the supports"),
    "a support twice": (lambda q, s, c: [q, [s[0], s[0]], c], "a support twice, which protocol paired does not allow"),
    "a support without": (lambda q, s, c: [q, [s[0], "cat_0"], c], "a support that does not show the class"),
    "a query without": (lambda q, s, c: ["cat_0", s, c], "a query that does not show the class"),
    "no such class": (lambda q, s, c: [q, s, 4], r"a class that toy does not have \(it has 0-3\)"),
}


@given(kind=st.sampled_from(sorted(DAMAGES)), bad=st.sets(st.integers(0, 5), min_size=1))
@settings(deadline=None, max_examples=40)
def test_a_damaged_episode_is_refused_with_the_count_and_the_first_three(
    toy: Dataset, kind: str, bad: set[int]
) -> None:
    damage, message = DAMAGES[kind]
    held = [damage(*row) if i in bad else row for i, row in enumerate(sound(toy))]
    manifest = from_rows(held, **NAMES)
    with pytest.raises(UserError, match=rf"published: {len(bad)} of 6 episodes have {message}") as caught:
        fitted(manifest, toy, PAIRED, "published")
    named = [f"episode {i}: " in str(caught.value) for i in sorted(bad)]
    assert named == [True] * min(3, len(bad)) + [False] * (len(bad) - 3)
    assert (f"and {len(bad) - 3} more" in str(caught.value)) == (len(bad) > 3)


def test_sound_episodes_pass_and_may_repeat_as_a_whole(toy: Dataset) -> None:
    twice = from_rows([*sound(toy), *sound(toy)], **NAMES)
    assert fitted(twice, toy, PAIRED, "published").episodes == twice.episodes
    assert not small_images(twice, toy, PAIRED)
    zero = from_rows(sound(toy, shots=0), **NAMES)
    assert not episode_problems(zero, toy, PAIRED)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_only_hsnet_allows_a_support_twice(toy: Dataset, protocol: str, tmp_path: Path) -> None:
    held = sound(toy)
    held[2][1] = [held[2][1][0]] * 2
    write(tmp_path, held)
    if protocol == "hsnet":
        assert open_data(json_of(toy), shots=1, protocol=protocol, manifests=tmp_path).manifests
        return
    with pytest.raises(UserError, match=f"1 of 6 episodes have a support twice, which protocol {protocol}"):
        open_data(json_of(toy), shots=1, protocol=protocol, manifests=tmp_path)


def test_the_same_image_under_two_spellings_is_one_image(toy: Dataset) -> None:
    held = [["dog_0", ["dog_1.jpg", "images/dog_1"], 0], ["dog_2", ["dog_2.jpg", "dog_3"], 0]]
    problems = " ".join(episode_problems(from_rows(held, **NAMES).named_as(toy.image_ids, ""), toy, PAIRED))
    assert "a support twice" in problems and "their query among the supports" in problems


def test_images_of_the_training_split_are_no_test_episodes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = write_voc(tmp_path / "data", per_class=4)
    names = [f"{name}_{i}" for name in ("dog", "bird", "cat", "cow") for i in range(4)]
    (path.parent / "train.txt").write_text("\n".join(n for n in names if n.endswith("0")) + "\n")
    (path.parent / "test.txt").write_text("\n".join(n for n in names if not n.endswith("0")) + "\n")
    document = json.loads(path.read_text()) | {"train_list": "train.txt", "test_list": "test.txt"}
    path.write_text(json.dumps(document))
    write(tmp_path, [["dog_1", ["dog_2"], 0], ["dog_1", ["dog_0"], 0]], "fold0_shots1.json")
    with pytest.raises(UserError, match=r"1 of 2 episodes have a support of the training split \(episode 1: dog_0"):
        open_data(path, shots=1, manifests=tmp_path)


def test_small_images_are_used_with_a_warning(toy: Dataset, tmp_path: Path) -> None:
    write(tmp_path, [["dog_0", ["cow_0"], 0], ["dog_1", ["dog_2"], 0]], "fold0_shots1.json")
    with pytest.warns(UserWarning, match=r"paired would not draw 1 of 4 images \(cow_0, class 'dog'\)"):
        assert open_data(json_of(toy), shots=1, manifests=tmp_path).manifests


def test_problems_of_all_files_are_collected_and_ten_are_shown(toy: Dataset, tmp_path: Path) -> None:
    for shots in range(1, 7):  # each has two: a support that hides the class, and too few supports
        write(tmp_path, [["dog_0", ["cat_1"], 0]] * 2, f"fold0_shots{shots + 1}.json")
    write(tmp_path, {"episodes": []}, "fold1_shots1.json")
    with pytest.raises(UserError, match="13 problems with the episodes") as caught:
        open_data(json_of(toy), shots=1, manifests=tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 10 + 1 + 1 and lines[11] == "  … and 3 more" and lines[12].startswith("Correct")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_every_unicode_encoding(toy: Dataset, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "fold0_shots2.json"
    path.write_bytes(json.dumps(sound(toy)).encode(encoding))
    assert path.read_bytes().startswith(codecs.BOM_UTF8) == (encoding == "utf-8-sig")
    manifest = read_manifest(path, **NAMES)
    assert rows(manifest) == sound(toy)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (["dog_0", ["dog_1"], 0.0], r"episode 1: its class is 0\.0 \(float\), not a whole number"),
        (["dog_0", ["dog_1"], True], r"its class is True \(bool\)"),
        (["dog_0", ["dog_1"], "0"], r"its class is '0' \(str\)"),
        (["dog_0", ["dog_1"], -1], r"its class is -1 \(int\)"),
        (["dog_0", ["dog_1"], float("nan")], r"its class is nan \(float\)"),
        ([2007000032, ["dog_1"], 0], r"its query is 2007000032 \(int\), not an image id in quotes"),
        (["dog_0", "dog_1", 0], r"its supports are 'dog_1' \(str\), not a list"),
        (["dog_0", ["dog_1", None], 0], r"its support is None \(NoneType\)"),
        (["dog_0", ["dog_1"]], r"it is \['dog_0', \['dog_1'\]\] \(list\)"),
    ],
)
def test_what_a_row_has_wrong_is_named(row: object, told: str) -> None:
    good = ["dog_0", ["dog_1"], 0]
    with pytest.raises(UserError, match=rf"1 of 2 episodes are not .*{told}"):
        from_rows([good, row], **NAMES)
    with pytest.raises(UserError, match=r"5 of 6 episodes are not .*episode 3: [^;]*; and 2 more"):
        from_rows([good, *[row] * 5], **NAMES)
