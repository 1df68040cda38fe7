"""List files of other projects: read as they are, refused with a reason, and nothing in them executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffup.data.lists import (
    COCO,
    PASCAL,
    Pairs,
    fold_classes,
    hsnet_list,
    read_hsnet_pickle,
    read_hsnet_text,
    read_pfenet_classes,
    read_pfenet_images,
)
from diffup.episodes.__main__ import main
from diffup.episodes.episode import Manifest
from diffup.episodes.hsnet import hsnet_episodes
from diffup.episodes.manifest import from_rows

READERS: list[Callable[[Path], object]] = [
    read_hsnet_text,
    read_hsnet_pickle,
    read_pfenet_images,
    read_pfenet_classes,
]
FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(folder: Path, content: str | bytes, name: str = "list") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_folds_are_blocks_of_pascal_and_every_fourth_class_of_coco() -> None:
    assert [fold_classes(PASCAL, f) for f in range(4)] == [tuple(range(5 * f, 5 * f + 5)) for f in range(4)]
    assert fold_classes(COCO, 1)[:3] == (1, 5, 9)
    assert sorted(c for f in range(4) for c in fold_classes(COCO, f)) == list(range(80))
    with pytest.raises(ValueError, match="folds 0-3"):
        fold_classes(COCO, 4)


def test_hsnets_text_keeps_the_files_order(tmp_path: Path) -> None:
    pairs = read_hsnet_text(write(tmp_path, "b__02\n\na__01\nb__01\n"))
    assert pairs.entries == (("b", 1), ("a", 0), ("b", 0))
    assert pairs.classes == {0: ("a", "b"), 1: ("b",)}


def test_hsnets_pickle_keeps_the_order_of_dict_and_lists(tmp_path: Path) -> None:
    content = pickle.dumps({5: ["z", "a"], 1: ["b"], 2: []})
    assert read_hsnet_pickle(write(tmp_path, content)).entries == (("z", 5), ("a", 5), ("b", 1))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({79: ["val2014/a.jpg"]}, protocol=protocol)
    assert read_hsnet_pickle(write(tmp_path, content)).entries == (("val2014/a.jpg", 79),)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["whole", "key", "value"])
def test_a_malicious_pickle_is_refused_and_not_executed(place: str, tmp_path: Path) -> None:
    evil = Malicious(tmp_path / "executed")
    held = {"whole": evil, "key": {0: ["a"], evil: []}, "value": {0: ["a", evil]}}[place]
    with pytest.raises(ValueError, match=r"wants to import .*mkdir.*not executed"):
        read_hsnet_pickle(write(tmp_path, pickle.dumps(held)))
    assert not (tmp_path / "executed").exists()


def test_pfenets_files_name_images_by_stem(tmp_path: Path) -> None:
    text = "{1: [('/x/JPEGImages/2007_1.jpg', '/x/L/2007_1.png')], 3: [('b.jpg', 'b.png'), ('a.jpg', 'a.png')]}"
    assert read_pfenet_classes(write(tmp_path, text)).entries == (("2007_1", 0), ("b", 2), ("a", 2))
    rows = read_pfenet_images(write(tmp_path, "JPEGImages/a.jpg Labels/a.png\n"))
    assert rows == (("JPEGImages/a.jpg", "Labels/a.png"),)


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_hsnet_text, "a__01\nb__21\nc\n", r"(?s)2 lines are not .*line 2: 'b__21'"),
        (read_hsnet_text, "\n", "names no image"),
        (read_hsnet_text, b"\xff", "not a text file"),
        (read_hsnet_pickle, b"", "not a readable pickle"),
        (read_hsnet_pickle, pickle.dumps(["a"]), "holds a list"),
        (read_hsnet_pickle, pickle.dumps({80: ["a"]}), "entry 80"),
        (read_hsnet_pickle, pickle.dumps({True: ["a"]}), "entry True"),
        (read_hsnet_pickle, pickle.dumps({0: ["a", 3]}), "entry 0"),
        (read_hsnet_pickle, pickle.dumps({0: []}), "names no image"),
        (read_pfenet_images, "a.jpg\n", "1 lines are not IMAGE LABEL"),
        (read_pfenet_classes, "__import__('os').getcwd()", "is not the text of"),
        (read_pfenet_classes, "{0: [('a', 'b')]}", "entry 0"),
        (read_pfenet_classes, "{1: [('a',)]}", "entry 1"),
        (read_pfenet_classes, "(" * 5000, "is not the text of"),
    ],
)
def test_what_is_wrong_is_said(
    reader: Callable[[Path], object], content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        reader(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_or_a_folder_is_said(reader: Callable[[Path], object], tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match="can't be read"):
            reader(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.integers(-2, 90) | st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
near_lines = st.lists(
    st.text(alphabet="ab_0129 /\t\r\x00é", max_size=12) | st.from_regex(r"[a-c]{1,3}__\d\d", fullmatch=True), max_size=4
).map(lambda lines: "\n".join(lines).encode())
mutated = st.tuples(
    st.dictionaries(st.integers(0, 79), st.lists(st.text(max_size=5), max_size=3)).map(pickle.dumps),
    st.integers(0, 400), st.integers(0, 255),

).map(lambda made: made[0][: made[1]] + bytes([made[2]]) + made[0][made[1] + 1 :])  # fmt: skip
content = st.one_of(
    st.binary(max_size=60),
    plain.map(pickle.dumps),
    plain.map(lambda value: repr(value).encode("utf-8", "surrogatepass")),
    near_lines,
    mutated,
)


@pytest.mark.parametrize("reader", READERS)
@FUZZ
@given(content=content)
def test_any_bytes_are_read_or_refused_with_the_files_name(
    reader: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    try:
        found = reader(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert found
        if isinstance(found, Pairs):
            assert all(isinstance(image, str) and image and 0 <= c < 80 for image, c in found.entries)


def tree(folder: Path) -> Path:
    for fold in range(4):
        for split in ("trn", "val"):
            target = folder / "splits" / "pascal" / split / f"fold{fold}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{split}{i}__{c + 1:02d}" for i in range(4) for c in fold_classes(PASCAL, fold)]
            target.write_text("\n".join(lines))
    return folder


def test_pascals_training_list_joins_the_other_folds(tmp_path: Path) -> None:
    found = hsnet_list(tree(tmp_path), PASCAL, 1, "trn").classes
    assert sorted(found) == [c for c in range(20) if c not in fold_classes(PASCAL, 1)]


def test_a_folder_is_found_at_any_of_three_depths_and_a_wrong_one_is_explained(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for folder in (root, root / "splits", root / "splits" / "pascal"):
        assert len(hsnet_list(folder, PASCAL, 0).entries) == 20
    with pytest.raises(ValueError, match=r"looked for .*fold0\.pkl"):
        hsnet_list(root, COCO, 0)
    (root / "splits/pascal/val/fold0.txt").write_text("a__06\n")
    with pytest.raises(ValueError, match=r"classes \[5\] are not of fold 0"):
        hsnet_list(root, PASCAL, 0)


def test_hsnets_rule_takes_queries_in_turn_and_never_the_query_as_support(tmp_path: Path) -> None:
    pairs = hsnet_list(tree(tmp_path), PASCAL, 2)
    episodes = hsnet_episodes(pairs, PASCAL, fold=2, shots=5, episodes=30)
    assert [(e.query, e.class_index) for e in episodes] == [pairs.entries[i % 20] for i in range(30)]
    assert all(e.query not in e.supports and len(e.supports) == 5 for e in episodes)
    assert any(len(set(e.supports)) < 5 for e in episodes), "HSNet's supports repeat"
    with pytest.raises(ValueError, match="0 shots or more"):
        hsnet_episodes(pairs, PASCAL, fold=2, shots=-1)
    bare = hsnet_episodes(pairs, PASCAL, fold=2, shots=0, episodes=30)
    assert {e.supports for e in bare} == {()} and [e.query for e in bare] == [e.query for e in episodes]
    with pytest.raises(ValueError, match=r"fewer than two images of classes \[11, 12, 13, 14\]"):
        hsnet_episodes(Pairs((("a", 10), ("b", 10))), PASCAL, fold=2, shots=1)


def test_hsnets_own_lists_and_episodes(shared_lists: Path) -> None:
    """Counts, first episodes and repeated supports that HSNet's own code gives."""
    folder = shared_lists / "hsnet_splits"
    pascal = [hsnet_list(folder, PASCAL, fold) for fold in range(4)]
    assert [len(pairs.entries) for pairs in pascal] == [346, 451, 725, 346]
    trained = [hsnet_list(folder, PASCAL, fold, "trn").entries for fold in range(4)]
    assert [len({image for image, _ in entries}) for entries in trained] == [8450, 8081, 7007, 9002]
    assert [len(hsnet_list(folder, COCO, fold).entries) for fold in range(4)] == [35783, 17912, 14563, 14315]
    first = hsnet_episodes(pascal[0], PASCAL, fold=0, shots=1)
    assert len(first) == 1000
    assert [(e.query, *e.supports, e.class_index) for e in first[:3]] == [
        ("2007_000033", "2010_001174", 0),
        ("2007_000061", "2007_005705", 3),
        ("2007_000129", "2008_003108", 1),
    ]
    repeats = [
        sum(len(set(e.supports)) < 5 for e in hsnet_episodes(pairs, PASCAL, fold=fold, shots=5))
        for fold, pairs in enumerate(pascal)
    ]
    assert repeats == [133, 112, 53, 133]
    coco = hsnet_episodes(hsnet_list(folder, COCO, 0), COCO, fold=0, shots=1, episodes=2)
    assert [(e.query[-16:-4], e.supports[0][-16:-4], e.class_index) for e in coco] == [
        ("000000507081", "000000486122", 72),
        ("000000504005", "000000570465", 44),
    ]


