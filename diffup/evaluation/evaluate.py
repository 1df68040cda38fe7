"""Evaluation: every episode of a manifest segmented, scored at the protocol's resolution, one table row each.

Only counts are kept (intersections, unions, histograms of pixels; `diffup.evaluation.scoring`). All figures are
computed from them later, also how well the model's own estimates of quality (predicted IoU, standard deviation,
probabilities) separate right from wrong.
Letters: B batch · K supports · R decoder grid.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffup.config import FEATURE_METHODS, SampleConfig, parse_annotation, support_kinds
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.episodes.protocols import PROTOCOLS, Protocol
from diffup.errors import UserError, extra
from diffup.evaluation.adapter import Method, ask
from diffup.evaluation.encode import FeatureCache
from diffup.evaluation.priors import PriorSource, Triple
from diffup.evaluation.scoring import Predicted, Prediction, score, upsample, upsampled
from diffup.evaluation.superpixels import Labels, snapped
from diffup.models.baft import chosen_maps, evidence_logit, prior_mean
from diffup.models.batch import Episodes
from diffup.models.diffup import DiffUpNet, insid3, prototype
from diffup.models.regions import with_regions
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


def reads_priors(what: Evaluation) -> bool:
    """Whether the method reads prior maps."""
    return what.method is None and what.sample.method not in FEATURE_METHODS


def gather(rows: Sequence[Sequence[Triple]], cues: CueSource, features: FeatureCache) -> Episodes:
    """Features and cues of a batch of episodes, each given by its visual cues. Reads no query mask."""
    ids = [image for row in rows for image in (row[0].query, *(cue.support for cue in row))]
    found = iter(features.get(ids, text=False))
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


def predict(
    what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache | None,
    priors: PriorSource | None = None,
) -> list[Prediction]:  # fmt: skip
    """Segment a batch; probabilities are upsampled (bilinear, as logits) to the size that the protocol scores at.

    `priors` gives prior maps, by default computed from `features`. A foreign method needs neither, and gives its own
    probabilities at the query's original size, which are resized.
    """
    found = segment(what, episodes, cues, features, priors)
    return [prediction for predicted in found for prediction in predicted]


@torch.inference_mode()
def segment(
    what: Evaluation, episodes: Sequence[Episode], cues: CueSource, features: FeatureCache | None,
    priors: PriorSource | None = None,
) -> list[Predicted]:  # fmt: skip
    """As `predict`, on the device: the batch as a whole where `priors` does several pairs of images at a time."""
    if what.method is not None:
        return [Predicted.of(_foreign(what, what.method, episode, cues)) for episode in episodes]
    assert features is not None
    priors = priors or PriorSource(cues, features)
    rows = [triples(what, episode) for episode in episodes]
    others: list[Tensor] = []  # maps beside the logits, on the grids that they come on
    ious = torch.full((len(episodes),), float("nan"))
    if what.model is None and what.sample.method in FEATURE_METHODS:
        visual = [[cue for cue in row if cue.kind != "text"] for row in rows]
        if not all(visual):
            raise UserError(f"the {what.sample.method} baseline needs a visual cue; it has no text form")
        method = {"prototype": prototype, "insid3": insid3}[what.sample.method]
        logits = logit(method(gather(visual, cues, features)))
    else:
        batch = priors.batch(rows)
        if what.model is None:
            absolute = what.sample.method == "evidence"
            asked = what.sample.objectness
            logits = evidence_logit(batch.odds_BKSEhw, asked) if absolute else logit(prior_mean(batch.prior_BKSPhw))
            if what.sample.regions:
                queries = features.get([episode.query for episode in episodes], text=False)
                logits = with_regions(logits, [query.stages for query in queries])
        else:
            grid = what.model.config.decoder_grid
            noise = torch.stack([episode_noise(what.seed, what.fold, e.index, grid) for e in episodes])
            result = what.model.segment_priors(batch, what.sample, noise)
            logits, ious = result.logits, result.predicted_iou
            means = prior_mean(chosen_maps(batch.prior_BKSPhw, what.model.config.prior_maps))
            others = [result.variance, means]
    own = (query.size for query in features.outlines([episode.query for episode in episodes]))
    sizes = [what.protocol.label_size(cues.dataset.name, size) for size in own]
    if what.sample.snap:
        snaps = [
            _snapped([map_BRR[i].cpu() for map_BRR in (logits, *others)], size, features.superpixels.get(episode.query))
            for i, (episode, size) in enumerate(zip(episodes, sizes, strict=True))
        ]
        return [Predicted(*each) for each in zip(snaps, ([size] for size in sizes), ious.split(1), strict=True)]
    part = len(episodes) if priors.pairs > 1 else 1
    chunks = [slice(start, start + part) for start in range(0, len(episodes), part)]
    return [Predicted(_scored_at([logits, *others], sizes, chunk), sizes[chunk], ious[chunk]) for chunk in chunks]


def _scored_at(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], chunk: slice) -> Tensor:
    """Some episodes' logits and other maps, upsampled; the logits as probabilities, [B, X, H, W]."""
    logits, *others = (upsampled(map_BRR[chunk, None], sizes[chunk]) for map_BRR in maps)
    return torch.cat([torch.sigmoid(logits), *others], dim=1)


