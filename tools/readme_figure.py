"""The README's picture, from the panels that the quickstart keeps in its result store.

    python -m tools.readme_figure --results ~/.diffup/results/quickstart --out docs/images/shapes4i.jpg

One row per annotation: support, query, then prior mean and prediction on the training backbone and on a better one that
was swapped in without re-training, and the ground truth. Row r shows the first episode of the fold's class r in the
manifest, so nobody chose it. Runs no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from analysis.results import Results, load_results, where
from diffup.errors import UserError, command_line
from diffup.evaluation.metrics import episode_ious
from diffup.evaluation.panels import GAP, HEAD, SIDE

ANNOTATIONS = ("mask", "box", "scribble")
BACKBONES = {"tiny_resnet": "trained on tiny_resnet", "tiny_regnet": "swapped to tiny_regnet, no re-training"}
SUPPORT, QUERY, PRIOR, PREDICTION, TRUTH = 0, 1, 2, 4, 5  # places of a panel's tiles
TILE, SPACE, LINE = 232, 12, 34  # pixels
QUALITY = 88


def tile(panel: Image.Image, place: int) -> Image.Image:
    """One tile of a panel, enlarged."""
    left = place * (SIDE + GAP)
    return panel.crop((left, HEAD, left + SIDE, HEAD + SIDE)).resize((TILE, TILE), Image.Resampling.LANCZOS)


def episode(results: Results, backbone: str, annotation: str, row: int) -> tuple[Image.Image, float]:
    """Panel and IoU in percent of the 1-shot DiffUp cell's episode number `row`.

    Raises:
        UserError: the store has no such cell, or the cell no such panel.
    """
    cells = where(results.cells, backbone=backbone, annotation=annotation, shots=1, variant="diffup", status="finished")
    if len(cells) != 1:
        raise UserError(f"{results.root}: {len(cells)} cells of DiffUp on {backbone}, 1-shot {annotation}; expected 1")
    key = str(cells.key.iloc[0])
    path = results.root / key / "panels" / f"episode_{row:04d}.jpg"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run experiments/quickstart.py again with --force")
    counts = results.counts[key]
    iou = episode_ious(counts.counts[:, 0], counts.counts[:, 1])[counts.episode.tolist().index(row)]
    return Image.open(path), 100 * float(iou)


def figure(results: Results) -> Image.Image:
    """The picture."""
    step = TILE + SPACE
    sheet = Image.new("RGB", (7 * step - SPACE, 2 * LINE + len(ANNOTATIONS) * step - SPACE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(26)

    def text(line: int, first: int, last: int, words: str) -> None:
        centre = (first * step + last * step + TILE) / 2
        draw.text((centre, line * LINE + LINE / 2), words, fill="black", font=font, anchor="mm")

    for column, words in ((0, "support"), (1, "query"), (6, "ground truth")):
        text(1, column, column, words)
    for number, words in enumerate(BACKBONES.values()):
        left = 2 + 2 * number
        text(0, left, left + 1, words)
        text(1, left, left, "prior mean")
        text(1, left + 1, left + 1, "DiffUp")
    for row, annotation in enumerate(ANNOTATIONS):
        top = 2 * LINE + row * step
        for number, backbone in enumerate(BACKBONES):
            panel, iou = episode(results, backbone, annotation, row)
            tiles = {2 + 2 * number: (PRIOR, ""), 3 + 2 * number: (PREDICTION, f"IoU {iou:.0f} %")}
            if not number:
                tiles |= {0: (SUPPORT, annotation), 1: (QUERY, ""), 6: (TRUTH, "")}
            for column, (place, words) in tiles.items():
                sheet.paste(tile(panel, place), (column * step, top))
                if words:
                    corner = (column * step + 8, top + TILE - 6)
                    draw.text(corner, words, "white", font, "ls", stroke_width=3, stroke_fill="black")
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.readme_figure", description="The README's picture.")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="of experiments/quickstart.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jpg")
    options = parser.parse_args(arguments)
    figure(load_results(options.results.expanduser())).save(options.out, quality=QUALITY)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
