"""What the layouts share when they read a data set for the first time: files by name, pairs, problems and notes."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from diffup.data.images import IMAGE_SUFFIXES, Photo, read_photo
from diffup.data.labels import MASK_SUFFIX, Labels
from diffup.data.records import Record
from diffup.data.spec import is_plain
from diffup.errors import UserError

SHOWN = 10  # problems, or names in a note
TURNED = (
    "{n} of the images have an EXIF orientation other than 1, so that viewers turn them: {names}. Masks are taken to "
    "refer to the pixels as they are stored; if they were drawn on the turned pictures, save the images upright"
)
# Files beside images that nobody takes for one.
NOTES = (".json", ".txt", ".xml", ".csv", ".yaml", ".yml", ".md", ".html", ".db", ".ini", ".py", ".sh", ".lst")

T = TypeVar("T")
Remarks = dict[str, list[str]]  # sentence with places {n} and {names} → names of sound files; threads add to it


class Pair(NamedTuple):
    """An image with its label image; `class_index` where the mask is of one class."""

    image_id: str
    image: Path
    mask: Path
    split: str = ""
    class_index: int = -1


@dataclass
class Scan:
    """What reading every file of a data set once has found.

    Attributes:
        records: of the good images.
        problems: everything that keeps the data set from being used; each names a file.
        notes: what may be intended but changes results if it isn't; each names files.
    """

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def remark(remarks: Remarks, sentence: str, name: str) -> None:
    """Remember the name of a sound file under what is remarkable about it."""
    remarks.setdefault(sentence, []).append(name)


def notes_of(remarks: Remarks) -> list[str]:
    """A note per sentence, with the number of names and the first of them."""
    return [s.format(n=len(names), names=listed(sorted(names))) for s, names in sorted(remarks.items())]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f", … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Folder:
    """The files below a folder by their names without suffix; each folder is listed once.

    Names that differ only in how Unicode composes their letters are one: macOS and Linux write "ü" differently.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, dict[str, list[Path]]] = {}

    def _files(self, below: str) -> dict[str, list[Path]]:
        if below not in self._listed:
            try:
                paths = sorted(path for path in (self.root / below).iterdir() if not path.name.startswith("."))
            except (OSError, ValueError):  # reported for the file that was looked for
                paths = []
            found = self._listed[below] = {}
            for path in paths:
                found.setdefault(_composed(path.stem), []).append(path)
        return self._listed[below]

    def files(self, suffixes: Sequence[str] = ()) -> list[Path]:
        """All that is in the folder itself, sorted; with `suffixes` (lower case), only files with one of these."""
        paths = sorted(path for paths in self._files(".").values() for path in paths)
        return [path for path in paths if path.suffix.lower() in suffixes] if suffixes else paths

    def named(self, name: str, suffixes: Sequence[str]) -> list[Path]:
        """Files of that name.

        Args:
            name: path below the folder, without suffix.
            suffixes: lower case; those of files may be in any case.
        """
        path = PurePosixPath(name)
        same = self._files(str(path.parent)).get(_composed(path.name), ())
        found = [each for each in same if each.suffix.lower() in suffixes]
        return [each for each in found if each.stem == path.name] or found

    def unread(self) -> list[str]:
        """Notes on files and folders in the folder itself that are not read."""
        files = [p for p in self.files() if p.suffix.lower() not in (*IMAGE_SUFFIXES, *NOTES) and p.is_file()]
        deep = [p.name for p in self.files() if p.is_dir() and Folder(p).files(IMAGE_SUFFIXES)]
        notes = []
        if files:
            kinds = Counter(path.suffix or "no suffix" for path in files)
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            notes.append(
                f"{self.root}: {len(files)} files are not read ({counts}): {listed([path.name for path in files])}. "
                f"Images are read as {', '.join(IMAGE_SUFFIXES)}; convert the others if they belong to the data set"
            )
        if deep:
            notes.append(
                f"{self.root}: {len(deep)} folders below it hold images that are not read: {listed(deep)}. Move the "
                "images up, or name them in a list"
            )
        return notes

    def lone_masks(self, pairs: Iterable[Pair]) -> list[str]:
        """Names of PNG files in the folder itself that are the mask of no image."""
        served = {pair.mask for pair in pairs}
        return [path.name for path in self.files((MASK_SUFFIX,)) if path not in served]


def same_name(paths: Sequence[Path]) -> list[str]:
    """A problem if several files have one name, which can stand for one of them only."""
    return [f"{paths[1]}: same name as {paths[0].name}"] if len(paths) > 1 else []


