"""Make a data set of images that were annotated with labelme or CVAT, of a COCO JSON, or of folders of masks.

    diffup data import labelme FOLDER OUT
    diffup data import cvat task/annotations.xml OUT --images task/images
    diffup data import coco annotations.json OUT --images FOLDER
    diffup data import masks FOLDER OUT

OUT gets upright images, label images, a dataset.json with proposed folds, and contact_sheet.jpg, which shows masks on
images of each class. The annotations are only read. Nothing is written where a file is damaged or missing: all of them
are named, and --skip-damaged leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffup.commands.options import CountOrAuto, Folder, Text, option, parse
from diffup.data.importers.write import import_dataset, words
from diffup.files import as_path

Source = Annotated[Path, *option("SOURCE", Path)]
Out = Annotated[Path, *option("OUT", Path)]


@dataclass(frozen=True, kw_only=True)
class ImportData:
    """Options of the command."""

    format: tyro.conf.Positional[Literal["labelme", "cvat", "coco", "masks"]]
    """what the annotations were made with"""
    source: tyro.conf.Positional[Source]
    """folder of the annotations; for cvat and coco also their file"""
    out: tyro.conf.Positional[Out]
    """folder to make: empty or new, and outside of the source"""
    images: Folder = None
    """folder of the images, where the annotations do not say it"""
    name: Text = ""
    """of the data set, in tables (default: that of OUT)"""
    folds: CountOrAuto = 0
    """number of folds (default: 4 from eight classes on, else 2)"""
    skip_damaged: bool = False
    """leave out images that are damaged or missing"""


def main(argv: Sequence[str]) -> int:
    """Import a data set; returns the exit code.

    Raises:
        UserError: see `diffup.data.importers.write.import_dataset`.
    """
    asked = parse(ImportData, argv, prog="diffup data import", description=__doc__ or "")
    imported = import_dataset(
        asked.format,
        as_path(asked.source, "SOURCE"),
        as_path(asked.out, "OUT"),
        images=None if asked.images is None else as_path(asked.images, "--images"),
        name=asked.name,
        folds=asked.folds,
        skip_damaged=asked.skip_damaged,
    )
    print(words(imported))
    return 0
