"""Evaluation: every episode of a manifest segmented, scored at the query's original resolution, one table row each.

Only counts are kept (intersections, unions, calibration bins): every figure of a paper comes from them later.
Letters: B batch · K supports · R decoder grid · H W a query's own size.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from diffup.adapter import Method, ask
from diffup.config import SampleConfig, parse_annotation, support_kinds
from diffup.encode import FeatureCache, Features
from diffup.episodes import Episode
from diffup.metrics import counts
from diffup.model import DiffUpNet, Episodes, training_free
from diffup.supply import CueSource
from diffup.uapf import logit

BINS = 10
MAX_STD = 0.75  # standard deviations above this fall into the last bin


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to evaluate: a method, with one annotation and K, on one fold.

    Attributes:
        model: trained model, or None for a training-free `sample.method`.
        annotation, shots: see `diffup.config.parse_annotation`.
        class_indices: the classes of the manifest, in its order.
        method: the foreign method of an adapter, else None.
        deranged: prompt each class by the next class of the fold (a control that must fail).
        seed, fold: give each episode its own noise.
    """

    model: DiffUpNet | None
    sample: SampleConfig
    annotation: str
    shots: int
    class_indices: tuple[int, ...]
    method: Method | None = None
    deranged: bool = False
    seed: int = 0
    fold: int = 0


@dataclass(frozen=True)
class Prediction:
    """One segmented episode at its query's original size.

    Attributes:
        probability, variance: [H, W]; variance is None for training-free methods.
        predicted_iou: DQM's estimate, nan for training-free methods.
    """

    probability: Tensor
    variance: Tensor | None
    predicted_iou: float


