"""Qualitative panels: support with its annotation, query, prediction and ground truth side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.config import parse_annotation
from diffup.episodes import Episode
from diffup.evaluate import Evaluation, Prediction
from diffup.protocols import nearest
from diffup.supply import CueSource

SIDE = 160
TINT = {"support": (255, 170, 0), "prediction": (0, 150, 255), "truth": (0, 200, 90)}


def _tile(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _tinted(image_HW3: NDArray[np.uint8], mask_HW: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    out = image_HW3.astype(np.float32)
    out[mask_HW] = 0.45 * out[mask_HW] + 0.55 * np.asarray(colour, np.float32)
    return _tile(Image.fromarray(out.astype(np.uint8)))


def _heat(map_HW: NDArray[np.floating[Any]]) -> Image.Image:
    top = float(map_HW.max()) or 1.0
    return _tile(Image.fromarray((255 * map_HW / top).clip(0, 255).astype(np.uint8)).convert("RGB"))


def panel(what: Evaluation, episode: Episode, prediction: Prediction, cues: CueSource) -> Image.Image:
    """One row of square tiles: first support (if any), query, probability, deviation, prediction, ground truth."""
    dataset = cues.dataset
    query = dataset.image(episode.query)
    tiles = []
    visual = [kind for kind in parse_annotation(what.annotation) if kind != "text"]
    if visual and what.shots:
        support = dataset.image(episode.supports[0])
        drawn = cues.annotation(episode.supports[0], episode.class_index, visual[0]) == 1
        tiles.append(_tinted(support, drawn, TINT["support"]))
    probability = prediction.probability.numpy()
    tiles += [_tile(Image.fromarray(query)), _heat(probability)]
    if prediction.variance is not None:
        tiles.append(_heat(prediction.variance.clamp_min(0).sqrt().numpy()))
    predicted = nearest((probability > what.sample.threshold).astype(np.uint8), (query.shape[0], query.shape[1]))
    tiles.append(_tinted(query, predicted == 1, TINT["prediction"]))
    tiles.append(_tinted(query, dataset.mask(episode.query, episode.class_index) == 1, TINT["truth"]))
    sheet = Image.new("RGB", (len(tiles) * (SIDE + 4) - 4, SIDE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * (SIDE + 4), 0))
    return sheet
