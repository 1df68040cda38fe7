"""Class masks merged by pycocotools' own COCO class: the judge of `diffup.data.layouts.coco`, which doesn't use it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO


def oracle(document: dict[str, Any]) -> COCO:
    """An instances document as pycocotools indexes it."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def merged(coco: COCO, image_id: int, category_ids: set[int]) -> NDArray[np.uint8]:
    """1 where an instance of the categories lies, 255 where only a crowd of them does, else 0."""
    size = (coco.imgs[image_id]["height"], coco.imgs[image_id]["width"])
    things, crowds = np.zeros(size, bool), np.zeros(size, bool)
    for entry in coco.dataset["annotations"]:
        if entry["image_id"] == image_id and entry["category_id"] in category_ids:
            (crowds if entry.get("iscrowd") else things).__ior__(coco.annToMask(entry) == 1)
    return np.where(things, 1, np.where(crowds, 255, 0)).astype(np.uint8)