def episode_noise(seed: int, fold: int, index: int, grid: int) -> Tensor:
    """Gaussian noise [grid, grid] that belongs to the episode, whatever batch or worker it meets."""
    digest = hashlib.sha256(f"noise {seed} {fold} {index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(grid, grid, generator=generator)


def prompt_indices(class_indices: Sequence[int], deranged: bool) -> dict[int, int]:
    """Which class's name prompts each class: itself, or the next one of the fold.

    Raises:
        ValueError: a derangement of fewer than two classes.
    """
    if not deranged:
        return {c: c for c in class_indices}
    if len(class_indices) < 2:
        raise ValueError("wrong class names need a fold of at least two classes")
    return dict(zip(class_indices, [*class_indices[1:], class_indices[0]], strict=True))


def gather(what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache) -> Episodes:
    """Features and cues of a batch of manifest episodes. Reads no query mask."""
    kinds = parse_annotation(what.annotation)
    row = support_kinds(what.annotation, what.shots)
    wanted = [image_id for e in episodes for image_id in (e.query, *e.supports[: len(row)])]
    found = iter(features.get(wanted))
    query: list[Features] = []
    supports: list[list[Features]] = []
    weights = []
    for episode in episodes:
        query.append(next(found))
        supports.append([next(found) for _ in row])
        weights += [
            cues.weights(image_id, episode.class_index, kind)
            for image_id, kind in zip(episode.supports, row, strict=False)
        ]
    grid = features.encoder.config.feature_grid
    names = targets = None
    if "text" in kinds:
        prompts = prompt_indices(what.class_indices, what.deranged)
        names = features.encoder.embed_names(cues.dataset.classes)
        targets = torch.tensor([prompts[e.class_index] for e in episodes])
    return Episodes(
        query=query,
        supports=supports,
        weights_BK2hw=torch.stack(weights).view(len(query), len(row), 2, grid, grid)
        if weights
        else torch.zeros(len(query), 0, 2, grid, grid),
        kinds=[row] * len(query),
        names=names,
        targets=targets,
        device=features.encoder.device,
    )


@torch.inference_mode()
def predict(
    what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache | None
) -> list[Prediction]:
    """Segment a batch; probabilities are upsampled (bilinear, as logits) to each query's original size.

    A foreign method needs no features and gives its own probabilities at that size.
    """
    if what.method is not None:
        return [_foreign(what, what.method, episode, cues) for episode in episodes]
    assert features is not None
    batch = gather(what, episodes, cues, features)
    variances: Tensor | None = None
    if what.model is None:
        logits = logit(training_free(what.sample.method, batch))
        ious = [float("nan")] * len(episodes)
    else:
        grid = what.model.config.decoder_grid
        noise = torch.stack([episode_noise(what.seed, what.fold, e.index, grid) for e in episodes])
        result = what.model.segment(batch, steps=what.sample.steps, noise_BRR=noise)
        logits, variances, ious = result.logits, result.variance, result.predicted_iou.tolist()
    out = []
    for i, query in enumerate(batch.query):
        probability = torch.sigmoid(_upsample(logits[i], query.size))
        variance = None if variances is None else _upsample(variances[i], query.size)
        out.append(Prediction(probability, variance, float(ious[i])))
    return out


def _foreign(what: Evaluation, method: Method, episode: Episode, cues: CueSource) -> Prediction:
    prompt = prompt_indices(what.class_indices, what.deranged)[episode.class_index]
    probability = ask(method, episode, what.annotation, what.shots, prompt, cues)
    return Prediction(torch.from_numpy(probability), None, float("nan"))


def _upsample(map_RR: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(map_RR[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def score(prediction: Prediction, truth_HW: NDArray[np.uint8], threshold: float) -> dict[str, Any]:
    """Counts of one episode: intersections, unions and calibration bins; pixels of 255 are ignored."""
    probability = prediction.probability.numpy()
    mask = probability > threshold
    inter_fg, union_fg, inter_bg, union_bg = counts(mask, truth_HW)
    valid = truth_HW != 255
    row: dict[str, Any] = {
        "inter_fg": inter_fg,
        "union_fg": union_fg,
        "inter_bg": inter_bg,
        "union_bg": union_bg,
        "predicted_iou": prediction.predicted_iou,
    }
    truth = truth_HW == 1
    row["prob_count"], row["prob_positive"] = _bins(probability, truth, valid, 1.0)
    empty = [0] * BINS
    row["var_count"], row["var_wrong"] = empty, empty
    if prediction.variance is not None:
        deviation = prediction.variance.clamp_min(0).sqrt().numpy()
        row["var_count"], row["var_wrong"] = _bins(deviation, mask != truth, valid, MAX_STD)
    return row


def _bins(
    values: NDArray[np.floating[Any]], hits: NDArray[np.bool_], valid: NDArray[np.bool_], top: float
) -> tuple[list[int], list[int]]:
    index = np.minimum((values[valid] * (BINS / top)).astype(np.int64), BINS - 1)
    every = np.bincount(index, minlength=BINS)
    hit = np.bincount(index[hits[valid]], minlength=BINS)
    return every.tolist(), hit.tolist()


def evaluate(
    what: Evaluation,
    episodes: Sequence[Episode],
    cues: CueSource,
    features: FeatureCache | None,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> pd.DataFrame:
    """Segment and score every episode.

    Returns:
        One row an episode: episode, class_id, class_name, query, supports, inter_fg, union_fg, inter_bg, union_bg
        (pixels), predicted_iou, seconds, and calibration counts in ten bins: prob_count and prob_positive over
        probability, var_count and var_wrong over UAPF's standard deviation (0 to `MAX_STD`).

    Raises:
        ValueError: the manifest has fewer supports than `what.shots`.
    """
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(episodes), desc="evaluate", unit="episode", disable=not progress) as bar:
        for start in range(0, len(episodes), batch_size):
            chunk = episodes[start : start + batch_size]
            began = time.perf_counter()
            short = [e.index for e in chunk if len(e.supports) < what.shots]
            if short:
                raise ValueError(f"episode {short[0]} has fewer than {what.shots} supports; rebuild the manifest")
            predictions = predict(what, chunk, cues, features)
            for episode, prediction in zip(chunk, predictions, strict=True):
                truth = cues.dataset.mask(episode.query, episode.class_index)
                rows.append(
                    {
                        "episode": episode.index,
                        "class_id": episode.class_index,
                        "class_name": cues.dataset.classes[episode.class_index],
                        "query": episode.query,
                        "supports": list(episode.supports[: what.shots]),
                        **score(prediction, truth, what.sample.threshold),
                    }
                )
            seconds = (time.perf_counter() - began) / len(chunk)
            for row in rows[start:]:
                row["seconds"] = seconds
            bar.update(len(chunk))
    return pd.DataFrame(rows)
