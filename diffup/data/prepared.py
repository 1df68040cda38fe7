"""The folder that `prepare` makes: checked before anything in it is changed.

Links may be replaced; files only in a folder with `MARK`, which is put there first. Elsewhere they are the user's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffup.errors import UserError
from diffup.files import PART

MARK = ".prepared"  # an empty file
DESCRIPTIONS = ("dataset.json", "report.json")
# Files that were being written when a run was stopped, as diffup/files.py names them.
LEFT = re.compile(rf"\.(train\.txt|val\.txt|report\.json|.+\.png)\.[0-9a-f]{{8}}{re.escape(PART)}")


def make_folder(
    out: Path, tops: Iterable[Path], read: Iterable[Path], links: Mapping[Path, Path], files: Iterable[Path] = ()
) -> None:
    """Make `out` with its links, without what a run that was stopped has left there.

    Args:
        out: the folder.
        tops: folders that it may not be.
        read: folders of the user's files, which it may not be or be inside of.
        links: targets of links by their places, in `out` or in a folder in it.
        files: what will be written into it, besides `DESCRIPTIONS`.

    Raises:
        UserError: `out` is such a folder, or something that is not ours is in the way; nothing was changed.
    """
    real = out.resolve()
    for folder in (*(top for top in tops if top.resolve() == real), *read):
        if real.is_relative_to(folder.resolve()):
            raise UserError(f"--out {out} is {folder} or inside of it, whose files are only read; choose another --out")
    places = [*links, *files, *(out / name for name in DESCRIPTIONS)]
    folders = {place.parent for place in places}
    replaced = {folder for folder in folders - {out} if folder.is_symlink()}
    ours = _is_ours(out)
    if blocked := [p for p in places if p.parent not in replaced and _in_the_way(p, links.get(p), ours)]:
        more = f" (and {len(blocked) - 1} more)" if len(blocked) > 1 else ""
        raise UserError(
            f"{blocked[0]}{more} is in the way and may be a file of yours; remove it or choose another --out. "
            "Nothing was changed"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for folder in replaced:
        folder.unlink()
    for folder in filter(Path.is_dir, folders):
        for left in [path for path in folder.iterdir() if LEFT.fullmatch(path.name) and path.is_file()]:
            left.unlink()
    for place, target in links.items():
        _link(place, target)


def _is_ours(out: Path) -> bool:
    """Whether `prepare` has made a folder; one made before there was a `MARK` has our report."""
    try:
        return (out / MARK).is_file() or b'"fingerprint"' in (out / "report.json").read_bytes()
    except OSError:
        return False


def _in_the_way(place: Path, target: Path | None, ours: bool) -> bool:
    if place.is_symlink() or not place.exists():
        return False
    if place.is_dir():
        return target is None or any(place.iterdir())
    return not ours or (target is not None and place.resolve() == target.resolve())


def _link(place: Path, target: Path) -> None:
    """Make `place` a symbolic link to `target`, whatever it was before; a folder must be empty."""
    if place.is_symlink() and Path(os.readlink(place)) == target:
        return
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=target.is_dir())
