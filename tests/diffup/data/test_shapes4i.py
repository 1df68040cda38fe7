"""shapes4i: deterministic, readable by the same reader as users' data, and honest about what backbones have seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup.data.dataset import open_dataset
from diffup.data.render import COMBINATIONS, render
from diffup.data.shapes4i import CLASS_COMBINATIONS, CLASSES, FOLDS, draw_things, ensure, generate
from diffup.episodes.protocols import get_protocol
from tools.train_embedded import HELD_OUT, TRAINED


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "shapes4i", images=4, progress=False)


def digest(folder: Path) -> str:
    parts = [p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    assert digest(generate(tmp_path / "again", images=4, progress=False).parent) == digest(small.parent)
    assert digest(generate(tmp_path / "other", images=4, seed=1, progress=False).parent) != digest(small.parent)


def test_the_reader_of_users_data_reads_it(small: Path, tmp_path: Path) -> None:
    dataset = open_dataset(small, cache_dir=tmp_path)
    assert dataset.classes == CLASSES
    assert len(dataset.image_ids) == 64
    protocol = get_protocol("paired")
    for index in range(16):
        assert dataset.eligible(index, protocol), f"no image shows {CLASSES[index]}"
    for image_id in dataset.image_ids[:8]:
        assert dataset.image(image_id).shape[:2] == dataset.mask(image_id, int(image_id[:2])).shape


def test_classes_are_sixteen_distinct_combinations_in_four_folds() -> None:
    assert len(set(CLASSES)) == 16
    assert [len(fold) for fold in FOLDS] == [4, 4, 4, 4]
    for fold in range(4):  # within a fold no two classes share a name's word but perhaps one
        things = CLASS_COMBINATIONS[4 * fold : 4 * fold + 4]
        assert len({thing.form for thing in things}) == 4
        assert len({thing.colour for thing in things}) == 4


def test_embedded_backbones_never_saw_a_class() -> None:
    classes = set(CLASS_COMBINATIONS)
    assert not classes & set(TRAINED)
    assert not classes & set(HELD_OUT)
    assert not set(TRAINED) & set(HELD_OUT)
    assert len(TRAINED) + len(HELD_OUT) + 16 == len(COMBINATIONS)


def test_most_images_hold_look_alikes() -> None:
    """Neither colour nor form alone finds the class."""
    same_colour = same_form = 0
    for seed in range(100):
        target = CLASS_COMBINATIONS[seed % 16]
        others = [t for t in draw_things(seed % 16, np.random.default_rng(seed)) if t != target]
        same_colour += any(t.colour == target.colour for t in others)
        same_form += any(t.form == target.form for t in others)
    assert same_colour > 75
    assert same_form > 60


def test_small_and_large_objects_and_occlusion_occur(small: Path) -> None:
    shares = []
    for path in (small.parent / "SegmentationClass").glob("*.png"):
        label = np.asarray(Image.open(path))
        shares += [(label == value).mean() for value in np.unique(label) if 0 < value < 255]
    assert min(shares) < 0.01 < 0.08 < max(shares)


def test_every_form_fills_a_fair_part_of_its_square() -> None:
    for thing in COMBINATIONS[::24] + COMBINATIONS[:8]:
        scene = render([thing], np.random.default_rng(0), radii=(40.0, 40.1))
        assert 0.04 < (scene.owner == 0).mean() < 0.25, thing.name


def test_generation_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure(tmp_path, images=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_not_overwritten(small: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        generate(small.parent, images=4, progress=False)
