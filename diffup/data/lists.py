"""Readers of the image lists that few-shot segmentation projects exchange: HSNet's and PFENet's.

Nothing here opens an image. A list names pairs of an image and a class that is large enough in it, and its *order* is
part of a protocol: HSNet's episodes are drawn by position. Nothing in the lists is executed: pickles may hold dict,
list, str and int alone.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import pickletools
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from diffup.data.images import IMAGE_SUFFIXES
from diffup.data.spec import is_plain
from diffup.data.text import decode, lines
from diffup.errors import UserError

PASCAL, COCO = "pascal5i", "coco20i"
CLASS_COUNTS = {PASCAL: 20, COCO: 80}
FOLDS = 4
SPLITS = ("trn", "val")
FOLDER_NAMES = {PASCAL: "pascal", COCO: "coco"}
HSNET_LINE = re.compile(r"(?P<image>\S(?:.*\S)?)__(?P<number>[0-9]{2})")
# A path up to its suffix; its name may hold blanks.
PICTURE_PATH = re.compile(r"\S.*?\.(?:jpe?g|png|webp|bmp|tiff?)(?=\s|$)", re.IGNORECASE)
SUFFIX = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$", re.IGNORECASE)
MAX_BYTES = 64 << 20  # of a list file; HSNet's largest has 4 MB
MAX_PAIRS = 5_000_000  # COCO's training images have 0.2 million; a few bytes of a pickle may stand for many
REMEDY = "Correct the file or get the list again"
SHOWN = 5  # bad lines that a message names
IMPORTS = ("GLOBAL", "STACK_GLOBAL", "INST")
NEEDED = {
    "PROTO", "FRAME", "STOP", "MARK", "PERSID", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
}  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Pairs:
    """Images by class, as a list file has them.

    Attributes:
        entries: (image, 0-based class) in file order.
    """

    entries: tuple[tuple[str, int], ...]

    @property
    def classes(self) -> dict[int, tuple[str, ...]]:
        """Class → its images in file order, classes ascending; classes without any are left out."""
        found: dict[int, list[str]] = {}
        for image, class_index in self.entries:
            found.setdefault(class_index, []).append(image)
        return {c: tuple(found[c]) for c in sorted(found)}

    def hash(self) -> str:
        """First 12 hex digits of the sha256 of the entries in their order."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()[:12]

    def named_as(self, image_ids: Iterable[str], where: object) -> Pairs:
        """The same pairs, each image by its id in a data set. Arguments and errors: `match_images`."""
        ids = match_images([image for image, _ in self.entries], image_ids, where)
        return Pairs(tuple((ids[image], class_index) for image, class_index in self.entries))


def match_images(names: Iterable[str], image_ids: Iterable[str], where: object) -> dict[str, str]:
    """The id in a data set of each image that a list names.

    A name is an id itself, or a path of it (``val2014/COCO_val2014_000000507081.jpg``), or one that ends in the same 12
    digits (``000000507081``) and is the only one that does.

    Args:
        names: as the list has them.
        image_ids: of the data set.
        where: what the list is called in a message.

    Raises:
        UserError: images that the data set lacks; how many, and the first of them.
    """
    known = set(image_ids)
    numbered = [i for i in known if len(i) >= 12 and i[-12:].isdecimal()]
    shared = Counter(i[-12:] for i in numbered)
    by_number = {i[-12:]: i for i in numbered if shared[i[-12:]] == 1}
    found: dict[str, str] = {}
    missing = []
    names = list(dict.fromkeys(names))
    for name in names:
        whole = SUFFIX.sub("", name)
        stem = PurePosixPath(whole).name
        match = next((i for i in (name, whole, stem) if i in known), by_number.get(stem[-12:]))
        if match is None:
            missing.append(name)
        else:
            found[name] = match
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(names)} images are not in the data set, the first "
            f"{', '.join(missing[:SHOWN])}. Complete the data set, or take the lists that were made for it"
        )
    return found


