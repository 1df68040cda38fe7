"""Evaluation: every episode of a manifest segmented, scored at the protocol's resolution, one table row each.

Only counts are kept (intersections, unions, histograms of pixels). All figures are computed from them later, also how
well the model's own estimates of quality (predicted IoU, standard deviation, probabilities) separate right from wrong.
Letters: B batch · K supports · R decoder grid · H W a query's own size.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from diffup.config import SampleConfig, parse_annotation, support_kinds
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import PROTOCOLS, Protocol, nearest
from diffup.errors import UserError, extra
from diffup.evaluation.adapter import Method, ask
from diffup.evaluation.encode import FeatureCache
from diffup.evaluation.metrics import MARGIN_BINS, PROB_BINS, STD_BINS, STD_RANGE, counts
from diffup.evaluation.priors import PriorSource, Triple
from diffup.models.baft import chosen_maps, prior_mean
from diffup.models.batch import Episodes
from diffup.models.diffup import DiffUpNet, prototype
from diffup.models.uapf import logit

if TYPE_CHECKING:
    import pandas as pd


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
        protocol: says at which size predictions and labels are compared.
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
    protocol: Protocol = PROTOCOLS["paired"]


@dataclass(frozen=True)
class Prediction:
    """One segmented episode at the size that the protocol scores at, its query's original size under ``paired``.

    Attributes:
        probability, variance: [H, W]; variance is None for training-free methods.
        predicted_iou: DQM's estimate, nan for training-free methods.
        prior: the prior mean of the same priors, [H, W] in [0, 1]: the rival of `variance` as a sign of wrong pixels;
            None for training-free methods.
    """

    probability: Tensor
    variance: Tensor | None
    predicted_iou: float
    prior: Tensor | None = None


def episode_noise(seed: int, fold: int, index: int, grid: int) -> Tensor:
    """Gaussian noise [grid, grid] that depends on the episode alone, not on its batch or worker."""
    digest = hashlib.sha256(f"noise {seed} {fold} {index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(grid, grid, generator=generator)


def prompt_indices(class_indices: Sequence[int], deranged: bool) -> dict[int, int]:
    """Which class's name prompts each class: itself, or the next one of the fold.

    Raises:
        UserError: a derangement of fewer than two classes.
    """
    if not deranged:
        return {c: c for c in class_indices}
    if len(class_indices) < 2:
        raise UserError("wrong class names need a fold of at least two classes")
    return dict(zip(class_indices, [*class_indices[1:], class_indices[0]], strict=True))


def triples(what: Evaluation, episode: Episode) -> list[Triple]:
    """An episode's cues in order: those of its first K supports, then text."""
    row = support_kinds(what.annotation, what.shots)
    cues = [
        Triple(episode.query, support, episode.class_index, kind)
        for support, kind in zip(episode.supports, row, strict=False)
    ]
    if "text" in parse_annotation(what.annotation):
        prompt = prompt_indices(what.class_indices, what.deranged)[episode.class_index]
        cues.append(Triple(episode.query, "", prompt, "text"))
    return cues


def gather(rows: Sequence[Sequence[Triple]], cues: CueSource, features: FeatureCache) -> Episodes:
    """Features and cues of a batch of episodes, each given by its visual cues. Reads no query mask."""
    found = iter(features.get([image for row in rows for image in (row[0].query, *(cue.support for cue in row))]))
    grid = features.encoder.config.feature_grid
    weights = [torch.stack([cues.weights(c.support, c.class_index, c.kind, grid) for c in row]) for row in rows]
    images = [[next(found) for _ in range(1 + len(row))] for row in rows]
    return Episodes(
        query=[query for query, *_ in images],
        supports=[supports for _, *supports in images],
        weights_BK2hw=torch.stack(weights),
        kinds=[tuple(cue.kind for cue in row) for row in rows],
        device=features.encoder.device,
    )


@torch.inference_mode()
def predict(
    what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache | None,
    priors: PriorSource | None = None,
) -> list[Prediction]:  # fmt: skip
    """Segment a batch; probabilities are upsampled (bilinear, as logits) to the size that the protocol scores at.

    `priors` gives prior maps, by default computed from `features`. A foreign method needs neither, and gives its own
    probabilities at the query's original size, which are resized.
    """
    if what.method is not None:
        return [_foreign(what, what.method, episode, cues) for episode in episodes]
    assert features is not None
    rows = [triples(what, episode) for episode in episodes]
    ious = [float("nan")] * len(episodes)
    variances: Tensor | None = None
    means: Tensor | None = None
    if what.model is None and what.sample.method == "prototype":
        visual = [[cue for cue in row if cue.kind != "text"] for row in rows]
        if not all(visual):
            raise UserError("the prototype baseline needs a visual cue; it has no text form")
        logits = logit(prototype(gather(visual, cues, features)))
    else:
        batch = (priors or PriorSource(cues, features)).batch(rows)
        if what.model is None:
            logits = logit(prior_mean(batch.prior_BKSPhw))
        else:
            grid = what.model.config.decoder_grid
            noise = torch.stack([episode_noise(what.seed, what.fold, e.index, grid) for e in episodes])
            result = what.model.segment_priors(batch, what.sample, noise)
            logits, variances, ious = result.logits, result.variance, result.predicted_iou.tolist()
            means = prior_mean(chosen_maps(batch.prior_BKSPhw, what.model.config.prior_maps))
    sizes = [query.size for query in features.get([episode.query for episode in episodes])]
    out = []
    for i, size in enumerate(what.protocol.label_size(cues.dataset.name, size) for size in sizes):
        probability = torch.sigmoid(upsample(logits[i], size))
        variance = None if variances is None else upsample(variances[i], size)
        mean = None if means is None else upsample(means[i], size)
        out.append(Prediction(probability, variance, float(ious[i]), mean))
    return out


