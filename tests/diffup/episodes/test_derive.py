"""PFENet's and BAM's lists follow from annotations by their rules, and are read again by the readers of such lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup.data.dataset import Dataset, open_dataset
from diffup.data.lists import fold_classes, read_pfenet_classes, read_pfenet_images
from diffup.episodes.derive import derived, main, write_lists
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import training_pools
from tests.helpers.folders import write_image

SIDE = 100


@pytest.fixture
def pascal(tmp_path: Path) -> Dataset:
    """Three images a class of Pascal's 20: with 2048 pixels of it, with 2047, and with a pixel of the class 5 on."""
    (tmp_path / "SegmentationClass").mkdir()
    for c in range(20):
        for kind, pixels in (("enough", 2048), ("few", 2047), ("mixed", 3000)):
            name = f"{kind}_{c:02d}"
            write_image(tmp_path / "JPEGImages" / f"{name}.jpg", (SIDE, SIDE), seed=c)
            label = np.zeros(SIDE * SIDE, np.uint8)
            label[:pixels] = c + 1
            if kind == "mixed":
                label[-1] = (c + 5) % 20 + 1
            Image.fromarray(label.reshape(SIDE, SIDE)).save(tmp_path / "SegmentationClass" / f"{name}.png")
    names = [f"class {c}" for c in range(20)]
    folds = [[names[c] for c in fold_classes("pascal5i", f)] for f in range(4)]
    document = {"name": "pascal5i", "layout": "voc", "classes": names, "folds": folds}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    return open_dataset(tmp_path / "dataset.json", cache_dir=tmp_path / "cache")


def names(pairs: list[tuple[str, str]]) -> list[str]:
    return [Path(image).stem for image, _ in pairs]


def test_a_class_counts_from_2048_pixels(pascal: Dataset) -> None:
    for protocol in ("pfenet", "bam"):
        rows = derived(pascal, get_protocol(protocol), 1, "val")
        assert {c: names(found) for c, found in rows.items()} == {
            c: [f"enough_{c:02d}", f"mixed_{c:02d}"] for c in range(5, 10)
        }


def test_bam_drops_training_images_with_a_single_novel_pixel(pascal: Dataset) -> None:
    """Fold 1 is novel: its pixels are in the mixed images of fold 0."""
    kept = derived(pascal, get_protocol("pfenet"), 1, "train")
    dropped = derived(pascal, get_protocol("bam"), 1, "train")
    assert set(kept) == set(dropped) == set(range(5)) | set(range(10, 20))
    for c in kept:
        without = [f"enough_{c:02d}"] + ([] if c < 5 else [f"mixed_{c:02d}"])
        assert names(dropped[c]) == without
        assert names(kept[c]) == [f"enough_{c:02d}", f"mixed_{c:02d}"]


def test_the_files_are_what_the_readers_of_such_lists_read(pascal: Dataset, tmp_path: Path) -> None:
    bam = get_protocol("bam")
    out = tmp_path / "lists"
    assert len(write_lists(pascal, bam, out)) == 16
    for fold in range(4):
        images = read_pfenet_images(out / "train" / f"data_list_{fold}.txt")
        pools = training_pools(pascal, fold, bam)
        assert sorted(Path(image).stem for image, _ in images) == sorted({i for pool in pools.values() for i in pool})
        first = "enough_05" if fold == 0 else "enough_00"
        assert images[0] == (f"JPEGImages/{first}.jpg", f"SegmentationClass/{first}.png")
        pairs = read_pfenet_classes(out / "val" / f"sub_class_file_list_{fold}.txt")
        assert pairs.classes == {c: pascal.eligible(c, bam) for c in pascal.novel_classes(fold)}


def test_the_command_prints_what_it_wrote(pascal: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--dataset", str(pascal.root), "--protocol", "pfenet", "--out", str(tmp_path / "made")]
    assert main(asked) == 0
    assert "fold 0: 30 training images, 10 pairs to test" in capsys.readouterr().out
    assert main(["--dataset", "nowhere", "--out", str(tmp_path)]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_name_with_a_blank_is_refused(tmp_path: Path) -> None:
    from tests.helpers.folders import write_voc

    path = write_voc(tmp_path)
    (tmp_path / "JPEGImages" / "dog_0.jpg").rename(tmp_path / "JPEGImages" / "dog 0.jpg")
    (tmp_path / "SegmentationClass" / "dog_0.png").rename(tmp_path / "SegmentationClass" / "dog 0.png")
    with pytest.raises(ValueError, match="has a blank"):
        write_lists(open_dataset(path), get_protocol("bam"), tmp_path / "out")
