"""Data sets on disk: a ``dataset.json`` beside images and masks, in VOC, COCO or FSS layout, opened through an index.

Opening a data set for the first time decodes every image and mask, so that damage is found before an experiment starts
and not in its middle. What was learnt (sizes, areas per class) is kept as a small Parquet file; it is used as long as
``dataset.json`` and the sizes and times of all files are those it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from diffup.data.images import read_photo
from diffup.data.layouts import coco, fss, voc
from diffup.data.layouts.scan import SHOWN, Scan, fail, same_ids
from diffup.data.records import Record, read_index, write_index
from diffup.data.spec import ALL_CLASSES, PAIRED, DatasetSpec, SizeRule, read_spec
from diffup.errors import UserError
from diffup.home import home as diffup_home
from diffup.usage import meant

INDEX_VERSION = 3
BENCHMARKS = ("pascal5i", "coco20i", "fss1000")
# Each has source_files (what the index is made of), scan (reads every file once), read_mask and REMEDY.
LAYOUTS: dict[str, ModuleType] = {"voc": voc, "coco": coco, "fss": fss}


class Dataset:
    """Images, class masks and folds. Cheap to pickle and to open again; holds no open files.

    Attributes:
        root: folder of the ``dataset.json``.
        spec: its content.
        name: of the data set, in tables and cells.
        classes: class names; class index = position.
        folds: class indices of each fold.
        ignore_index: the label that means void in the files (masks given out always say 255).
        fingerprint: 12 hex digits of ``dataset.json``, the list of files, their content and the class areas.
        image_ids: sorted.
        areas: image id → class index → foreground pixels (> 0).
        sizes: image id → (H, W).
    """

    def __init__(self, root: Path, spec: DatasetSpec, records: Sequence[Record], fingerprint: str = "") -> None:
        self.root, self.spec = root, spec
        self.name, self.classes, self.folds, self.ignore_index = spec.name, spec.classes, spec.folds, spec.ignore_index
        self._records = {record.image_id: record for record in sorted(records, key=lambda r: r.image_id)}
        self.image_ids = tuple(self._records)
        self.areas = {i: record.areas for i, record in self._records.items()}
        self.sizes = {i: (record.height, record.width) for i, record in self._records.items()}
        self.fingerprint = fingerprint or _fingerprint(spec, self._records.values())
        self._shows: dict[int, list[Record]] = {c: [] for c in range(len(spec.classes))}
        for record in self._records.values():
            for class_index in record.areas:
                self._shows[class_index].append(record)

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """An image as RGB, uint8 [H, W, 3].

        Raises:
            UserError: unknown id, or a file that is gone or damaged since it was indexed.
        """
        path = self.root / self._record(image_id).image
        try:
            return read_photo(path).pixels
        except UserError as error:
            raise UserError(f"{path}: {error}; restore the file and run again") from error

    def mask(self, image_id: str, class_index: int) -> NDArray[np.uint8]:
        """The mask of a class, uint8 [H, W]: 0 background or other classes, 1 the class, 255 void.

        Raises:
            UserError: unknown id or class, or a file that is gone or damaged since it was indexed.
        """
        record = self._record(image_id)
        if not 0 <= class_index < len(self.classes):
            raise UserError(f"{self.name} has classes 0-{len(self.classes) - 1}, not {class_index}")
        try:
            mask: NDArray[np.uint8] = LAYOUTS[self.spec.layout].read_mask(self.root, record, class_index, self.spec)
            return mask
        except UserError as error:
            raise UserError(f"{self.root / record.mask}: {error}; restore the file and run again") from error

    def files(self, image_id: str) -> tuple[str, str]:
        """Image and label file relative to `root`, with slashes; a COCO image's label would be its name as PNG.

        Raises:
            UserError: unknown id.
        """
        record = self._record(image_id)
        return record.image, record.mask or str(PurePosixPath(record.image).with_suffix(".png"))

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The classes of a fold, in its order: those that are evaluated; none of `ALL_CLASSES`.

        Raises:
            UserError: there is no such fold.
        """
        if fold == ALL_CLASSES:
            return ()
        if not 0 <= fold < len(self.folds):
            raise UserError(f"{self.name} has folds 0-{len(self.folds) - 1}, not {fold}")
        return self.folds[fold]

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """All classes that are not in the fold, ascending: those that are trained on.

        Raises:
            UserError: there is no such fold.
        """
        novel = set(self.novel_classes(fold))
        return tuple(c for c in range(len(self.classes)) if c not in novel)

    def eligible(self, class_index: int, protocol: SizeRule, split: str = "test") -> tuple[str, ...]:
        """Sorted ids of the images in which the class is large enough for the protocol.

        Args:
            class_index: 0-based.
            protocol: says what is large enough.
            split: ``"train"`` or ``"test"``; without splits of its own the data set has every image in both.
        """
        smallest = self.spec.min_area_fraction
        return tuple(
            record.image_id
            for record in self._shows.get(class_index, ())
            if record.split in ("", split)
            and record.areas[class_index] >= protocol.needed_pixels(self.name, (record.height, record.width), smallest)
        )

    def split_size(self, split: str) -> int:
        """Number of images that may serve in a split, ``"train"`` or ``"test"``."""
        return sum(record.split in ("", split) for record in self._records.values())

    def check(self, shots: int, protocol: SizeRule = PAIRED) -> None:
        """Make sure that every class of every fold has a query and `shots` supports among the images to test on.

        Args:
            shots: K ≥ 0.
            protocol: says in which images a class is large enough.

        Raises:
            UserError: too few images; the message names each fold, class and count.
        """
        short = []
        for number, fold in enumerate(self.folds):
            for c in fold:
                large, all_images = len(self.eligible(c, protocol)), len(self._shows[c])
                if large <= shots:
                    short.append(
                        f"fold {number}, class {self.classes[c]!r}: {large} ({all_images} with any pixel of it)"
                    )
        if short:
            more = f"\n  … and {len(short) - SHOWN} more classes" if len(short) > SHOWN else ""
            lines = "\n  ".join(short[:SHOWN])
            raise UserError(
                f"{self.root / 'dataset.json'}: {shots} shots need {shots + 1} images of each class in which it is "
                f"large enough for protocol {protocol.name!r}. Too few:\n  {lines}{more}\nAdd images, use fewer shots, "
                "lower 'min_area_fraction' or take the class out of 'folds'"
            )

    def _record(self, image_id: str) -> Record:
        if image_id not in self._records:
            raise UserError(f"{self.name} has no image {image_id!r}")
        return self._records[image_id]