def _foreign(what: Evaluation, method: Method, episode: Episode, cues: CueSource) -> Prediction:
    prompt = prompt_indices(what.class_indices, what.deranged)[episode.class_index]
    probability = ask(method, episode, what.annotation, what.shots, prompt, cues)
    height, width = probability.shape
    size = what.protocol.label_size(cues.dataset.name, (height, width))
    map_HW = torch.from_numpy(probability)
    return Prediction(map_HW if size == (height, width) else upsample(map_HW, size), None, float("nan"))


def upsample(map_RR: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size (H, W), bilinear."""
    return F.interpolate(map_RR[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def score(prediction: Prediction, truth_HW: NDArray[np.uint8], threshold: float) -> dict[str, Any]:
    """Counts of one episode: intersections, unions and histograms; pixels of 255 are ignored. Columns: `evaluate`."""
    probability_HW = prediction.probability.numpy()
    mask_HW = probability_HW > threshold
    inter_fg, union_fg, inter_bg, union_bg = counts(mask_HW, truth_HW)
    row: dict[str, Any] = {
        "inter_fg": inter_fg,
        "union_fg": union_fg,
        "inter_bg": inter_bg,
        "union_bg": union_bg,
        "predicted_iou": prediction.predicted_iou,
        "fg_probability": float(probability_HW[mask_HW].mean(dtype=np.float64)) if mask_HW.any() else 0.0,
    }
    valid = truth_HW != 255
    probability, truth = probability_HW[valid], truth_HW[valid] == 1
    wrong = mask_HW[valid] != truth
    level = _level(probability * PROB_BINS, PROB_BINS)
    row["prob_count"], row["prob_positive"] = _histogram(level, truth, PROB_BINS)
    row["prob_sum"] = np.bincount(level, weights=probability, minlength=PROB_BINS).round(2).tolist()
    row["std_count"] = row["std_wrong"] = [0] * STD_BINS
    row["margin_count"] = row["margin_wrong"] = [0] * MARGIN_BINS
    if prediction.variance is not None:
        low, high = STD_RANGE
        ratio = np.log(prediction.variance.numpy()[valid].clip(min=low**2) / low**2)
        level = _level(ratio * (STD_BINS / (2 * math.log(high / low))), STD_BINS)
        row["std_count"], row["std_wrong"] = _histogram(level, wrong, STD_BINS)
    if prediction.prior is not None:
        level = _level(np.abs(prediction.prior.numpy()[valid] - 0.5) * (2 * MARGIN_BINS), MARGIN_BINS)
        row["margin_count"], row["margin_wrong"] = _histogram(level, wrong, MARGIN_BINS)
    return row


def _level(scaled: NDArray[np.floating[Any]], bins: int) -> NDArray[np.intp]:
    return np.minimum(scaled.astype(np.intp), bins - 1)


def _histogram(level: NDArray[np.intp], hits: NDArray[np.bool_], bins: int) -> tuple[list[int], list[int]]:
    """Pixels of each level, and how many of them are hits."""
    misses, hit = np.bincount(level + bins * hits, minlength=2 * bins).reshape(2, bins)
    return (misses + hit).tolist(), hit.tolist()


def evaluate(
    what: Evaluation,
    episodes: Sequence[Episode],
    cues: CueSource,
    features: FeatureCache | None,
    *,
    batch_size: int = 8,
    progress: bool = True,
    priors: PriorSource | None = None,
) -> pd.DataFrame:
    """Segment and score every episode.

    Args:
        what, episodes, cues, features: see `predict`.
        batch_size: episodes at a time. On a CPU the counts depend on how the episodes are cut into batches, a little.
        progress: whether to draw a bar.
        priors: where prior maps come from; by default they are computed from `features`.

    Returns:
        One row an episode: episode, class_id, class_name, query, supports, inter_fg, union_fg, inter_bg, union_bg
        (pixels), predicted_iou, fg_probability (mean probability of the predicted foreground, 0 without any), seconds,
        and histograms of the query's valid pixels: prob_count, prob_positive (true foreground) and prob_sum (sum of the
        probabilities) over `PROB_BINS` of probability; std_count and std_wrong (pixels that the mask got wrong) over
        `STD_BINS` of UAPF's standard deviation; margin_count and margin_wrong over `MARGIN_BINS` of |p - 1/2| of the
        prior mean. The last four are zero for methods without a trained model.

    Raises:
        UserError: the manifest has fewer supports than `what.shots`.
    """
    with extra("platform"):
        import pandas as pd
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(episodes), desc="evaluate", unit="episode", disable=not progress) as bar:
        for batch in batches(what, episodes, cues, features, batch_size=batch_size, priors=priors):
            rows += batch
            bar.update(len(batch))
    return pd.DataFrame(rows)


def batches(
    what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache | None, *,
    batch_size: int, priors: PriorSource | None = None,
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """The rows of `evaluate`, which see, a batch at a time."""
    if priors is None and features is not None:
        priors = PriorSource(cues, features)
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        began = time.perf_counter()
        short = [e.index for e in chunk if len(e.supports) < what.shots]
        if short:
            raise UserError(f"episode {short[0]} has fewer than {what.shots} supports; rebuild the manifest")
        rows = []
        for episode, prediction in zip(chunk, predict(what, chunk, cues, features, priors), strict=True):
            height, width = prediction.probability.shape
            truth = nearest(cues.dataset.mask(episode.query, episode.class_index), (height, width))
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
        yield [{**row, "seconds": seconds} for row in rows]