def drawn_as_hsnet_does(pairs: Pairs, dataset: str, fold: int, shots: int) -> list[tuple[str, list[str], int]]:
    """HSNet's 1000 episodes by its rule, written down once more: numpy's global stream and arrays of names."""
    np.random.seed(0)
    pools = {c: np.array(images) for c, images in pairs.classes.items()}
    classes = np.array(fold_classes(dataset, fold))
    found = []
    for index in range(1000):
        if dataset == PASCAL:
            query, class_index = pairs.entries[index % len(pairs.entries)]
        else:
            class_index = int(np.random.choice(classes, 1, replace=False)[0])
            query = str(np.random.choice(pools[class_index], 1, replace=False)[0])
        supports: list[str] = []
        while len(supports) < shots:
            support = str(np.random.choice(pools[class_index], 1, replace=False)[0])
            if support != query:
                supports.append(support)
        found.append((query, supports, class_index))
    return found


@pytest.mark.parametrize("dataset", [PASCAL, COCO])
@pytest.mark.parametrize("shots", [1, 5])
def test_all_of_hsnets_episodes(dataset: str, shots: int, shared_lists: Path) -> None:
    """Every one of the 1000 of every fold, against a second, independent drawing from the same lists."""
    state = np.random.get_state()
    try:
        for fold in range(4):
            pairs = hsnet_list(shared_lists / "hsnet_splits", dataset, fold)
            mine = hsnet_episodes(pairs, dataset, fold=fold, shots=shots)
            assert [(e.query, list(e.supports), e.class_index) for e in mine] == drawn_as_hsnet_does(
                pairs, dataset, fold, shots
            )
    finally:
        np.random.set_state(state)


