"""What the layouts share when they read a data set for the first time: files by name, problems, and notes."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tqdm import tqdm

from diffup.data.images import IMAGE_SUFFIXES, read_photo
from diffup.data.labels import Labels
from diffup.data.records import Record
from diffup.errors import UserError

SHOWN = 10  # problems, or names in a note
TURNED = (
    "{n} of the images have an EXIF orientation other than 1, so that viewers turn them: {names}. Masks are taken to "
    "refer to the pixels as they are stored; if they were drawn on the turned pictures, save the images upright"
)
# Files beside images that nobody takes for one.
NOTES = (".json", ".txt", ".xml", ".csv", ".yaml", ".yml", ".md", ".html", ".db", ".ini", ".py", ".sh", ".lst")

T = TypeVar("T")


@dataclass
class Scan:
    """What reading every file of a data set once has found.

    Attributes:
        records: of the good images.
        problems: everything that keeps the data set from being used; each names a file.
        notes: what may be meant but changes results if it isn't; each names files.
    """

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Remarks:
    """Names of sound files by what is remarkable about them; threads may add at the same time."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, sentence: str, name: str) -> None:
        """Remember `name` under `sentence`, which has places ``{n}`` and ``{names}``."""
        self._names.setdefault(sentence, []).append(name)

    def count(self, sentence: str) -> int:
        """How many names are remembered under `sentence`."""
        return len(self._names.get(sentence, ()))

    def notes(self) -> list[str]:
        """A note per sentence, with the number of names and the first of them."""
        return [
            sentence.format(n=len(names), names=listed(sorted(names)))
            for sentence, names in sorted(self._names.items())
        ]


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
            found: dict[str, list[Path]] = {}
            folder = self.root / below
            try:
                paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            except (OSError, ValueError):  # it isn't there, which is said of the file that was looked for
                paths = []
            for path in paths:
                found.setdefault(_composed(path.stem), []).append(path)
            self._listed[below] = found
        return self._listed[below]

    def files(self) -> list[Path]:
        """All that is in the folder itself, sorted."""
        return sorted(path for paths in self._files(".").values() for path in paths)

    def named(self, name: str, suffixes: Sequence[str]) -> list[Path]:
        """Files of that name.

        Args:
            name: path below the folder, without suffix.
            suffixes: lower case; those of files may be in any case.
        """
        path = PurePosixPath(name)
        found = [
            each
            for each in self._files(str(path.parent)).get(_composed(path.name), ())
            if each.suffix.lower() in suffixes
        ]
        exact = [each for each in found if each.stem == path.name]
        return exact or found

    def unread(self) -> list[str]:
        """Notes on files and folders in the folder itself that are not read as images."""
        files = [p for p in self.files() if p.suffix.lower() not in (*IMAGE_SUFFIXES, *NOTES) and p.is_file()]
        notes = []
        if files:
            kinds = Counter(path.suffix or "no suffix" for path in files)
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            notes.append(
                f"{self.root}: {len(files)} files are not read ({counts}): {listed([path.name for path in files])}. "
                f"Images are read as {', '.join(IMAGE_SUFFIXES)}; convert the others if they belong to the data set"
            )
        return notes

    def deeper(self) -> list[str]:
        """Notes on folders with images below the folder, which are not looked into."""
        deep = [
            path.name for path in self.files()
            if path.is_dir() and any(each.suffix.lower() in IMAGE_SUFFIXES for each in Folder(path).files())
        ]  # fmt: skip
        if not deep:
            return []
        return [
            f"{self.root}: {len(deep)} folders below it hold images that are not read: {listed(deep)}. Move the images "
            "up, or name them in a list"
        ]


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


def read_pair(image_path: Path, mask_path: Path, read_mask: Callable[[Path], Labels], remarks: Remarks) -> Labels | str:
    """Decode an image and its label image.

    Args:
        image_path, mask_path: the two files.
        read_mask: reads the second; its UserErrors don't name the file.
        remarks: gets the name of an image with an EXIF orientation.

    Returns:
        The label image, its checksum that of both files; or what is wrong with either of them.
    """
    try:
        photo = read_photo(image_path)
    except UserError as error:
        return f"{image_path}: {error}" + (beside(image_path) if "missing" in str(error) else "")
    try:
        labels = read_mask(mask_path)
    except UserError as error:
        return f"{mask_path}: {error}" + (beside(mask_path) if "missing" in str(error) else "")
    height, width = photo.pixels.shape[:2]
    if labels.values.shape != (height, width):
        return (
            f"{mask_path}: mask is {labels.values.shape[1]}x{labels.values.shape[0]}, "
            f"but its image {image_path.name} is {width}x{height} (width x height)"
            f"{turned(photo.orientation, labels.values.shape, (height, width))}"
        )
    if photo.orientation != 1:
        remarks.add(TURNED, f"{image_path.name} ({photo.orientation})")
    return Labels(labels.values, zlib.crc32(labels.checksum.to_bytes(4, "big"), photo.checksum), labels.palette)


def turned(orientation: int, stated: tuple[int, ...], size: tuple[int, int]) -> str:
    """For sizes (H, W) that differ: whether a quarter turn explains it, as part of a message."""
    if tuple(stated) != size[::-1]:
        return ""
    if orientation >= 5:
        return (
            f": the image's EXIF orientation {orientation} turns it by a quarter, so its annotation was drawn on the "
            "turned picture. Save the image upright, without EXIF orientation"
        )
    return ": height and width are exchanged, so one of the two was turned"


def fail(path: Path, problems: Sequence[str], remedy: str) -> None:
    """Raise one UserError for all problems of a data set; do nothing if there are none."""
    if problems:
        rest = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        files = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{path}: {files} with the data:{lines}{rest}\n{remedy}")


def index_all(
    items: Sequence[T], work: Callable[[T], Record | str], description: str
) -> tuple[list[Record], list[str]]:
    """Apply `work` to every item on threads (decoding releases the interpreter's lock), in order.

    Returns:
        The records, and the problems that `work` gave in place of one.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[Record | str] = pool.map(work, items)
        done = list(tqdm(results, desc=description, total=len(items), unit="img", disable=None, leave=False))
    records = [result for result in done if isinstance(result, Record)]
    return records, [result for result in done if isinstance(result, str)]


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
