"""Benchmarks from the files that people have: check, convert what needs it, describe, report.

`prepare` makes a folder with a ``dataset.json`` and the files that it names: links to the images and annotations, masks
converted from SBD's ``.mat`` files, lists of training and test images. The user's files are never written to. The
``dataset.json`` comes last, after every image and mask has been read once, so that a folder that has one is whole;
each file is written in full or not at all, so that a second run goes on where the first was stopped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffup.data.class_names import COCO_CLASSES, VOC_CLASSES
from diffup.data.dataset import Dataset, open_dataset, scan_dataset
from diffup.data.labels import MASK_SUFFIX
from diffup.data.layouts.fss import PHOTOS
from diffup.data.layouts.scan import Folder, Scan, fail
from diffup.data.lists import COCO, FOLDS, PASCAL, fold_classes
from diffup.data.prepared import make_folder
from diffup.data.report import describe, differences
from diffup.data.text import read_lines
from diffup.errors import UserError
from diffup.files import PART, replacing

FSS = "fss1000"
# Official addresses of the data sets, and what they hold.
SOURCES = {
    PASCAL: "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and, for its training masks, SBD: "
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    COCO: "https://cocodataset.org/#download (2014 train/val images, 2014 train/val annotations)",
    FSS: "https://github.com/HKUSTCV/FSS-1000",
}
VOC_COUNTS = {"training images": 10582, "test images": 1449}  # trainaug, val
SBD_FOLDERS = (
    "SBD", "sbd", "benchmark_RELEASE", "benchmark_RELEASE/dataset", "SBD/dataset", "SBD/benchmark_RELEASE/dataset",
)  # fmt: skip
SPLITS = {"train": "train", "test": "val"}  # ours and COCO's
COCO_COUNTS = {"training images": 82783, "test images": 40504}
FSS_COUNTS = {"classes": 1000, "test classes": 240, "images": 10000}
REMEDY = "Repair the files named above or get them again, then run again; dataset.json was not written"


@dataclass
class Plan:
    """A data set to be made.

    Attributes:
        document: the ``dataset.json``.
        expected: official counts, by what is counted.
        warnings: what is not as in the official data.
        problems: files that could not be converted.
    """

    document: dict[str, Any]
    expected: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def prepare(
    name: str, root: Path, out: Path, *, lists: Path | None = None, cache_dir: Path | None = None, progress: bool = True
) -> tuple[Dataset, dict[str, Any]]:
    """Make a benchmark from the user's files.

    Args:
        name: ``pascal5i``, ``coco20i`` or ``fss1000``.
        root: where the user's files are.
        out: folder to make, outside of those that are read; what `prepare` has not made in it is kept.
        lists: folder with FSS-1000's ``test.txt`` (HSNet's ``splits/fss``).
        cache_dir: folder of indexes, see `diffup.data.dataset.open_dataset`.
        progress: draw bars.

    Returns:
        The data set and the report, which is also in ``report.json``.

    Raises:
        UserError: files that are missing or bad, all of them, or a file of the user's in the way; ``dataset.json`` is
            then not written.
    """
    plan, draft = _draft(name, root, out, lists, progress)
    final = out / "dataset.json"
    try:
        fail(root, plan.problems, REMEDY)
        if final.is_file() and final.read_bytes() != draft.read_bytes():
            final.unlink()  # of other files than now
        dataset = open_dataset(draft, cache_dir)  # reads every image and mask; its index is that of the final file
        os.replace(draft, final)
    except UserError as error:
        raise UserError(str(error).replace(str(draft), str(final))) from None
    finally:
        draft.unlink(missing_ok=True)
    report = describe(dataset, plan.expected, plan.warnings)
    _write(out / "report.json", json.dumps(report, indent=1, sort_keys=True))
    return dataset, report


def problems(name: str, root: Path, out: Path, *, lists: Path | None = None) -> Scan:
    """Every bad file that keeps `prepare` from its end, and what is remarkable about sound ones.

    Args:
        name, root, lists: as for `prepare`.
        out: an empty folder to work in.

    Raises:
        UserError: so much is missing that there is nothing to look at.
    """
    plan, draft = _draft(name, root, out, lists, True)
    seen, ours = scan_dataset(draft), f"{out.resolve()}{os.sep}"
    for number, problem in enumerate(seen.problems):
        path, colon, what = problem.partition(": ")
        if path.startswith(ours):  # the user's own file in place of our link to it
            seen.problems[number] = f"{os.path.realpath(path)}{colon}{what}"
    seen.problems = [*plan.problems, *seen.problems]
    return seen


def _draft(name: str, root: Path, out: Path, lists: Path | None, progress: bool) -> tuple[Plan, Path]:
    """Everything but ``dataset.json``, which is written beside its place as a draft."""
    if name not in SOURCES:
        raise UserError(f"no benchmark {name!r}; there is {', '.join(SOURCES)}")
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder. Get {name} from {SOURCES[name]} and pass the folder it is in")
    root = root.absolute()
    if name == PASCAL:
        plan = _pascal(root, out, progress)
    else:
        plan = _coco(root, out) if name == COCO else _fss(root, out, lists)
    draft = out / f".dataset.json{PART}"
    draft.write_text(json.dumps(plan.document, indent=1) + "\n", encoding="utf-8")
    return plan, draft


def _first(folders: Iterable[Path], wanted: str) -> Path | None:
    return next((folder for folder in folders if (folder / wanted).exists()), None)


def _missing(name: str, what: list[str]) -> UserError:
    lines = "".join(f"\n  {line}" for line in what)
    return UserError(f"{name} is not complete:{lines}\nGet it from {SOURCES[name]}")


def _check_list(path: Path, names: list[str], problems: list[str]) -> list[str]:
    """The names of a list, of which none may be there twice."""
    twice = [f"{name}: it is named {n} times" for name, n in Counter(names).items() if n > 1]
    fail(path, twice + problems, "Correct the list, or get it again")
    return names


def _ids(path: Path) -> list[str]:
    """Image ids of a list file: the first word of each line."""
    ids = [line.split()[0] for line in read_lines(path)]
    paths = [f"{i}: it is a path, and not the name of an image such as 2007_000033" for i in ids if "/" in i]
    return _check_list(path, ids, paths)


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by their names without suffix, which may be in any case; hidden ones are left out."""
    return {path.stem: path for path in Folder(folder).files(suffixes)}


