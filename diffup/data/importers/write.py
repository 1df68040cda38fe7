"""Writes what an importer has found as a data set: images, labels, ``dataset.json`` with proposed folds.

Everything is written to a folder beside the place of the data set, read once as any data set is, and then renamed: the
place is empty or whole.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from diffup.data.dataset import Dataset, scan_dataset
from diffup.data.importers import coco, cvat, labelme, masks
from diffup.data.importers.convert import MOST_LABELS, Converted, convert, names
from diffup.data.importers.pictures import Found, Picture, stands_for
from diffup.data.importers.sheet import contact_sheet
from diffup.data.layouts.instances import BEYOND
from diffup.data.layouts.scan import fail, notes_of
from diffup.data.records import Record
from diffup.data.spec import PAIRED, is_plain, read_spec
from diffup.errors import UserError
from diffup.files import PART

FORMATS: dict[str, ModuleType] = {"labelme": labelme, "cvat": cvat, "coco": coco, "masks": masks}
FEW_FOLDS, MANY_FOLDS, MANY_CLASSES = 2, 4, 8  # four folds from eight classes on
REMEDY = "Repair or remove what is named above, or leave it out with --skip-damaged; nothing was written"
SHEET = "contact_sheet.jpg"
MOST_SHOTS = 5  # of the grid that an import names as next
LEAST = 2  # images of a class that is to be tested: a query and a support


@dataclass(frozen=True)
class Imported:
    """A data set that was written.

    Attributes:
        dataset: in its place.
        images: by class, number of images that show it, and of those in which it is large enough for an episode.
        notes: what was left out or decided.
        skipped: damaged files that were left out.
    """

    dataset: Dataset
    images: Mapping[str, tuple[int, int]]
    notes: Sequence[str]
    skipped: Sequence[str]


def import_dataset(
    kind: str,
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    name: str = "",
    folds: int = 0,
    skip_damaged: bool = False,
) -> Imported:
    """Make a data set of annotated images.

    Args:
        kind: ``"labelme"``, ``"cvat"``, ``"coco"`` or ``"masks"``.
        source: folder of the annotations, or for CVAT and COCO their file.
        out: folder to make; it must be empty or not exist, and be outside of `source`.
        images: folder of the images where it does not follow from the annotations.
        name: of the data set; by default that of the folder.
        folds: number of folds; 0: four from eight classes on, else two.
        skip_damaged: leave out what is damaged or missing in place of refusing all.

    Raises:
        UserError: files that are missing or damaged, all of them by name, or an argument that can't be used; nothing
            is written.
    """
    name = name or out.absolute().name
    _check_places(source, out, images, name)
    found: Found = FORMATS[kind].read(source, images)
    classes, notes = _classes(found)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = out.absolute().with_name(f".{out.absolute().name[:100]}.{uuid.uuid4().hex[:8]}{PART}")
        part.mkdir()
    except OSError as error:
        raise UserError(f"{out} can't be made ({error}); choose another folder") from error
    try:
        problems, done = _converted(found.pictures, classes, part)
        problems = [*found.problems, *problems]
        if not skip_damaged:
            fail(source, problems, REMEDY)
        if not done:
            raise UserError(f"{source}: none of {len(problems)} annotated images can be used; first: {problems[0]}")
        imported = _described(part, name, classes, folds, done, [*notes, *_notes(found, done)], problems)
        if out.is_dir():
            out.rmdir()
        os.rename(part, out)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    imported.dataset.root = out.absolute()
    return imported


def _check_places(source: Path, out: Path, images: Path | None, name: str) -> None:
    if not source.exists():
        raise UserError(f"{source} does not exist; give the folder or file of the annotations")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out} exists and is not an empty folder; choose another one")
    for held in filter(None, (source if source.is_dir() else None, images)):
        if out.resolve().is_relative_to(held.resolve()):
            raise UserError(f"{out} is inside of {held}, whose files are only read; choose a folder outside")
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{source} is inside of {out}; choose another folder for the data set")
    if not is_plain(name) or not name.strip() or "/" in name or "\\" in name or len(name) > 100:
        raise UserError(f"{name!r:.60} can't be the name of a data set; pass --name")


def _classes(found: Found) -> tuple[list[str], list[str]]:
    """Names of the classes, and what was decided about labels."""
    labels = [thing.label for picture in found.pictures for thing in picture.things if not thing.void]
    used = dict.fromkeys(found.classes or sorted(set(labels)))
    classes = [label for label in used if stands_for(label) == "class" and label in set(labels)]
    notes = []
    for kind in ("background", "void"):
        if meant := sorted({label for label in labels if stands_for(label) == kind}):
            notes.append(f"label {', '.join(map(repr, meant))} is taken for {kind}, and is no class")
    alike = Counter(label.casefold() for label in classes)
    if twins := [label for label in classes if alike[label.casefold()] > 1]:
        notes.append(f"labels {', '.join(twins[:6])} differ in case alone and are different classes")
    if found.classes and (empty := [label for label in used if label not in set(labels)]):
        notes.append(f"left out, categories without annotation: {', '.join(empty[:6])}{' …' if len(empty) > 6 else ''}")
    if not classes and not found.problems:
        raise UserError("nothing is annotated with a class: there is no object with an area; draw some, then import")
    return classes, notes


def _converted(pictures: Sequence[Picture], classes: Sequence[str], part: Path) -> tuple[list[str], list[Converted]]:
    """Problems, and the pictures that were written."""
    few = len(classes) <= MOST_LABELS
    images, labels = part / ("JPEGImages" if few else "images"), part / "SegmentationClass"
    for folder in (images, labels) if few else (images,):
        folder.mkdir()
    index = {label: number for number, label in enumerate(classes)}

    def one(picture: Picture, stem: str) -> Converted | str:
        try:
            return convert(picture, stem, index, images, labels if few else None)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        made = pool.map(one, pictures, names(pictures))
        done = list(tqdm(made, desc="importing", total=len(pictures), unit="img", disable=None, leave=False))
    return [said for said in done if isinstance(said, str)], [each for each in done if isinstance(each, Converted)]


def _notes(found: Found, done: Sequence[Converted]) -> list[str]:
    counts = {
        "images with overlapping objects of different classes, of which the smaller, or what the tool puts on top, has "
        "the pixels": sum(each.overlapping for each in done),
        "images turned upright by their EXIF orientation": sum(each.turned for each in done),
        "objects that cover no pixel of their image": sum(each.hidden for each in done),
        "images that show no object and are background": sum(not each.shown for each in done),
    }
    told = [f"{what}: {count}" for what, count in (*counts.items(), *sorted(found.noted.items())) if count]
    if names := [name for each in done for name in each.beyond]:
        told += notes_of({BEYOND: names})
    return told + [f"left out, {what}: {count}" for what, count in sorted(found.left_out.items())]


def _described(
    part: Path, name: str, classes: Sequence[str], folds: int, done: Sequence[Converted], notes: list[str],
    skipped: Sequence[str],
) -> Imported:  # fmt: skip
    """Write ``dataset.json``, read the data set as any, and write the contact sheet."""
    document: dict[str, Any] = {"name": name, "layout": "voc", "classes": list(classes), "folds": [list(classes)]}
    if len(classes) > MOST_LABELS:
        document["layout"] = "coco"
        _write(part / "instances.json", _instances(classes, done))
        notes.append(
            f"{len(classes)} classes are more than a label image holds: masks are in "
            "instances.json, where void regions are background"
        )
    path = part / "dataset.json"
    _write(path, document)
    records = _records(path)
    dataset = Dataset(part, read_spec(path), records)
    shown = Counter(c for areas in dataset.areas.values() for c in areas)
    large = {c: len(dataset.eligible(c, PAIRED)) for c in range(len(classes))}
    document["folds"] = [[classes[c] for c in fold] for fold in proposed_folds(large, folds, notes, classes)]
    _write(path, document)
    dataset = Dataset(part, read_spec(path), records)
    contact_sheet(dataset).save(part / SHEET, quality=90)
    images = {label: (shown[c], large[c]) for c, label in enumerate(classes)}
    return Imported(dataset, images, notes, skipped)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _records(path: Path) -> list[Record]:
    """Every image and mask read as those of any data set are."""
    seen = scan_dataset(path)
    fail(path, seen.problems, "This is how it was written from your files; please report it")
    return seen.records


def _instances(classes: Sequence[str], done: Sequence[Converted]) -> dict[str, Any]:
    """The instances JSON: one annotation per image and class."""
    sizes = [{"id": i, "file_name": d.file, "height": d.height, "width": d.width} for i, d in enumerate(done, 1)]
    pairs = [(i, c, runs) for i, each in enumerate(done, 1) for c, runs in each.runs.items()]
    drawn = [
        {"id": n, "image_id": i, "category_id": c + 1, "iscrowd": 0, "segmentation": runs}
        for n, (i, c, runs) in enumerate(pairs, 1)
    ]
    return {
        "images": sizes,
        "annotations": drawn,
        "categories": [{"id": c, "name": label} for c, label in enumerate(classes, 1)],
    }


def proposed_folds(images: Mapping[int, int], asked: int, notes: list[str], classes: Sequence[str]) -> list[list[int]]:
    """Folds with about as many images each: the class with the most images goes to the fold with the fewest so far.

    Args:
        images: number of usable images by class index.
        asked: number of folds, 0 for the default.
        notes: gets what the user should know.
        classes: names.

    Raises:
        UserError: more folds than classes.
    """
    tested = [c for c, count in images.items() if count >= LEAST]
    if tested and len(tested) < len(images):
        rare = [classes[c] for c in images if c not in tested]
        notes.append(
            f"in no fold, as fewer than {LEAST} images show them large enough (1 % of the image): {', '.join(rare[:6])}"
            + (f" and {len(rare) - 6} more" if len(rare) > 6 else "")
        )
    if not tested:
        notes.append(
            "no class is shown large enough by two images: no episode can be drawn until there are more images"
        )
    tested = tested or list(images)
    count = asked or min(MANY_FOLDS if len(tested) >= MANY_CLASSES else FEW_FOLDS, len(tested))
    if not 0 < count <= len(tested):
        raise UserError(f"--folds {asked}: there are {len(tested)} classes with images enough to be tested")
    if count == 1:
        notes.append("there is one fold: no class is left to train on, so only what needs no training can be evaluated")
    folds: list[list[int]] = [[] for _ in range(count)]
    most = -(-len(tested) // count)
    for c in sorted(tested, key=lambda c: (-images[c], c)):
        open_ = [fold for fold in folds if len(fold) < most]
        min(open_, key=lambda fold: (sum(images[each] for each in fold), len(fold))).append(c)
    return [sorted(fold) for fold in folds]


def words(imported: Imported) -> str:
    """The import in words: images per class, folds, notes and what to do next."""
    dataset, place = imported.dataset, imported.dataset.root
    fold_of = {c: number for number, fold in enumerate(dataset.folds) for c in fold}
    width = max(5, *(len(label) for label in imported.images)) + 2
    lines = [f"{dataset.name} is ready at {place}: {len(dataset.image_ids)} images (fingerprint {dataset.fingerprint})"]
    lines.append(f"{'class':{width}}{'images':>7}{'usable':>8}{'fold':>6}")
    for c, (label, (shown, large)) in enumerate(imported.images.items()):
        lines.append(f"{label:{width}}{shown:>7}{large:>8}{fold_of.get(c, '–')!s:>6}")
    least = min(imported.images[dataset.classes[c]][1] for c in fold_of)
    lines.append(f"usable: the class covers 1 % of the image or more. Episodes of up to {max(0, least - 1)} shots")
    lines += [f"note: {note}" for note in imported.notes]
    lines += [f"left out, damaged: {problem}" for problem in imported.skipped]
    lines.append(f"contact sheet  {place / SHEET}")
    lines.append("folds          proposed; edit them in dataset.json")
    shots = "" if least > MOST_SHOTS else f" --shots {','.join(map(str, sorted({1, least - 1})))}"
    if least > 1:
        lines.append(f"next           diffup run mini_grid --dataset {shlex.quote(str(place))}{shots}")
    return "\n".join(lines)
