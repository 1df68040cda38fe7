"""A toy data set and a toy backbone: enough to train and evaluate in a second, without files or weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 220], [220, 200, 40], [180, 40, 200], [40, 200, 210]])


class ToyDataset:
    """Six classes, coloured discs on grey noise, three folds of two; records which classes were looked at."""

    name = "toy"
    classes = ("red", "green", "blue", "yellow", "violet", "cyan")
    folds = ((0, 1), (2, 3), (4, 5))
    fingerprint = "toytoytoytoy"

    def __init__(self, per_class: int = 6) -> None:
        self.image_ids = tuple(f"{c}_{i}" for c in range(6) for i in range(per_class))
        self.areas = {image: {int(image[0]): int(self._place(image).sum())} for image in self.image_ids}
        self.sizes = dict.fromkeys(self.image_ids, (48, 64))
        self.asked: set[int] = set()
        self.asked_pairs: list[tuple[str, int]] = []

    def _place(self, image_id: str) -> NDArray[np.bool_]:
        rng = np.random.default_rng([int(part) for part in image_id.split("_")])
        y, x = np.mgrid[:48, :64]
        cy, cx = rng.uniform(14, 34), rng.uniform(16, 48)
        return (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(8, 14) ** 2

    def image(self, image_id: str) -> NDArray[np.uint8]:
        rng = np.random.default_rng([7, *(int(part) for part in image_id.split("_"))])
        picture = rng.integers(90, 130, (48, 64, 3))
        picture[self._place(image_id)] = COLOURS[int(image_id.split("_")[0])]
        return picture.astype(np.uint8)

    def mask(self, image_id: str, class_index: int) -> NDArray[np.uint8]:
        self.asked.add(class_index)
        self.asked_pairs.append((image_id, class_index))
        if int(image_id.split("_")[0]) != class_index:
            return np.zeros((48, 64), np.uint8)
        return self._place(image_id).astype(np.uint8)

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return self.folds[fold]

    def base_classes(self, fold: int) -> tuple[int, ...]:
        return tuple(c for c in range(6) if c not in self.folds[fold])

    def eligible(self, class_index: int, protocol: object, split: str = "test") -> tuple[str, ...]:
        return self.pool(class_index)

    def pool(self, class_index: int) -> tuple[str, ...]:
        return tuple(i for i in self.image_ids if int(i.split("_")[0]) == class_index)


class ToyBackbone:
    """Three stages of colour features at different sizes and widths; its text knows the colour words."""

    name, weights, loaded_hash, has_text = "toy", "random:0", "0", True

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        centred = images_BCHW - 0.45
        out = []
        for stride, repeat in ((4, 1), (8, 2), (16, 3)):
            small = F.avg_pool2d(centred, stride)
            out.append(torch.cat([small**power for power in range(1, repeat + 1)], dim=1))
        return tuple(out)

    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.avg_pool2d(images_BCHW - 0.45, 8), dim=1)

    def embed_text(self, prompts: list[str]) -> torch.Tensor:
        rows = []
        for prompt in prompts:
            found = [i for i, name in enumerate(ToyDataset.classes) if name in prompt]
            rows.append(torch.tensor(COLOURS[found[0]] / 255 - 0.45, dtype=torch.float32))
        return F.normalize(torch.stack(rows), dim=1)