def _write(path: Path, *lines: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _document(name: str, classes: Sequence[str], **fields: str) -> dict[str, Any]:
    """The ``dataset.json`` of a benchmark with four folds."""
    folds = [[classes[c] for c in fold_classes(name, fold)] for fold in range(FOLDS)]
    return {"name": name, "classes": list(classes), "folds": folds, **fields}


def _pascal(root: Path, out: Path, progress: bool) -> Plan:
    voc = _first((root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"), "JPEGImages")
    if voc is None:
        raise _missing(PASCAL, [f"no JPEGImages/ in {root}, VOC2012/ or VOCdevkit/VOC2012/ below it"])
    sets, official = voc / "ImageSets" / "Segmentation", voc / "SegmentationClass"
    augmented = _first((voc, root), "SegmentationClassAug")
    needed = [sets / "train.txt", sets / "val.txt", *([] if augmented else [official])]
    if lacking := [f"{path} does not exist" for path in needed if not path.exists()]:
        raise _missing(PASCAL, lacking)
    own, val = _ids(sets / "train.txt"), _ids(sets / "val.txt")
    sbd = _first((base / name for base in (root, root.parent, voc) for name in SBD_FOLDERS), "cls")
    warnings: list[str] = []
    masks = out / "SegmentationClass"
    read = [voc / "JPEGImages", voc / "ImageSets", official]
    mats: dict[str, Path] = {}
    drawn = _by_stem(official, (MASK_SUFFIX,))
    pngs = {i: drawn.get(i, official / f"{i}.png") for i in {*own, *val}}
    extra: set[str] = set()
    if augmented is not None:
        read.append(augmented / "SegmentationClassAug")
        more = _by_stem(read[-1], (MASK_SUFFIX,))
        extra = set(more) - set(pngs)
        lent = sorted(i for i, path in pngs.items() if not path.is_file() and i in more)
        if tested := [i for i in lent if i in set(val)]:
            warnings.append(
                f"{len(tested)} test masks are not in {official} and come from SegmentationClassAug, which has no void "
                f"border: results are not comparable with published ones. First: {', '.join(tested[:3])}"
            )
        pngs |= {i: more[i] for i in {*extra, *lent}}
    elif sbd is not None:
        read.append(sbd / "cls")
        mats = _by_stem(read[-1], (".mat",))
        extra = set(mats)
    else:
        warnings.append(f"no SBD beside it, so that only VOC's own {len(own)} training masks are there")
    mats = {i: path for i, path in sorted(mats.items()) if i not in pngs}
    links = {masks / f"{i}.png": path for i, path in sorted(pngs.items())}  # a missing one too: reported by its name
    links[out / "JPEGImages"] = voc / "JPEGImages"
    files = [out / "train.txt", out / "val.txt", *(masks / f"{i}.png" for i in mats)]
    make_folder(out, [root, voc, *([sbd] if sbd else [])], read, links, files)
    bad = _convert(mats, masks, progress) if mats else {}
    _write(out / "train.txt", *sorted(({*own} | extra) - {*val} - {*bad}))
    _write(out / "val.txt", *val)
    document = _document(PASCAL, VOC_CLASSES, layout="voc", train_list="train.txt", test_list="val.txt")
    return Plan(document, VOC_COUNTS, warnings, list(bad.values()))


def read_sbd(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The labels of an SBD file, uint8 [H, W]: 0 background, v ≥ 1 is class v-1.

    Raises:
        UserError: not such a file; the message does not name it.
    """
    from scipy.io import loadmat

    try:
        held = loadmat(path, struct_as_record=True, squeeze_me=True)["GTcls"]["Segmentation"]
        labels = np.asarray(held.item() if held.dtype == object else held)
    except Exception as error:  # scipy raises nearly anything for a damaged file
        raise UserError(f"no class segmentation of SBD ({type(error).__name__}: {error})") from None
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) > len(VOC_CLASSES):
        raise UserError(f"labels are {labels.dtype} {labels.shape} up to {labels.max(initial=0)}, not uint8 up to 20")
    return labels


def _convert(mats: dict[str, Path], masks: Path, progress: bool) -> dict[str, str]:
    """SBD's files as PNG, those that are not there yet; returns what is wrong with the bad ones by image."""
    masks.mkdir(exist_ok=True)
    made = {path.stem for path in masks.iterdir() if path.is_file() and not path.is_symlink()}
    todo = [i for i in mats if i not in made]  # a link is to another source's mask

    def one(image_id: str) -> str:
        try:
            labels = read_sbd(mats[image_id])
        except UserError as error:
            return f"{mats[image_id]}: {error}"
        with replacing(masks / f"{image_id}.png") as temporary:
            Image.fromarray(labels).save(temporary, format="png")
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = partial(tqdm, desc="converting masks", total=len(todo), unit="mask", disable=None if progress else True)
        said = list(bar(pool.map(one, todo), leave=False))
    return {image_id: problem for image_id, problem in zip(todo, said, strict=True) if problem}


def _coco(root: Path, out: Path) -> Plan:
    annotations = _first((root / "annotations", root), "instances_val2014.json")
    folders = {split: root / f"{split}2014" for split in SPLITS.values()}
    official = all(folder.is_dir() for folder in folders.values())
    newer = [root / name for name in ("images", "train2017", "val2017") if (root / name).is_dir()]
    lacking = []
    if annotations is None or not (annotations / "instances_train2014.json").exists():
        lacking.append(f"no instances_train2014.json and instances_val2014.json in {root} or annotations/ below it")
    if not newer and not official:
        lacking.append(f"no train2014/ and val2014/ in {root}, and no images/ or train2017/ and val2017/ either")
    if lacking or annotations is None:
        raise _missing(COCO, lacking)
    links = {out / "annotations": annotations}
    images = {f"{part}_images": f"{split}2014" for part, split in SPLITS.items()} if official else {}
    if official:
        for split, folder in folders.items():
            links[out / f"{split}2014"] = folder
    elif len(newer) == 1:
        links[out / "images"] = newer[0]
    else:  # COCO 2017 as it comes: one folder of links, since its split is not that of 2014
        links |= {out / "images" / path.name: path for folder in newer for path in sorted(folder.iterdir())}
    read = [annotations] if annotations != root else []
    make_folder(out, [root], [*read, *(folders.values() if official else newer)], links)
    annotated = {f"{part}_annotations": f"annotations/instances_{split}2014.json" for part, split in SPLITS.items()}
    return Plan(_document(COCO, COCO_CLASSES, layout="coco", **annotated, **images), COCO_COUNTS)


def _fss(root: Path, out: Path, lists: Path | None) -> Plan:
    base = next((b for b in (root, *sorted(p for p in root.iterdir() if p.is_dir())) if any(b.glob("*/1.jpg"))), None)
    if base is None:
        raise _missing(FSS, [f"no folders of classes with 1.jpg … in {root} or one folder below it"])
    places = [lists / "test.txt", lists / "fss" / "test.txt"] if lists is not None else [root / "test.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"FSS-1000's test classes are not in {' or '.join(map(str, places))}. Pass --lists with the folder of its "
            f"test.txt ({FSS_COUNTS['test classes']} names, one per line; HSNet's splits/fss has it)"
        )
    held = {folder.name: len(_by_stem(folder, PHOTOS)) for folder in base.iterdir() if folder.is_dir()}
    classes = sorted(name for name, images in held.items() if images)
    test = read_lines(path)
    _check_list(path, test, [] if test else ["no class is named"])
    fail(path, [f"{base / name}: no such folder of images" for name in test if name not in classes], REMEDY)
    make_folder(out, [root], [base], {out / "images": base})
    document = {"name": FSS, "layout": "fss", "images": "images", "classes": classes, "folds": [test]}
    found = {"classes": len(classes), "test classes": len(test), "images": sum(held.values())}
    return Plan(document, FSS_COUNTS, differences(found, FSS_COUNTS))
