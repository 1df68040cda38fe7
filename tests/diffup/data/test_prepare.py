"""Benchmarks made of the files that people have: whole or not at all, the same after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cluster.execution.run_cell import WorkContext, execute
from diffup.backbones.weights import weights_identity
from diffup.config import InputConfig, ModelConfig, TrainConfig
from diffup.data.__main__ import main
from diffup.data.class_names import COCO_CLASSES, VOC_CLASSES
from diffup.data.dataset import Dataset, open_dataset
from diffup.data.lists import fold_classes
from diffup.data.prepare import prepare, read_sbd
from diffup.episodes.protocols import get_protocol
from diffup.episodes.sampling import make_manifest, training_pools
from diffup.errors import UserError
from diffup.grid.axes import Backbone, evaluation_cells, training_cell
from diffup.grid.datasets import open_data
from diffup.training.recipes import Recipe
from tests.helpers.folders import square, write_image

SIZE = (64, 80)
PAIRED = get_protocol("paired")
VAL, OWN, EXTRA = 3, 1, 2  # images a class: VOC's val and train, and SBD's


def labels(class_index: int, number: int) -> np.ndarray:
    """A rectangle of at least 2048 pixels."""
    made = np.zeros(SIZE, np.uint8)
    made[6:56, 10 : 54 + number] = class_index + 1
    return made


def voc_tree(root: Path) -> Path:
    """VOC 2012 with SBD beside it, 120 images; one of SBD's is of VOC's val, as in the real data."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "SBD" / "dataset" / "cls"
    sets = voc / "ImageSets" / "Segmentation"
    for folder in (voc / "SegmentationClass", sets, sbd):
        folder.mkdir(parents=True)
    names: dict[str, list[str]] = {"val": [], "train": []}
    for c in range(20):
        for i in range(VAL + OWN + EXTRA):
            name = f"{2007 + i}_{c:06d}"
            write_image(voc / "JPEGImages" / f"{name}.jpg", SIZE, seed=c * 10 + i)
            if i < VAL + OWN:
                names["val" if i < VAL else "train"].append(name)
                png = Image.fromarray(labels(c, i))
                png.putpalette([value for entry in range(256) for value in (entry, 7, 7)])
                png.save(voc / "SegmentationClass" / f"{name}.png")
            if i >= VAL + OWN or (c, i) == (0, 0):
                savemat(sbd / f"{name}.mat", {"GTcls": {"Segmentation": labels(c, i), "Boundaries": 0}})
    for split, found in names.items():
        (sets / f"{split}.txt").write_text("\n".join(found) + "\n")
    return root


def coco_tree(root: Path, layout: str = "2014", each: int = 2) -> Path:
    """COCO with 80 classes, `each` images a class and split, and one image without annotations a split."""
    (root / "annotations").mkdir(parents=True)
    for number, split in enumerate(("train", "val")):
        images, annotations = [], []
        for k in range(80 * each + 1):
            image_id = 1000 * (number + 1) + k
            name = f"COCO_{split}2014_{image_id:012d}.jpg"
            folder = {"2014": f"{split}2014", "one folder": "images"}.get(layout, f"{('val', 'train')[k % 2]}2017")
            write_image(root / folder / (name if layout == "2014" else name[-16:]), SIZE, seed=image_id % 7)
            images.append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1], "license": 3})
            if k < 80 * each:
                entry = {"id": image_id, "image_id": image_id, "category_id": k % 80 + 1, "iscrowd": 0, "area": 1}
                annotations.append({**entry, "segmentation": [square(5, 5, 48 + k % 3)]})
        categories = [{"id": c + 1, "name": name} for c, name in enumerate(COCO_CLASSES)]
        document = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))
    return root