def _snapped(maps: Sequence[Tensor], size: tuple[int, int], superpixels: Labels) -> Tensor:
    """One episode's logit, snapped at its image's own size, as `_scored_at` gives it, [1, X, H, W]."""
    logit_RR, *others = maps
    own = superpixels[0].shape
    logit_HW = snapped(upsample(logit_RR, own), superpixels)
    if size != own:
        logit_HW = upsample(logit_HW, size)
    return torch.stack([torch.sigmoid(logit_HW), *(upsample(other, size) for other in others)])[None]


def _foreign(what: Evaluation, method: Method, episode: Episode, cues: CueSource) -> Prediction:
    prompt = prompt_indices(what.class_indices, what.deranged)[episode.class_index]
    probability = ask(method, episode, what.annotation, what.shots, prompt, cues)
    height, width = probability.shape
    size = what.protocol.label_size(cues.dataset.name, (height, width))
    map_HW = torch.from_numpy(probability)
    return Prediction(map_HW if size == (height, width) else upsample(map_HW, size), None, float("nan"))


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
    batch_size: int, priors: PriorSource | None = None, window: int | None = None,
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """The rows of `evaluate`, which see, a batch at a time.

    Args:
        window: number of episodes whose prior maps are computed together, so that a query's affinities are computed
            once; None: as many as memory has room for; 0: the caller prepares them.
    """
    if short := [e.index for e in episodes if len(e.supports) < what.shots]:
        raise UserError(f"episode {short[0]} has fewer than {what.shots} supports; rebuild the manifest")
    if priors is None and features is not None:
        priors = PriorSource(cues, features)
    if priors is None or not reads_priors(what):
        window = 0
    elif window is None and episodes:
        window = max(batch_size, priors.window(len(triples(what, episodes[0]))) // batch_size * batch_size)
    shared = 0.0
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        if window and start % window == 0 and priors is not None:
            began, ahead = time.perf_counter(), episodes[start : start + window]
            priors.prepare(triple for episode in ahead for triple in triples(what, episode))
            shared = (time.perf_counter() - began) / len(ahead)
        began = time.perf_counter()
        counted: list[dict[str, Any]] = []
        for predicted in segment(what, chunk, cues, features, priors):
            asked = chunk[len(counted) : len(counted) + len(predicted.sizes)]
            truths = [
                cues.label(episode.query, episode.class_index, size)
                for episode, size in zip(asked, predicted.sizes, strict=True)
            ]
            counted += score(predicted, truths, what.sample.threshold)
        seconds = shared + (time.perf_counter() - began) / len(chunk)
        yield [
            {
                "episode": episode.index,
                "class_id": episode.class_index,
                "class_name": cues.dataset.classes[episode.class_index],
                "query": episode.query,
                "supports": list(episode.supports[: what.shots]),
                **counts,
                "seconds": seconds,
            }
            for episode, counts in zip(chunk, counted, strict=True)
        ]