def fold_classes(dataset: str, fold: int) -> tuple[int, ...]:
    """The 0-based classes of a fold of ``pascal5i`` (5f … 5f+4) or ``coco20i`` (f, f+4, … f+76).

    Raises:
        UserError: another data set, or no such fold.
    """
    if dataset not in CLASS_COUNTS:
        raise UserError(f"no folds are known of {dataset!r}, only of {', '.join(CLASS_COUNTS)}")
    if not 0 <= fold < FOLDS:
        raise UserError(f"{dataset} has folds 0-{FOLDS - 1}, not {fold}")
    return tuple(range(5 * fold, 5 * fold + 5)) if dataset == PASCAL else tuple(range(fold, CLASS_COUNTS[COCO], FOLDS))


def read_hsnet_text(path: Path) -> Pairs:
    """HSNet's Pascal list: one ``IMAGE__CC`` per line, CC the 1-based class in two digits; empty lines are skipped.

    Raises:
        UserError: unreadable, empty, or a line of another form; the first few are named.
    """

    def parsed(line: str) -> tuple[str, int] | None:
        match = HSNET_LINE.fullmatch(line.strip())
        known = match and is_plain(match["image"]) and 1 <= int(match["number"]) <= CLASS_COUNTS[PASCAL]
        return (match["image"], int(match["number"]) - 1) if match and known else None

    return Pairs(_parsed_lines(path, parsed, "IMAGE__CC with CC from 01 to 20, e.g. 2007_000033__01"))


def read_pfenet_images(path: Path) -> tuple[tuple[str, str], ...]:
    """PFENet's raw list: ``IMAGE LABEL`` paths per line, relative to the data set's folder.

    Raises:
        UserError: unreadable, empty, or a line of another form.
    """

    def parsed(line: str) -> tuple[str, str] | None:
        parts = PICTURE_PATH.findall(line)
        if " ".join(" ".join(parts).split()) != " ".join(line.split()):  # other suffixes, or something else
            parts = line.split()
        return (parts[0], parts[1]) if len(parts) == 2 and all(map(is_plain, parts)) else None

    return _parsed_lines(path, parsed, "IMAGE LABEL, two paths with a space between")


def read_hsnet_pickle(path: Path) -> Pairs:
    """HSNet's COCO list: a pickled ``{class 0-79: [image path, …]}``; entries by class in the order of the dict.

    Raises:
        UserError: unreadable, not a pickle, one that holds anything but dict, list, str and int (nothing of it is
            executed), or of another shape.
    """
    content = _content(path)
    try:
        _check_opcodes(content)
        held = _Plain(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}. Expected is {{class: [image path, …]}}. {REMEDY}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}: {error!s:.200}). {REMEDY}") from None
    form = (
        f"a class from 0 to {CLASS_COUNTS[COCO] - 1} with a list of image paths, as HSNet's {{class: [image path, …]}}"
    )
    return _by_class(path, held, 0, form, lambda image: image if _is_name(image) else None)