def fss_tree(root: Path) -> tuple[Path, Path]:
    """FSS-1000 with 6 classes of 4 images, and its list of 2 test classes."""
    for c in range(6):
        for i in range(1, 5):
            write_image(root / "fewshot_data" / f"thing_{c}" / f"{i}.jpg", SIZE, seed=c + i)
            mask = np.repeat((labels(c, i) > 0)[..., None] * np.uint8(255), 3, axis=2)
            Image.fromarray(mask).save(root / "fewshot_data" / f"thing_{c}" / f"{i}.png")
    lists = root / "lists"
    lists.mkdir()
    (lists / "test.txt").write_text("thing_4\nthing_1\n")
    return root, lists


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_tree(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_tree(tmp_path_factory.mktemp("coco"))


def state(folder: Path) -> dict[str, str]:
    """Every file and link of a folder, by what it holds or where it points."""
    found = {}
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base) / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"→ {os.readlink(path)}"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_pascal_of_voc_and_sbd(voc: Path, tmp_path: Path) -> None:
    before = state(voc)
    dataset, report = prepare("pascal5i", voc, tmp_path / "out", cache_dir=tmp_path, progress=False)
    assert state(voc) == before, "the user's files are never written to"
    assert (dataset.name, dataset.classes, len(dataset.image_ids)) == ("pascal5i", VOC_CLASSES, 120)
    assert dataset.folds == tuple(fold_classes("pascal5i", f) for f in range(4))
    for c in range(20):
        assert len(dataset.eligible(c, PAIRED)) == VAL
        assert len(dataset.eligible(c, PAIRED, "train")) == OWN + EXTRA
    np.testing.assert_array_equal(dataset.mask(f"2012_{3:06d}", 3), labels(3, 5) > 0)
    assert not {i for pool in training_pools(dataset, 1, PAIRED).values() for i in pool} & {
        i for e in make_manifest(dataset, PAIRED, 1, 2, 50, 0).episodes for i in (e.query, *e.supports)
    }
    assert report["images"] == {"all": 120, "train": 60, "test": 60}
    assert report["pairs"][2]["test"]["diningtable"] == VAL
    assert "60 training images; the official data have 10582" in report["warnings"]
    assert str(tmp_path) not in json.dumps(report), "the same report wherever the files lie"


def test_pascal_with_ready_masks_gives_the_same_data(voc: Path, tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    shutil.copytree(voc / "VOCdevkit" / "VOC2012", root)
    (root / "SegmentationClassAug").mkdir()
    for path in (root / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)).save(root / "SegmentationClassAug" / path.name)
    for path in (voc / "SBD" / "dataset" / "cls").iterdir():
        Image.fromarray(read_sbd(path)).save(root / "SegmentationClassAug" / f"{path.stem}.png")
    one, _ = prepare("pascal5i", root, tmp_path / "one", cache_dir=tmp_path, progress=False)
    two, _ = prepare("pascal5i", voc, tmp_path / "two", cache_dir=tmp_path, progress=False)
    assert one.image_ids == two.image_ids
    assert all(one.eligible(c, PAIRED, "train") == two.eligible(c, PAIRED, "train") for c in range(20))


