"""What ``diffup predict`` reads: queries from files, patterns and folders, and supports in their order. No torch."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffup.data.images import IMAGE_SUFFIXES
from diffup.errors import UserError
from diffup.files import as_path

ANNOTATIONS = ("mask", "box", "scribble", "points")
FILES = ("mask", "scribble")  # of ANNOTATIONS those that are given as a picture
NUMBERS = {"box": 4, "points": 2}
LARGEST = 10**9  # pixels
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True)
class Query:
    """A picture to segment.

    Attributes:
        path: as it was found.
        name: of its results, without suffix; for a folder's picture with its place in the folder (``sub/cow``).
    """

    path: Path
    name: str


def find_queries(asked: Sequence[str]) -> list[Query]:
    """Pictures that are named by files, patterns such as ``photos/*.jpg`` and folders; each once, in order.

    A folder stands for all pictures in it and below, hidden ones left out. Neither folders nor patterns find files of
    other kinds.

    Raises:
        UserError: a file that is missing, or a pattern or folder without pictures.
    """
    found: dict[Path, Query] = {}
    for text in asked:
        for query in _expanded(text):
            found.setdefault(query.path.resolve(), query)
    if not found:
        raise UserError("name at least one picture to segment: a file, a pattern or a folder")
    return list(found.values())


def _expanded(text: str) -> Iterator[Query]:
    if not text:
        raise UserError("a QUERY is empty; name a picture, a pattern or a folder")
    path = as_path(text, "QUERY")
    try:
        is_folder, is_file = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise UserError(f"{text!r:.200} can't be read ({error}); name a picture, a pattern or a folder") from error
    if is_folder:
        pictures = list(_in_folder(path))
        if not pictures:
            raise UserError(f"{text} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
        yield from pictures
    elif is_file:
        yield Query(path, path.stem)
    elif glob.has_magic(text):
        found = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
        matches = [match for match in found if _is_picture(match)]
        if not matches:
            raise UserError(f"no picture matches {text}")
        yield from (Query(match, match.stem) for match in matches)
    else:
        raise UserError(f"{text} does not exist; name a picture, a pattern such as 'photos/*.jpg', or a folder")


def _in_folder(folder: Path) -> Iterator[Query]:
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and _is_picture(here / name):
                yield Query(here / name, (here / name).relative_to(folder).with_suffix("").as_posix())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


@dataclass(frozen=True)
class Shown:
    """A support of the command line.

    Attributes:
        path: of the picture.
        kind: of its annotation, one of `ANNOTATIONS`.
        annotation: as it was given: a path, or numbers.
    """

    path: str
    kind: str
    annotation: str

    def files(self) -> list[str]:
        """Paths of what is read."""
        return [self.path, self.annotation] if self.kind in FILES else [self.path]


def numbers(text: str, each: int) -> NDArray[Any]:
    """Rows of numbers from text such as ``"1,2;3,4"``; whole numbers stay whole.

    Raises:
        UserError: something else, or rows of another length than `each`.
    """
    form = "X0,Y0,X1,Y1" if each == 4 else "X,Y"
    rows = [[part.strip() for part in row.split(",")] for row in text.split(";") if row.strip()]
    try:
        values = [[int(part) if WHOLE.fullmatch(part) else float(part) for part in row] for row in rows]
    except ValueError:
        values = []
    if not values or any(len(row) != each for row in values):
        raise UserError(f"{text!r:.60} is not {form}, nor several of them with ; between (in pixels)")
    if any(abs(value) > LARGEST for row in values for value in row):
        raise UserError(f"{text!r:.60} holds a number that is too large for pixels")
    return np.asarray(values)


def in_order(argv: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[Shown]:
    """The supports, each with the annotation that follows it.

    Args:
        argv: the command line, which says in which order the options came.
        given: their values by option, ``support`` and `ANNOTATIONS`, in order.

    Raises:
        UserError: an annotation without a picture, a picture without an annotation, or several of one.
    """
    left = {option: iter(values) for option, values in given.items()}
    flags = (token.removeprefix("--").partition("=")[0] for token in argv if token.startswith("--"))
    shown: list[Shown] = []
    picture: str | None = None
    for option in (flag for flag in flags if flag in left):
        value = next(left[option])
        if option == "support":
            if picture is not None:
                raise UserError(_lacking(picture))
            picture = value
        elif picture is None:
            raise UserError(
                f"--{option} {value:.60} follows no --support: give each support's picture, then its one annotation "
                f"(several boxes or points: with ; between)"
            )
        else:
            shown.append(Shown(picture, option, value))
            picture = None
    if picture is not None:
        raise UserError(_lacking(picture))
    return shown


def _lacking(picture: str) -> str:
    return (
        f"--support {picture} has no annotation; say where the class is: --mask, --box, --scribble or --points after it"
    )
