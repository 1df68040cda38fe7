"""The README's picture, from a result store of the quickstart and its checkpoint.

    python -m tools.readme_figure --results ~/.diffup/results/quickstart --out docs/images/shapes4i.jpg

One row per annotation: support, query, then prior mean and prediction on the training backbone and on a better one that
was swapped in without re-training, and the ground truth, painted as panels are (`diffup.evaluation.drawing`). Row r is
episode r of the manifest, so nobody chose it. Masks come from the Python API, prior means from the panels in the store.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from analysis.results import load_results, read_episodes, where
from diffup import DiffUp, Support
from diffup.config import CueConfig
from diffup.data.dataset import open_dataset, resolve_dataset
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError, command_line
from diffup.evaluation.drawing import ANNOTATION, GAP, HEAD, PREDICTION, SIDE, TRUTH, fitted, painted

ANNOTATIONS = ("mask", "box", "scribble")
BACKBONES = {"tiny_resnet": "trained on tiny_resnet", "tiny_regnet": "swapped to tiny_regnet, no re-training"}
TILE, SPACE, LINE = 232, 12, 34  # pixels
QUALITY = 80
PRIOR = 2  # place of the prior mean among a panel's tiles


def cue_of(image: NDArray[np.uint8], annotation_HW: NDArray[np.uint8], kind: str) -> Support:
    """The support of an episode, as the Python API takes it."""
    drawn: Any = annotation_HW == 1
    if kind == "box":
        parts, _ = ndimage.label(drawn)
        drawn = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]
    return Support(image, drawn, kind)


def figure(store: Path) -> Image.Image:
    """The picture.

    Raises:
        UserError: the store lacks a cell, an episode or a panel of the quickstart.
    """
    results = load_results(store)
    cells = where(results.cells, variant="diffup", shots=1, status="finished", fold=0)
    data = open_dataset(resolve_dataset("shapes4i"))
    cues = CueSource(data, CueConfig())
    if cells.empty:
        raise UserError(f"{store} has no finished cell of the quickstart")
    trained = DiffUp.load(store / str(cells.checkpoint.iloc[0]))
    models = {name: trained.swap_backbone(name) for name in BACKBONES}
    step = TILE + SPACE
    sheet = Image.new("RGB", (7 * step - SPACE, 2 * LINE + len(ANNOTATIONS) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(26)
    top = bottom = 2 * LINE

    def head(line: int, first: int, last: int, words: str) -> None:
        draw.text(((first + last) * step / 2 + TILE / 2, (line + 0.5) * LINE), words, "black", font, "mm")

    def show(column: int, image: Image.Image, words: str = "") -> None:
        nonlocal bottom
        left, bottom = column * step + (TILE - image.width) // 2, max(bottom, top + image.height)
        sheet.paste(image, (left, top))
        draw.text((left + 8, top + image.height - 6), words, "white", font, "ls", stroke_width=3, stroke_fill="black")

    for column, words in ((0, "support"), (1, "query"), (6, "ground truth")):
        head(1, column, column, words)
    for left, words in zip((2, 4), BACKBONES.values(), strict=True):
        head(0, left, left + 1, words)
        head(1, left, left, "prior mean")
        head(1, left + 1, left + 1, "DiffUp")
    for row, kind in enumerate(ANNOTATIONS):
        for left, backbone in zip((2, 4), BACKBONES, strict=True):
            found = where(cells, backbone=backbone, annotation=kind)
            panel = store / str(found.key.iloc[0] if len(found) else "") / "panels" / f"episode_{row:04d}.jpg"
            if len(found) != 1 or not panel.is_file():
                raise UserError(f"{store}: no panel of episode {row} of 1-shot {kind} on {backbone}")
            episode: Any = read_episodes(store, found.key).set_index("episode").loc[row]
            query, support = data.image(episode["query"]), data.image(episode["supports"][0])
            annotation = cues.annotation(episode["supports"][0], int(episode["class_id"]), kind)
            truth = data.mask(episode["query"], int(episode["class_id"]))
            mask = models[backbone].segment(query, [cue_of(support, annotation, kind)]).mask & (truth != 255)
            iou = 100 * (mask & (truth == 1)).sum() / (mask | (truth == 1)).sum()
            size = fitted(query.shape[1], query.shape[0], TILE)
            width, height = fitted(query.shape[1], query.shape[0])
            start = PRIOR * (SIDE + GAP) + (SIDE - width) // 2
            prior = Image.open(panel).crop((start, HEAD, start + width, HEAD + height))
            show(left, prior.resize(size, Image.Resampling.LANCZOS))
            show(left + 1, painted(query, mask, PREDICTION, side=TILE, grey=True), f"IoU {iou:.0f} %")
            if left == 2:
                show(0, painted(support, annotation == 1, ANNOTATION, side=TILE, kind=kind), kind)
                show(1, Image.fromarray(query).resize(size, Image.Resampling.BICUBIC))
                show(6, painted(query, truth == 1, TRUTH, side=TILE, grey=True))
        top = bottom + SPACE
    return sheet.crop((0, 0, sheet.width, bottom))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.readme_figure", description="The README's picture.")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="of experiments/quickstart.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jpg")
    options = parser.parse_args(arguments)
    figure(options.results.expanduser()).save(options.out, quality=QUALITY)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