def test_pascal_without_sbd_says_what_is_missing(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "VOC2012"
    shutil.copytree(voc / "VOCdevkit" / "VOC2012", root)
    assert main(["prepare", "pascal5i", "--root", str(root), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "no SBD beside it" in said and "20 training images; the official data have 10582" in said
    assert "home.bharathh.info" in said


@pytest.mark.parametrize("layout", ["2014", "one folder", "2017"])
def test_coco_in_every_layout(layout: str, coco: Path, tmp_path: Path) -> None:
    root = coco if layout == "2014" else coco_tree(tmp_path / "coco", layout)
    dataset, report = prepare("coco20i", root, tmp_path / "out", cache_dir=tmp_path, progress=False)
    assert (dataset.classes, dataset.folds[1][:3]) == (COCO_CLASSES, (1, 5, 9))
    assert report["images"] == {"all": 322, "train": 161, "test": 161}
    assert dataset.eligible(3, PAIRED) == ("COCO_val2014_000000002003", "COCO_val2014_000000002083")
    assert dataset.eligible(3, PAIRED, "train") == ("COCO_train2014_000000001003", "COCO_train2014_000000001083")
    assert dataset.areas["COCO_val2014_000000002160"] == {}, "an image without annotations is there, and for no class"
    assert dataset.image("COCO_val2014_000000002003").shape == (*SIZE, 3)


def test_fss_has_one_fold_of_test_classes(tmp_path: Path) -> None:
    root, lists = fss_tree(tmp_path / "fss")
    dataset, report = prepare("fss1000", root, tmp_path / "out", lists=lists, cache_dir=tmp_path, progress=False)
    assert [dataset.classes[c] for c in dataset.novel_classes(0)] == ["thing_4", "thing_1"]
    assert len(dataset.base_classes(0)) == 4
    assert dataset.eligible(4, PAIRED) == tuple(f"thing_4/{i}" for i in range(1, 5))
    np.testing.assert_array_equal(dataset.mask("thing_4/2", 4), labels(4, 2) > 0)
    assert not dataset.mask("thing_4/2", 3).any(), "an image shows the class of its folder alone"
    assert "6 classes; the official data have 1000" in report["warnings"]
    assert len(make_manifest(dataset, PAIRED, 0, 3, 20, 0).episodes) == 20
    with pytest.raises(ValueError, match="Pass --lists"):
        prepare("fss1000", root, tmp_path / "other", cache_dir=tmp_path, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moments"), [("pascal5i", (7, 20, 16, 2, 3, 4, 5)), ("coco20i", (1, 2))])
def test_killed_at_any_moment_and_run_again_it_ends_in_the_same_bytes(
    name: str, moments: tuple[int, ...], voc: Path, coco: Path, tmp_path: Path
) -> None:
    """The process kills itself before it puts its n-th file in place: masks, lists, index, dataset.json, report."""
    root = {"pascal5i": voc, "coco20i": coco}[name]
    prepare(name, root, tmp_path / "whole", cache_dir=tmp_path / "index", progress=False)
    expected = state(tmp_path / "whole")
    code = (
        "import os, signal, sys\n"
        "from diffup.data.__main__ import main\n"
        "count, replace = 0, os.replace\n"
        "def stop(*paths):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == int(sys.argv[1]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(*paths)\n"
        "os.replace = stop\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    out = tmp_path / "out"
    asked = ["prepare", name, "--root", str(root), "--out", str(out)]
    for number, moment in enumerate(moments):
        env = {**os.environ, "DIFFUP_HOME": str(tmp_path / f"home{number}")}
        command = [sys.executable, "-c", code, str(moment), *asked]
        done = subprocess.run(command, env=env, capture_output=True, timeout=120)
        assert done.returncode == -9, done.stderr.decode()
        assert not (out / "report.json").exists()
    assert main(asked) == 0
    assert state(out) == expected
    assert main(asked) == 0
    assert state(out) == expected, "a second run changes nothing"


BREAKS: dict[str, Callable[[Path], object]] = {
    "truncated image": lambda voc: (voc / "JPEGImages/2007_000003.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut"),
    "missing image": lambda voc: (voc / "JPEGImages/2008_000004.jpg").unlink(),
    "missing mask": lambda voc: (voc / "SegmentationClass/2007_000005.png").unlink(),
    "size mismatch": lambda voc: Image.new("P", (9, 9)).save(voc / "SegmentationClass/2009_000006.png"),
    "unknown label": lambda voc: Image.new("L", SIZE[::-1], 77).save(voc / "SegmentationClass/2007_000007.png"),
    "bad .mat": lambda voc: (voc.parent.parent / "SBD/dataset/cls/2011_000008.mat").write_bytes(b"MATLAB 5.0 cut"),
    "no .mat of ours": lambda voc: savemat(voc.parent.parent / "SBD/dataset/cls/2011_000009.mat", {"other": 1}),
}
NAMED = (
    "2007_000003.jpg", "2008_000004.jpg", "2007_000005.png", "2009_000006.png", "2007_000007.png", "2011_000008.mat",
    "2011_000009.mat",
)  # fmt: skip


def test_every_bad_file_is_named_at_once_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = voc_tree(tmp_path / "voc"), tmp_path / "out"
    for damage in BREAKS.values():
        damage(root / "VOCdevkit" / "VOC2012")
    before = state(root)
    assert main(["verify", "pascal5i", "--root", str(root)]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == len(BREAKS)
    assert all(any(name in line and line.startswith(str(root)) for line in lines) for name in NAMED), said.out
    assert "7 bad" in said.err
    assert main(["prepare", "pascal5i", "--root", str(root), "--out", str(out)]) == 2
    assert "2 problems with the data" in capsys.readouterr().err, "what can't be converted comes first"
    assert not (out / "dataset.json").exists()
    assert state(root) == before
    for name in NAMED[-2:]:
        (root / "SBD/dataset/cls" / name).unlink()
    assert main(["prepare", "pascal5i", "--root", str(root), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "5 problems with the data" in said.err and "dataset.json:" in said.err and ".part" not in said.err
    assert not (out / "dataset.json").exists()


OUTS = {
    "root": ("pascal5i", "."), "voc": ("pascal5i", "VOCdevkit/VOC2012"), "sbd": ("pascal5i", "SBD/dataset"),
    "images": ("pascal5i", "VOCdevkit/VOC2012/JPEGImages/out"), "coco": ("coco20i", "."),
    "val": ("coco20i", "val2014/out"),
}  # fmt: skip


@pytest.mark.parametrize("where", OUTS)
def test_a_folder_that_is_read_is_not_written_to(where: str, voc: Path, coco: Path, tmp_path: Path) -> None:
    name, out = OUTS[where]
    root = tmp_path / "root"
    shutil.copytree({"pascal5i": voc, "coco20i": coco}[name], root)
    (tmp_path / "link").symlink_to(root)
    before = state(root)
    for place in (root / out, tmp_path / "link" / out):
        with pytest.raises(UserError, match="whose files are only read; choose another --out"):
            prepare(name, root, place, progress=False)
    assert state(root) == before


def test_only_its_own_files_are_replaced_or_removed(voc: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    kept = [out / "film.part", out / "x" / ".train.txt.0123abcd.part", out / ".my.txt.0123abcd.part"]
    left = [out / ".train.txt.0123abcd.part", out / "SegmentationClass" / ".2007_000001.png.0123abcd.part"]
    for path in (*kept, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for name in ("SegmentationClass/2007_000001.png", "SegmentationClass/2011_000002.png", "val.txt", "dataset.json"):
        (out / name).write_text("mine")
        before = state(out)
        with pytest.raises(UserError, match=rf"{name} is in the way .* choose another --out\. Nothing was changed"):
            prepare("pascal5i", voc, out, cache_dir=cache, progress=False)
        assert state(out) == before
        (out / name).unlink()
    (out / "SegmentationClass/2007_000001.png").symlink_to("elsewhere")
    prepare("pascal5i", voc, out, cache_dir=cache, progress=False)
    assert all(path.read_text() == "mine" for path in kept) and not any(path.exists() for path in left)
    (out / ".prepared").unlink()  # of the time before there was one
    prepare("pascal5i", voc, out, cache_dir=cache, progress=False)


def test_data_that_went_bad_are_refused_and_the_old_description_goes(voc: Path, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    shutil.copytree(voc, root)
    out = tmp_path / "out"
    prepare("pascal5i", root, out, cache_dir=tmp_path, progress=False)
    sets = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (sets / "val.txt").write_text("2007_000000\n2099_000001\n")
    with pytest.raises(ValueError, match=r"2099_000001\.jpg: image is missing"):
        prepare("pascal5i", root, out, cache_dir=tmp_path, progress=False)


def test_verify_of_a_dataset_json(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare("pascal5i", voc, out, cache_dir=tmp_path, progress=False)
    before = state(out)
    assert main(["verify", str(out)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    (out / "SegmentationClass/2011_000002.png").write_bytes(b"cut")
    assert main(["verify", str(out / "dataset.json")]) == 1
    assert "2011_000002.png: mask can't be decoded" in capsys.readouterr().out
    assert set(state(out)) == set(before), "nothing written"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["prepare", "pascal5i"], "needs --root"),
        (["prepare", "pascal5i", "--root", "nowhere"], "is not a folder. Get pascal5i from http://host.robots"),
        (["prepare", "pascal5i", "--root", "."], "no JPEGImages/"),
        (["prepare", "coco20i", "--root", "."], "no train2014/ and val2014/"),
        (["prepare", "fss1000", "--root", "."], "no folders of classes"),
        (["verify", "nothing"], "'nothing'"),
    ],
)
def test_what_is_not_there(
    asked: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(asked if "--out" in asked or asked[0] == "verify" else [*asked, "--out", "out"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pascal5i", "coco20i"])
def test_a_prepared_benchmark_trains_and_is_evaluated(name: str, voc: Path, coco: Path, tmp_path: Path) -> None:
    root = {"pascal5i": voc, "coco20i": coco}[name]
    prepare(name, root, tmp_path / "out", progress=False)
    data = open_data(tmp_path / "out" / "dataset.json", shots=1)
    backbone = Backbone(name="tiny_resnet", weights=weights_identity("tiny_resnet"))
    config = InputConfig(input_size=64, feature_grid=8)
    trained = training_cell(
        data, 2, backbone,
        Recipe(
            input=config, model=ModelConfig(decoder_grid=16, width=8),
            train=TrainConfig(steps=2, batch_size=2, max_shots=2),
        ),
    )  # fmt: skip
    (cell,) = evaluation_cells(data, 2, [backbone], [(1, "mask")], config=config, episodes=10, trained=trained)
    files = {key: str(path) for key, path in data.files().items()}
    context = WorkContext(results=tmp_path / "results", datasets=files)
    execute(trained, context)
    table = execute(cell, context).episodes
    assert table is not None and set(table["class_id"]) <= set(fold_classes(name, 2))
    dataset = open_dataset(tmp_path / "out")
    assert all(i in dataset.eligible(c, PAIRED) for i, c in zip(table["query"], table["class_id"]))


# Masks of VOC and of SegmentationClassAug


def ready(voc: Path, root: Path, *, val: bool = True, own: bool = True, border: bool = True) -> Path:
    """VOC's masks beside a SegmentationClassAug whose masks of the same images are smaller and have no void border.

    Args:
        voc: the tree of `voc_tree`.
        root: to copy it to.
        val: SegmentationClassAug has masks of validation images too.
        own: SegmentationClass is there.
        border: VOC's masks have a void border.
    """
    shutil.copytree(voc / "VOCdevkit" / "VOC2012", root)
    (root / "SegmentationClassAug").mkdir()
    tested = set((root / "ImageSets" / "Segmentation" / "val.txt").read_text().split())
    for path in sorted((root / "SegmentationClass").iterdir()):
        with Image.open(path) as image:
            drawn = np.asarray(image)
        if val or path.stem not in tested:
            aug = np.zeros_like(drawn)
            aug[6:40, 10:54] = drawn.max()
            Image.fromarray(aug).save(root / "SegmentationClassAug" / path.name)
        if border:
            drawn = drawn.copy()
            drawn[5, 10:54] = 255
            Image.fromarray(drawn).save(path)
    for path in (voc / "SBD" / "dataset" / "cls").glob("*.mat"):
        target = root / "SegmentationClassAug" / f"{path.stem}.png"
        if not target.exists() and (val or path.stem not in tested):
            Image.fromarray(read_sbd(path)).save(target)
    if not own:
        shutil.rmtree(root / "SegmentationClass")
    return root


def void_and_area(dataset: Dataset, image_id: str) -> tuple[int, int]:
    """Void pixels of an image's mask, and the area of its class."""
    ((c, area),) = dataset.areas[image_id].items()
    return int((dataset.mask(image_id, c) == 255).sum()), area


@pytest.mark.parametrize("val", [True, False])
def test_voc_own_masks_count_whatever_is_beside_them(val: bool, voc: Path, tmp_path: Path) -> None:
    root = ready(voc, tmp_path / "VOC2012", val=val)
    made, report = prepare("pascal5i", root, tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    names = {split: (tmp_path / "out" / f"{split}.txt").read_text().split() for split in ("train", "val")}
    own = (root / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    assert len(names["val"]) == 60 and len(names["train"]) == 60
    for image_id in (*names["val"], *own):
        void, area = void_and_area(made, image_id)
        assert void == 44 and area >= 2048 + 100, image_id
    assert not any("SegmentationClassAug" in warning for warning in report["warnings"])


def test_aug_alone_is_used_and_said_to_have_no_void_border(voc: Path, tmp_path: Path) -> None:
    root = ready(voc, tmp_path / "VOC2012", own=False)
    made, report = prepare("pascal5i", root, tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    tested = (tmp_path / "out" / "val.txt").read_text().split()
    assert {void_and_area(made, image_id) for image_id in tested} == {(0, 34 * 44)}
    assert any("60 test masks" in warning and "no void border" in warning for warning in report["warnings"])


def test_masks_of_another_source_replace_those_of_an_earlier_run(voc: Path, tmp_path: Path) -> None:
    """SBD's converted masks, then SegmentationClassAug, then SBD's again: never a mixture."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    first, _ = prepare("pascal5i", voc, out, cache_dir=cache, progress=False)
    root = ready(voc, tmp_path / "VOC2012", border=False)
    for path in (root / "SegmentationClassAug").iterdir():
        with Image.open(path) as image:
            drawn = np.asarray(image).copy()
        drawn[0, 0] = drawn.max()
        Image.fromarray(drawn).save(path)
    second, _ = prepare("pascal5i", root, out, cache_dir=cache, progress=False)
    extra = sorted(set(second.image_ids) - {p.stem for p in (root / "SegmentationClass").iterdir()})
    assert len(extra) == 40 and all(second.mask(i, next(iter(second.areas[i])))[0, 0] == 1 for i in extra)
    third, _ = prepare("pascal5i", voc, out, cache_dir=cache, progress=False)
    assert third.fingerprint == first.fingerprint != second.fingerprint