def resolve_dataset(name: str, root: Path | None = None) -> Path:
    """The absolute path of a data set's ``dataset.json``.

    Args:
        name: ``shapes4i`` (made on first use), ``pascal5i``, ``coco20i``, ``fss1000``, or the path of a
            ``dataset.json`` or of its folder.
        root: folder of the named data sets, ``$DIFFUP_HOME/datasets`` by default.

    Raises:
        UserError: unknown name, or a benchmark that isn't there; the message says what to put where.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (path / "dataset.json").is_file():
        return (path / "dataset.json").absolute()
    if path.is_file():
        return path.absolute()
    root = (root or diffup_home() / "datasets").absolute()
    if name == "shapes4i":
        from diffup.data.shapes4i import ensure

        return ensure(root).absolute()
    if name in BENCHMARKS:
        path = root / name / "dataset.json"
        if path.is_file():
            return path
        raise UserError(
            f"data set {name!r} is not at {path.parent}. Make it from the files that you have: python -m diffup.data "
            f"prepare {name} --root DIR (docs/data.md says what DIR must hold and where to get it), or set DIFFUP_HOME"
        )
    what = "the folder holds no dataset.json" if path.is_dir() else "there is no such file or folder here"
    around = [str(found.parent) for found in path.parent.glob("*/dataset.json")] if path.parent.is_dir() else []
    near = meant(name, ["shapes4i", *BENCHMARKS, *around])
    raise UserError(
        f"data set {name!r}: {what}, and it is none of shapes4i, {', '.join(BENCHMARKS)}"
        + (near or "; pass the path of a dataset.json (README, 'Your own data')")
    )


def open_dataset(name_or_path: str | Path, cache_dir: Path | None = None) -> Dataset:
    """Open a data set, indexing it if it is new or has changed.

    What may be intended but changes results if it isn't (EXIF orientation, files that are not read, masks that mark
    nothing) is a warning when the data set is indexed.

    Args:
        name_or_path: as for `resolve_dataset`.
        cache_dir: folder of the indexes, ``$DIFFUP_HOME/cache`` by default.

    Raises:
        UserError: anything wrong with ``dataset.json`` or the files it names: the message names files and remedy, and
            nothing is written.
    """
    json_path = resolve_dataset(str(name_or_path)).resolve()
    root, spec = json_path.parent, read_spec(json_path)
    layout = LAYOUTS[spec.layout]
    key = _index_key(root, spec, layout.source_files(root, spec))
    index = (cache_dir or diffup_home() / "cache") / f"{spec.name}-{key}.parquet"
    found = read_index(index, key)
    if found is not None:
        return Dataset(root, spec, *found)
    seen = _scanned(root, spec)
    fail(json_path, seen.problems, layout.REMEDY)
    for note in seen.notes:
        warnings.warn(f"{json_path}: {note}", stacklevel=2)
    dataset = Dataset(root, spec, seen.records)
    try:
        write_index(index, seen.records, key, dataset.fingerprint)
    except OSError as error:
        warnings.warn(f"the index of {spec.name} can't be kept ({error}); it is made again each time", stacklevel=2)
    return dataset


def scan_dataset(json_path: Path) -> Scan:
    """Every bad file of a data set, each with what is wrong with it, and what is remarkable; nothing is written.

    Raises:
        UserError: the ``dataset.json``, a list or an instances JSON can't be read at all.
    """
    return _scanned(json_path.resolve().parent, read_spec(json_path))


def _scanned(root: Path, spec: DatasetSpec) -> Scan:
    seen: Scan = LAYOUTS[spec.layout].scan(root, spec)
    if not seen.problems:  # else reported by the layout, where its names are known
        seen.problems += same_ids(seen.records)
    return seen


def _index_key(root: Path, spec: DatasetSpec, files: Sequence[Path]) -> str:
    """Hash of ``dataset.json`` and of path, size and time of every file the index is made of."""
    digest = hashlib.sha256(f"{INDEX_VERSION}\n{root}\n{_canonical(spec)}\n".encode())
    for path in files:
        try:
            stat = path.stat()
            digest.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        except OSError:  # what is wrong with it is said when it is read
            digest.update(os.fsencode(f"{path}\0missing\n"))
    return digest.hexdigest()[:16]


def _canonical(spec: DatasetSpec) -> str:
    return json.dumps(spec.identity(), sort_keys=True, separators=(",", ":"))


def _fingerprint(spec: DatasetSpec, records: Iterable[Record]) -> str:
    """Hash of what the data set is; it does not depend on its folder or on times of files."""
    digest = hashlib.sha256(_canonical(spec).encode())
    for record in records:
        row = [record.image_id, record.image, record.mask, record.height, record.width, record.checksum]
        row += [record.split] if record.split else []
        digest.update(json.dumps([row, sorted(record.areas.items())]).encode())
        for class_index, (foreground, crowd) in sorted(record.rles.items()):
            digest.update(b"%d %d %d " % (class_index, len(foreground), len(crowd)) + foreground + crowd)
    return digest.hexdigest()[:12]