def bad_names(paths: Iterable[Path]) -> list[str]:
    """Problems: names that can't be printed."""
    return [f"{str(path)!a}: a name that is not valid text" for path in paths if not is_plain(path.stem)]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def beside(path: Path) -> str:
    """For a file that is missing: files whose names are nearly its own, as part of a message."""
    if path.is_symlink():
        return "; it is a link to a file that is not there"
    try:
        near = _near(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        return ""
    found = near.get(_composed(path.stem).casefold(), [])
    return f"; there is {listed(found)}" if found else ""


@functools.lru_cache(maxsize=4)  # a folder may be asked for each of its files
def _near(folder: Path, changed: int) -> dict[str, list[str]]:
    """Names in a folder by what a file may have been looked for as: without suffix, or ``_mask``, or two suffixes."""
    found: dict[str, list[str]] = {}
    for name in sorted(other.name for other in folder.iterdir()):
        stem = PurePosixPath(_composed(name).casefold()).stem
        wanted = (stem, _composed(name).casefold(), PurePosixPath(stem).stem, re.sub(r"[_-][^_-]*$", "", stem))
        for key in dict.fromkeys(wanted):
            found.setdefault(key, []).append(name)
    return found


def read_named(path: Path, read: Callable[[Path], T], elsewhere: Callable[[Path], str] = beside) -> T:
    """What `read` gives, with the file's name in its UserErrors and, for one that is missing, where it may be."""
    try:
        return read(path)
    except UserError as error:
        where = elsewhere(path) if "missing" in str(error) else ""
        raise UserError(f"{path}: {error}{where}") from None


def turned(photo: Photo, stated: tuple[object, ...]) -> str:
    """For an image of another size (H, W) than `stated`: whether a quarter turn explains it, as part of a message."""
    if stated != photo.pixels.shape[1::-1]:
        return ""
    if photo.orientation >= 5:
        return (
            f": the image's EXIF orientation {photo.orientation} turns it by a quarter, so its annotation was drawn on "
            "the turned picture. Save the image upright, without EXIF orientation"
        )
    return ": height and width are exchanged, so one of the two was turned"


def fail(path: Path, problems: Sequence[str], remedy: str) -> None:
    """Raise one UserError for all problems of a data set; do nothing if there are none."""
    if problems:
        rest = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        files = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{path}: {files} with the data:{lines}{rest}\n{remedy}")


def index_all(items: Collection[T], work: Callable[[T], Record], name: str) -> tuple[list[Record], list[str]]:
    """Apply `work` to every item on threads (decoding releases the interpreter's lock).

    Returns:
        The records, and the messages of the UserErrors that `work` raised in place of one, both in the items' order.
    """

    def tried(item: T) -> Record | str:
        try:
            return work(item)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(tried, items)
        done = list(tqdm(results, desc=f"indexing {name}", total=len(items), unit="img", disable=None, leave=False))
    return [found for found in done if isinstance(found, Record)], [found for found in done if isinstance(found, str)]


def index_pairs(
    root: Path, name: str, pairs: Collection[Pair], read_mask: Callable[[Path], Labels],
    areas: Callable[[Pair, Labels], dict[int, int]], remarks: Remarks,
) -> tuple[list[Record], list[str]]:  # fmt: skip
    """Decode images and their label images.

    Args:
        root: folder that the paths in the records are relative to.
        name: of the data set.
        pairs: what to read.
        read_mask: reads a label image; its UserErrors don't name the file.
        areas: gives the foreground pixels by class of a label image; its UserErrors name the file.
        remarks: gets the names of images with an EXIF orientation.

    Returns:
        As for `index_all`; a record's checksum is that of both files.
    """

    def one(pair: Pair) -> Record:
        photo, labels = read_named(pair.image, read_photo), read_named(pair.mask, read_mask)
        (height, width), (rows, columns) = photo.pixels.shape[:2], labels.values.shape
        if (rows, columns) != (height, width):
            raise UserError(
                f"{pair.mask}: mask is {columns}x{rows}, but its image {pair.image.name} is {width}x{height} "
                f"(width x height){turned(photo, (rows, columns))}"
            )
        if photo.orientation != 1:
            remark(remarks, TURNED, f"{pair.image.name} ({photo.orientation})")
        files = relative(pair.image, root), relative(pair.mask, root)
        checksum = zlib.crc32(labels.checksum.to_bytes(4, "big"), photo.checksum)
        return Record(pair.image_id, *files, height, width, checksum, areas(pair, labels), {}, pair.split)

    return index_all(pairs, one, name)


def same_ids(records: Sequence[Record]) -> list[str]:
    """Problems: files that have one id, of which all but one would be lost."""
    files: dict[str, list[str]] = {}
    for record in records:
        files.setdefault(record.image_id, []).append(record.image)
    return [
        f"{', '.join(paths[:3])}: {len(paths)} images have the id {image_id!r}; rename all but one, or remove them"
        for image_id, paths in files.items()
        if len(paths) > 1
    ]


def relative(path: Path, root: Path) -> str:
    """A path as it is kept in a record: relative to the data set's folder, with slashes."""
    return Path(os.path.relpath(path, root)).as_posix()