def read_pfenet_classes(path: Path) -> Pairs:
    """PFENet's and BAM's ``sub_class_file_list``: ``{1-based class: [(image, label), …]}`` as Python text.

    Images are named by their stem. The text is read as a literal: nothing of it is executed.

    Raises:
        UserError: unreadable, not such a literal, or a class outside 1-80.
    """
    try:
        held = ast.literal_eval(_text(path).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise UserError(
            f"{path} is not the text of {{class: [(image, label), …]}} ({error!s:.120}). {REMEDY}"
        ) from None

    def stem(row: Any) -> str | None:
        pair = isinstance(row, tuple | list) and len(row) == 2 and all(map(_is_name, row))
        return PurePosixPath(row[0]).stem or None if pair else None

    form = "a 1-based class with a list of (image, label) paths, as in {class: [(image, label), …]}"
    return _by_class(path, held, 1, form, stem)


def _parsed_lines(path: Path, parsed: Callable[[str], T | None], form: str) -> tuple[T, ...]:
    """What `parsed` gives for each line that is not empty; None stands for a line that is not of the form."""
    rows = {n: (parsed(line), line) for n, line in enumerate(lines(_text(path)), start=1) if line.strip()}
    bad = [f"\n  line {number}: {line[:80]!r}" for number, (row, line) in rows.items() if row is None]
    if bad:
        more = f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(f"{path}: {len(bad)} lines are not {form}:{''.join(bad[:SHOWN])}{more}\n{REMEDY}")
    if not rows:
        raise UserError(f"{path} names no image. {REMEDY}")
    return tuple(row for row, _ in rows.values() if row is not None)


def _by_class(path: Path, held: Any, first: int, form: str, image: Callable[[Any], str | None]) -> Pairs:
    """Pairs of a dict of lists; an entry that is bad is reported not to be `form`.

    Args:
        first: number of class 0.
        image: gives the image of an element of a list, None for a bad element.
    """
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a {type(held).__name__}, not a dict of classes: an entry is {form}. {REMEDY}")
    entries: list[tuple[str, int]] = []
    for number, rows in held.items():
        known = type(number) is int and first <= number < first + max(CLASS_COUNTS.values()) and isinstance(rows, list)
        if known and len(entries) + len(rows) > MAX_PAIRS:
            raise UserError(f"{path} names more than {MAX_PAIRS} images; is it an image list? {REMEDY}")
        images = [image(row) for row in rows] if known else [None]
        if None in images:
            raise UserError(f"{path}: entry {_shown(number)} is not {form}. {REMEDY}")
        entries += [(name, number - first) for name in images if name is not None]
    if not entries:
        raise UserError(f"{path} names no image. {REMEDY}")
    return Pairs(tuple(entries))


def hsnet_list(folder: Path, dataset: str, fold: int, split: str = "val") -> Pairs:
    """HSNet's list of a fold from a copy of its ``splits`` folder.

    A ``trn`` file of Pascal holds the classes of its own fold, so training for a fold joins the other three; a ``trn``
    pickle of COCO holds the base classes of its fold.

    Args:
        folder: holds ``pascal/`` or ``coco/``, or is it, or holds ``splits/`` that does.
        dataset: ``pascal5i`` or ``coco20i``.
        fold: 0-3.
        split: ``"trn"`` or ``"val"``.

    Raises:
        UserError: no such file (the places looked at are named), or one that can't be read, or a validation list with
            a class of another fold.
    """
    wanted = set(fold_classes(dataset, fold))
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if dataset == PASCAL and split == "trn":
        others = [read_hsnet_text(_find(folder, dataset, other, split)) for other in range(FOLDS) if other != fold]
        return Pairs(tuple(entry for pairs in others for entry in pairs.entries))
    path = _find(folder, dataset, fold, split)
    pairs = read_hsnet_text(path) if dataset == PASCAL else read_hsnet_pickle(path)
    present = set(pairs.classes)
    strangers = sorted(present - wanted if split == "val" else present & wanted)
    if strangers:
        what = "are not of" if split == "val" else "are novel in"
        raise UserError(
            f"{path}: classes {strangers[:SHOWN]} {what} fold {fold} of {dataset}; is it another split's list?"
        )
    return pairs


def _find(folder: Path, dataset: str, fold: int, split: str) -> Path:
    name = FOLDER_NAMES[dataset]
    end = Path(split) / f"fold{fold}.{'txt' if dataset == PASCAL else 'pkl'}"
    places = [base / end for base in (folder / "splits" / name, folder / name, folder)]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"no list of {dataset} fold {fold}: looked for {', '.join(map(str, places))}. Point to a copy of the folder "
        "'splits' of HSNet (github.com/juhongm999/hsnet, or what its README links to)"
    )


def _check_opcodes(content: bytes) -> None:
    """Refuse what an image list doesn't need, before the unpickler sees it.

    A few bytes can name a place in the memo for which the unpickler takes gigabytes, and tuples within tuples take
    for ever to be hashed. What wants to import is left to `_Plain`, which says so.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in IMPORTS:
            return
        if opcode.name not in NEEDED:
            raise pickle.UnpicklingError(f"it holds more than dict, list, str and int ({opcode.name})")
        if opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(content):
            raise pickle.UnpicklingError(f"it numbers an object {argument}, more than it has")


class _Plain(pickle.Unpickler):
    """Reads dict, list, str and int, which need no import; anything else is refused before it is made."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it wants to import {module}.{name}, which no image list needs; it was not executed"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside of the file, which no image list needs")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value > "" and is_plain(value)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # a number of more digits than Python prints
        return "of a number with thousands of digits"


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} can't be read: it is not a file")
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size >> 20} MB; an image list has {MAX_BYTES >> 20} MB at most")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None


def _text(path: Path) -> str:
    try:
        return decode(_content(path))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8. {REMEDY}") from None
