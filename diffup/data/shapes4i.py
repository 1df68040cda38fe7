"""`shapes4i`: the embedded data set. Procedural scenes of 16 classes in 4 folds, written to disk in VOC layout.

    python -m diffup.data.shapes4i --out DIR [--images 90] [--seed 0]

A class is a combination of a form and an appearance, so its name has meaning and text can find it: "striped red ring".
Distractors share its form, its colour or its pattern, in most images: neither attribute alone is enough. The embedded
backbones were trained on other combinations only (`tools.train_embedded`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffup.data.render import COMBINATIONS, Combination, render
from diffup.errors import UserError, command_line
from diffup.home import home

VERSION = 1
CLASS_COMBINATIONS = (
    Combination("striped", "red", "ring"),
    Combination("dotted", "blue", "square"),
    Combination("plain", "green", "star"),
    Combination("checkered", "yellow", "disc"),
    Combination("dotted", "red", "triangle"),
    Combination("plain", "blue", "cross"),
    Combination("checkered", "green", "heart"),
    Combination("striped", "purple", "crescent"),
    Combination("plain", "yellow", "ring"),
    Combination("striped", "cyan", "square"),
    Combination("dotted", "purple", "star"),
    Combination("checkered", "red", "cross"),
    Combination("striped", "green", "disc"),
    Combination("checkered", "blue", "triangle"),
    Combination("plain", "cyan", "heart"),
    Combination("dotted", "yellow", "crescent"),
)
CLASSES = tuple(thing.name for thing in CLASS_COMBINATIONS)
FOLDS = tuple(CLASSES[i : i + 4] for i in range(0, 16, 4))
OTHERS = tuple(thing for thing in COMBINATIONS if thing not in CLASS_COMBINATIONS)
IMAGES_PER_CLASS = 60
SIZES = ((160, 160), (144, 176), (176, 144), (160, 192))
BORDER = 255


def _like(thing: Combination, attribute: str, rng: np.random.Generator) -> Combination:
    """A non-class combination that shares one attribute with `thing` and differs in the other two."""
    fits = [
        other
        for other in OTHERS
        if sum(getattr(other, a) == getattr(thing, a) for a in ("form", "colour", "pattern")) == 1
        and getattr(other, attribute) == getattr(thing, attribute)
    ]
    return fits[int(rng.integers(len(fits)))]


def draw_things(target: int, rng: np.random.Generator) -> list[Combination]:
    """What an image of class `target` shows: it once or twice, look-alikes, and other classes, in random order."""
    thing = CLASS_COMBINATIONS[target]
    things = [thing] * (2 if rng.random() < 0.25 else 1)
    if rng.random() < 0.85:
        things.append(_like(thing, "colour", rng))
    if rng.random() < 0.7:
        things.append(_like(thing, "form", rng))
    if rng.random() < 0.3:
        things.append(_like(thing, "pattern", rng))
    others = [i for i in range(len(CLASS_COMBINATIONS)) if i != target]
    for _ in range(int(rng.integers(1, 3))):
        things.append(CLASS_COMBINATIONS[others[int(rng.integers(len(others)))]])
    return [things[i] for i in rng.permutation(len(things))]


def palette() -> list[int]:
    """VOC's colour map as a flat list of 768 values: of a label's bits, every third belongs to one channel."""
    shifts = [(label, channel) for label in range(256) for channel in range(3)]
    return [sum((label >> 3 * i + channel & 1) << 7 - i for i in range(3)) for label, channel in shifts]


def label_map(owner: np.ndarray, objects: Sequence[Combination]) -> np.ndarray:
    """VOC labels of a scene: 0 background (distractors too), class index + 1, 255 on the border between things."""
    values = [CLASSES.index(thing.name) + 1 if thing in CLASS_COMBINATIONS else 0 for thing in objects]
    label = np.asarray([*values, 0], np.uint8)[owner]
    edge = np.zeros(owner.shape, bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    out = label.copy()
    out[edge] = BORDER
    return out


def generate(out: Path, *, images: int = IMAGES_PER_CLASS, seed: int = 0, progress: bool = True) -> Path:
    """Write the data set to a new folder `out`, all of it or nothing.

    Args:
        out: folder that must not exist yet.
        images: images drawn for each of the 16 classes (others appear in them too).
        seed: of everything drawn.
        progress: show a progress bar.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: `out` exists, or `images` is below 2.
    """
    if images < 2:
        raise UserError(f"images per class must be 2 or more, not {images}")
    if out.exists():
        raise UserError(f"{out} exists; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        part = Path(folder) / out.name
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (part / name).mkdir(parents=True)
        ids, colours = [], palette()
        for index in tqdm(range(16 * images), desc="shapes4i", unit="image", disable=not progress):
            rng = np.random.default_rng((seed, VERSION, index))
            height, width = SIZES[int(rng.integers(len(SIZES)))]
            scene = render(draw_things(index % 16, rng), rng, height, width)
            ids.append(f"{index % 16:02d}_{index // 16:04d}")
            Image.fromarray(scene.image).save(part / "JPEGImages" / f"{ids[-1]}.jpg", quality=92)
            mask = Image.fromarray(label_map(scene.owner, scene.objects))
            mask.putpalette(colours)
            mask.save(part / "SegmentationClass" / f"{ids[-1]}.png")
        (part / "ImageSets" / "Segmentation" / "all.txt").write_text("\n".join(sorted(ids)) + "\n")
        document = {
            "name": "shapes4i",
            "layout": "voc",
            "classes": list(CLASSES),
            "folds": [list(fold) for fold in FOLDS],
            "ignore_index": BORDER,
        }
        (part / "dataset.json").write_text(json.dumps(document, indent=1) + "\n")
        os.replace(part, out)
    return out / "dataset.json"


def ensure(root: Path | None = None, *, images: int = IMAGES_PER_CLASS, seed: int = 0, progress: bool = True) -> Path:
    """Path of ``dataset.json`` of shapes4i, generated on first use.

    Args:
        root: folder for data sets, ``$DIFFUP_HOME/datasets`` by default.
        images, seed, progress: see `generate`.
    """
    folder = (root or home() / "datasets") / f"shapes4i-v{VERSION}-{images}-{seed}"
    if not (folder / "dataset.json").is_file():
        return generate(folder, images=images, seed=seed, progress=progress)
    return folder / "dataset.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: generate the data set into a folder."""
    parser = argparse.ArgumentParser(prog="python -m diffup.data.shapes4i", description="Generate shapes4i.")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--images", type=int, default=IMAGES_PER_CLASS, help="images per class")
    parser.add_argument("--seed", type=int, default=0)
    print(generate(**vars(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(command_line(main))
