"""COCO: an instances JSON with polygons or run lengths, and its images.

Crowd regions are void where no object lies on them. Images are taken as they are stored, whatever their EXIF
orientation, as COCO means them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from diffup.data.importers.pictures import Draw, Found, Mask, Picture, Thing, image_file, label_of, size_of
from diffup.data.layouts.instances import Instance, categories_of, read_instances
from diffup.errors import UserError


def read(source: Path, images: Path | None = None) -> Found:
    """The annotations of a JSON.

    Args:
        source: the JSON, or a folder with one (also in ``annotations/``).
        images: folder of the images; by default that of the JSON, the one above, or ``images/`` in these.

    Raises:
        UserError: there is no JSON or there are several, or it is no instances JSON.
    """
    path = source if source.is_file() else _only(source)
    names = categories_of(path)
    read = read_instances(path, names, anywhere=True)
    try:
        found = Found(problems=list(read.problems), classes=[label_of(name) for name in names])
    except UserError as error:
        raise UserError(f"{path}: a category {error}") from None
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    folders = [images] if images else [base, base / "images", path.parent]
    for entry in read.images if not read.problems else ():
        name = str(entry["file_name"])
        try:
            image = image_file(name, folders, images or base)
            things = [_thing(found.classes[one.class_index], one) for one in read.of(entry)]
            size = size_of(entry.get("height"), entry.get("width"))
            found.add(Picture(image, name.replace("\\", "/"), path, things, size, upright=False), f"{name!r:.200}")
        except UserError as error:
            found.problems.append(f"{path}: image {name!r:.200} {error}")
    return found


def _only(folder: Path) -> Path:
    paths = sorted(path for path in (*folder.glob("*.json"), *folder.glob("annotations/*.json")))
    if len(paths) == 1:
        return paths[0]
    some = f"several JSON files ({', '.join(path.name for path in paths[:5])}); give the one" if paths else "no JSON;"
    raise UserError(f"{folder} holds {some} to import by its path")


def _thing(label: str, one: Instance) -> Thing:
    return Thing(label, f"annotation {one.annotation}", _draw(one), level=-1 if one.crowd else 0, void=one.crowd)


def _draw(one: Instance) -> Draw:
    def draw(height: int, width: int) -> tuple[Mask, bool]:
        counts, beyond = one.runs(height, width)
        if isinstance(counts, str):
            raise UserError(f"has no valid segmentation ({counts})")
        return np.asarray(masks.decode({"size": [height, width], "counts": counts}), np.bool_), beyond

    return draw