def test_pfenets_and_bams_lists_have_the_known_sizes(shared_lists: Path) -> None:
    folder = shared_lists / "vrpsam_pascal_bam_style_lists" / "lists" / "pascal"
    rules = {"fss_list": [4208, 3726, 2752, 4510], "fsss_list_ori": [4760, 4588, 4097, 5108]}  # BAM's and PFENet's
    for name, images in rules.items():
        val = [read_pfenet_classes(folder / name / "val" / f"sub_class_file_list_{f}.txt") for f in range(4)]
        assert [len(pairs.entries) for pairs in val] == [365, 467, 734, 357]
        assert all(set(pairs.classes) == set(fold_classes(PASCAL, fold)) for fold, pairs in enumerate(val))
        train = [read_pfenet_images(folder / name / "train" / f"data_list_{f}.txt") for f in range(4)]
        assert [len(rows) for rows in train] == images


def test_the_command_prints_hsnets_episodes_and_writes_them_as_parquet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = str(tree(tmp_path))
    named = ["--dataset", PASCAL, "--protocol", "hsnet", "--lists", lists, "--fold", "1", "--shots", "2"]
    assert main([*named, "--format", "json", "--episodes", "7"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = hsnet_episodes(hsnet_list(tmp_path, PASCAL, 1), PASCAL, fold=1, shots=2, episodes=7)
    assert printed == [[e.query, list(e.supports), e.class_index] for e in expected]
    out = tmp_path / "made" / "manifest.parquet"
    assert main([*named, "--episodes", "7", "--out", str(out)]) == 0
    held = Manifest.read(out)
    assert held.episodes == tuple(expected)
    assert from_rows(printed, dataset=PASCAL, protocol="hsnet", fold=1).hash() == held.hash()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--protocol", "hsnet"], "pass --lists DIR"),
        (["--protocol", "hsnet", "--lists", "nowhere"], "looked for"),
        (["--lists", "somewhere"], "follows from the annotations"),
        (["--format", "parquet"], "needs --out"),
    ],
)
def test_the_command_says_what_is_missing(extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", PASCAL, "--fold", "0", "--shots", "1", *extra]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert not told.out


@pytest.mark.parametrize(
    "held",
    [None, [], [["q", ["s"], 0], ["q", "s", 0]], [["q", ["s"], True]], [["q", ["s"], -1]], [["q", [1], 0]], [[]]],
)
def test_a_foreign_manifest_of_another_form_is_refused(held: object) -> None:
    with pytest.raises(ValueError, match=r"\[query, \[support, …\], class\]"):
        from_rows(held, dataset=PASCAL, protocol="hsnet", fold=0)
