"""Qualitative panels: what an episode shows and what the method made of it, as one labelled row of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from diffup.config import parse_annotation, support_kinds
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import nearest
from diffup.evaluation.drawing import (
    ANNOTATION,
    PREDICTION,
    SIDE,
    TRUTH,
    fitted,
    heat,
    mosaic,
    mosaic_side,
    painted,
    row_of,
    tile,
)
from diffup.evaluation.evaluate import Evaluation
from diffup.evaluation.metrics import counts, episode_ious, ranked
from diffup.evaluation.scoring import Prediction

if TYPE_CHECKING:
    import pandas as pd

SHARED = 8  # episodes that every cell of a manifest shows: its first ones, whose classes come in turn


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

    The first and last tiles do not depend on the method; `analysis.report.strips` shows them once for several.
    """
    dataset = cues.dataset
    query = dataset.image(episode.query)
    shape = (query.shape[0], query.shape[1])
    kinds = support_kinds(what.annotation, what.shots)
    probability = prediction.probability.numpy()
    mask = probability > what.sample.threshold
    truth = dataset.mask(episode.query, episode.class_index)
    inter, union, _, _ = counts(mask, nearest(truth, (mask.shape[0], mask.shape[1])))
    iou = 100 * float(episode_ious(inter, union)[0])
    tiles: list[tuple[str, Image.Image]] = []
    if kinds:
        name = f"{len(kinds)} supports" if len(kinds) > 1 else f"support: {kinds[0]}"
        side = SIDE // mosaic_side(len(kinds))
        tiles.append((name, mosaic([_support(episode, i, kind, cues, side) for i, kind in enumerate(kinds)])))
    prompt = "text: " if "text" in parse_annotation(what.annotation) else ""
    shown = Image.fromarray(query).resize(fitted(shape[1], shape[0]), Image.Resampling.BICUBIC)
    tiles.append((f"query: {prompt}{dataset.classes[episode.class_index]}", tile(shown)))
    if prediction.prior is not None and prediction.variance is not None:
        tiles.append(("prior mean", tile(heat(prediction.prior.numpy(), shape))))
        tiles.append(("UAPF deviation", tile(heat(prediction.variance.clamp_min(0).sqrt().numpy(), shape))))
    else:
        tiles.append(("score", tile(heat(probability, shape))))
    tiles.append((f"prediction: IoU {iou:.1f}", tile(painted(query, mask, PREDICTION, grey=True))))
    tiles.append(("ground truth", tile(painted(query, truth == 1, TRUTH, grey=True))))
    return row_of(tiles)


def _support(episode: Episode, number: int, kind: str, cues: CueSource, side: int) -> Image.Image:
    image = cues.dataset.image(episode.supports[number])
    drawn = cues.annotation(episode.supports[number], episode.class_index, kind) == 1
    return tile(painted(image, np.asarray(drawn), ANNOTATION, side=side, kind=kind), side)
