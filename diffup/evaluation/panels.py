"""Qualitative panels: what an episode shows and what the method made of it, as one labelled row of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffup.config import parse_annotation, support_kinds
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import nearest
from diffup.evaluation.evaluate import Evaluation
from diffup.evaluation.metrics import counts, episode_ious, ranked
from diffup.evaluation.scoring import Prediction

if TYPE_CHECKING:
    import pandas as pd

SIDE, GAP, HEAD = 160, 4, 16  # pixels: of a tile, between tiles, of the line of text above them
SHARED = 8  # episodes that every cell of a manifest shows: its first ones, whose classes come in turn
TINT = {"support": (255, 170, 0), "prediction": (0, 150, 255), "truth": (0, 200, 90)}


def shown_episodes(table: pd.DataFrame) -> list[int]:
    """Positions of the episodes to show: the first `SHARED`, and the worst, median and best by IoU of all.

    Args:
        table: of `diffup.evaluation.evaluate.evaluate`.
    """
    own = ranked(table["inter_fg"].to_numpy(), table["union_fg"].to_numpy())
    return sorted({*range(min(SHARED, len(table))), *own.values()})


def panel(what: Evaluation, episode: Episode, prediction: Prediction, cues: CueSource) -> Image.Image:
    """Supports with their cues, query, prior mean and deviation (of a trained model, else the score map), prediction
    with its IoU, ground truth: a row of square tiles, each named above.
    """
    dataset = cues.dataset
    query = dataset.image(episode.query)
    kinds = support_kinds(what.annotation, what.shots)
    probability = prediction.probability.numpy()
    mask = probability > what.sample.threshold
    truth = dataset.mask(episode.query, episode.class_index)
    inter, union, _, _ = counts(mask, nearest(truth, (mask.shape[0], mask.shape[1])))
    iou = 100 * float(episode_ious(inter, union)[0])
    tiles: list[tuple[str, Image.Image]] = []
    if kinds:
        name = f"{len(kinds)} supports" if len(kinds) > 1 else f"support: {kinds[0]}"
        tiles.append((name, _mosaic([_support(episode, i, kind, cues) for i, kind in enumerate(kinds)])))
    prompt = "text: " if "text" in parse_annotation(what.annotation) else ""
    tiles.append((f"query: {prompt}{dataset.classes[episode.class_index]}", _tile(Image.fromarray(query))))
    if prediction.prior is not None and prediction.variance is not None:
        tiles.append(("prior mean", _heat(prediction.prior.numpy())))
        tiles.append(("UAPF deviation", _heat(prediction.variance.clamp_min(0).sqrt().numpy())))
    else:
        tiles.append(("score", _heat(probability)))
    predicted = nearest(mask.astype(np.uint8), (query.shape[0], query.shape[1]))
    tiles.append((f"prediction: IoU {iou:.1f}", _tinted(query, predicted == 1, TINT["prediction"])))
    tiles.append(("ground truth", _tinted(query, truth == 1, TINT["truth"])))
    return _row(tiles)


def _support(episode: Episode, number: int, kind: str, cues: CueSource) -> Image.Image:
    image = cues.dataset.image(episode.supports[number])
    drawn = cues.annotation(episode.supports[number], episode.class_index, kind) == 1
    return _tinted(image, drawn, TINT["support"])


def _mosaic(tiles: Sequence[Image.Image]) -> Image.Image:
    side = math.ceil(math.sqrt(len(tiles)))
    part = SIDE // side
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile.resize((part, part), Image.Resampling.BILINEAR), (i % side * part, i // side * part))
    return sheet


def _row(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    sheet = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE + HEAD), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (name, tile) in enumerate(tiles):
        while len(name) > 4 and draw.textlength(name, font=font) > SIDE:
            name = name[:-2] + "…"
        draw.text((i * (SIDE + GAP), 1), name, fill="black", font=font)
        sheet.paste(tile, (i * (SIDE + GAP), HEAD))
    return sheet


def _tile(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _tinted(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    out = image_HW3.astype(np.float32)
    out[mask_HW] = 0.45 * out[mask_HW] + 0.55 * np.asarray(colour, np.float32)
    return _tile(Image.fromarray(out.astype(np.uint8)))


def _heat(map_HW: NDArray[np.floating[Any]]) -> Image.Image:
    top = float(map_HW.max()) or 1.0
    return _tile(Image.fromarray((255 * map_HW / top).clip(0, 255).astype(np.uint8)).convert("RGB"))
