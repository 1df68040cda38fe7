"""Prior maps by triple: a query, a support, the kind of its annotation. Nested shots, variants and seeds share them.

A triple's maps depend on neither K nor the trained model. They are read from a `ShardStore` where it holds them, else
computed: on a GPU many pairs of images at a time; on a CPU one pair at a time, so that a map's bytes do not depend on
what else is computed.

Letters: B batch · K cues · S stages · P prior maps · C channels · h w feature grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from diffup.config import CUES
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError
from diffup.evaluation.encode import STAGES, FeatureCache
from diffup.evaluation.shards import ShardStore
from diffup.lru import ByteLRU, nbytes
from diffup.models.baft import EVIDENCE, MAPS, positions, self_affinities, settle_boxes, text_priors, visual_priors
from diffup.models.batch import Batch
from diffup.models.evidence import Bank, Negatives

PRIOR = "prior"  # name of a stored row's only tensor
ID_DIGITS = 24
GPU_PAIRS = 64  # pairs of images at a time
STAGES_BYTES = 256 << 20  # of images' features in float32 that are kept
BOXES_BYTES = 64 << 20  # of settled boxes that are kept
AHEAD_BYTES, GPU_AHEAD_BYTES = 256 << 20, 2 << 30  # of maps that were computed before they are asked for

Pair = tuple[str, str, int]  # query, support, class


@dataclass(frozen=True, order=True)
class Triple:
    """What one cue's prior maps are made from.

    Attributes:
        query: image id.
        support: image id, ``""`` for text.
        class_index: the class that is annotated in the support, or whose name prompts.
        kind: ``"mask"``, ``"box"``, ``"scribble"`` or ``"text"``.
    """

    query: str
    support: str
    class_index: int
    kind: str

    @property
    def key(self) -> str:
        """Its id in a store."""
        text = repr((self.query, self.support, self.class_index, self.kind))
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _images(chunks: Sequence[tuple[tuple[str, ...], list[Pair]]]) -> Iterator[str]:
    """Queries and supports."""
    return (image for _, pairs in chunks for query, support, _ in pairs for image in (query, support) if image)


class PriorSource:
    """Prior maps of triples of one data set and encoder, from shards where they have them.

    Args:
        cues: annotations of supports.
        features: of the encoder.
        visual, text: stores of maps of visual cues and of text; only read.
        pairs: pairs of images at a time; None: one on a CPU, many on a GPU.
        bank: images from outside the episodes, in the same features; None: evidence is from supports alone.
        drop: share of it that is left out for each cue (`diffup.config.BankConfig`).

    Attributes:
        computed: number of triples computed so far.
    """

    def __init__(
        self, cues: CueSource, features: FeatureCache, visual: ShardStore | None = None, text: ShardStore | None = None,
        *, pairs: int | None = None, bank: Bank | None = None, drop: float = 0.0,
    ) -> None:  # fmt: skip
        self.cues, self.features, self.bank, self.drop = cues, features, bank, drop
        self.stores = {True: text, False: visual}
        self.computed = 0
        self._device = torch.device(features.encoder.device)
        on_gpu = self._device.type != "cpu"
        self.pairs = pairs or (GPU_PAIRS if on_gpu else 1)
        self._boxes: ByteLRU[tuple[str, int], Tensor] = ByteLRU(BOXES_BYTES, lambda weights: nbytes([weights]))
        self._stages: ByteLRU[str, list[Tensor]] = ByteLRU(STAGES_BYTES, nbytes)
        ahead = GPU_AHEAD_BYTES if on_gpu else AHEAD_BYTES
        self._ahead: ByteLRU[Triple, Tensor] = ByteLRU(ahead, lambda maps: maps.numel() * maps.element_size())

    def batch(self, rows: Sequence[Sequence[Triple]]) -> Batch:
        """The maps of a batch of episodes, each given by its K cues.

        Raises:
            UserError: a support does not show the class, or a text cue without a text model.
        """
        found = self.get(triple for row in rows for triple in row)
        queries = self.features.outlines([row[0].query for row in rows])
        maps = torch.stack([found[triple] for row in rows for triple in row]).unflatten(0, (len(rows), -1))
        return Batch(
            prior_BKSPhw=maps[:, :, :, :MAPS].contiguous(),
            odds_BKSEhw=maps[:, :, :, MAPS:],
            kind_BK=torch.tensor([[CUES.index(triple.kind) for triple in row] for row in rows]),
            rgb_B3RR=torch.stack([query.rgb for query in queries]),
        )

    def get(self, triples: Iterable[Triple]) -> dict[Triple, Tensor]:
        """Maps [S, P, h, w] of each triple, see `diffup.models.baft.visual_priors`."""
        wanted = list(dict.fromkeys(triples))
        found = {triple: maps for triple in wanted if (maps := self._known(triple)) is not None}
        return found | dict(self.compute(triple for triple in wanted if triple not in found))

    def window(self, triples: int) -> int:
        """For how many episodes of so many triples the maps of `prepare` are kept."""
        grid = self.features.encoder.config.feature_grid
        return max(1, self._ahead.limit // (max(1, triples) * len(STAGES) * (MAPS + EVIDENCE) * grid**2 * 4))

    def prepare(self, triples: Iterable[Triple]) -> None:
        """Compute maps that evaluations are about to `get`: a query's affinities once, its pairs once for all kinds.

        Where that fails, those who `get` them meet the error.
        """
        wanted = dict.fromkeys(triples)
        for text in (False, True):
            store, of_kind = self.stores[text], [t for t in wanted if (t.kind == "text") == text]
            stored = {t.key for t in of_kind} - set(store.missing(t.key for t in of_kind)) if store else set[str]()
            lacking = (t for t in of_kind if t not in self._ahead and t.key not in stored)
            with suppress(Exception):
                for triple, maps in self.compute(lacking):
                    self._ahead.put(triple, maps)

    def _known(self, triple: Triple) -> Tensor | None:
        if (maps := self._ahead.get(triple)) is not None:
            return maps
        store = self.stores[triple.kind == "text"]
        row = store.get(triple.key) if store is not None else None
        return None if row is None else row[PRIOR].to(self._device)

    @torch.inference_mode()
    def compute(self, triples: Iterable[Triple]) -> Iterator[tuple[Triple, Tensor]]:
        """The maps of each triple, on the device; all annotations of a pair of images are computed together."""
        computed_for: tuple[str, ...] = ()
        negatives: Negatives | None = None
        chunks = list(self._chunks(triples))
        for number, (kinds, pairs) in enumerate(chunks):
            self.features.ahead(_images(chunks[number : number + 3]))
            queries = tuple(dict.fromkeys(query for query, _, _ in pairs))
            if queries != computed_for:  # consecutive pairs often share their query
                stages = self._stacked(queries)
                computed_for, affinities, negatives = queries, self_affinities(stages), None
            if negatives is None and self.bank is not None and kinds != ("text",):
                answers = self.bank.answers([positions(stage) for stage in stages])
                negatives = Negatives(self.bank, answers, drop=self.drop)
            query, alike, against = stages, affinities, negatives
            if len(queries) < len(pairs):
                rows = torch.tensor([queries.index(query) for query, _, _ in pairs]).to(self._device)
                query, alike = [stage[rows] for stage in stages], [affinity[rows] for affinity in affinities]
                against = None if negatives is None else negatives.of(rows)
            if kinds == ("text",):
                made = [self._text(pairs, alike)]
            else:
                supports = [stage[:, None] for stage in self._stacked([support for _, support, _ in pairs])]
                weights = [self._weights([(s, c) for _, s, c in pairs], kind)[:, None] for kind in kinds]
                made = visual_priors(query, alike, supports, weights, against)
            self.computed += len(kinds) * len(pairs)
            for kind, maps_B1SPhw in zip(kinds, made, strict=True):
                for pair, maps_1SPhw in zip(pairs, maps_B1SPhw, strict=True):
                    yield Triple(*pair, kind), maps_1SPhw[0]

    def _chunks(self, triples: Iterable[Triple]) -> Iterator[tuple[tuple[str, ...], list[Pair]]]:
        """Pairs that are computed together, and the kinds of annotation that all of them have."""
        by_pair = groupby(sorted(triples), key=lambda t: (t.query, t.support, t.class_index))
        pairs = [(tuple(triple.kind for triple in group), pair) for pair, group in by_pair]
        if self.pairs == 1:
            yield from ((kinds, [pair]) for kinds, pair in pairs)
            return
        for kinds, group in groupby(sorted(pairs), key=lambda item: item[0]):
            same = [pair for _, pair in group]
            yield from ((kinds, same[start : start + self.pairs]) for start in range(0, len(same), self.pairs))

    def _stacked(self, image_ids: Sequence[str]) -> list[Tensor]:
        """Stage features of images on the device, S × [B, C, h, w]; on a CPU in float32."""
        if self.pairs > 1:
            every = zip(*(features.stages for features in self.features.get(image_ids, text=False)), strict=True)
            return [torch.stack([stage.to(self._device) for stage in stages]) for stages in every]
        found = {image_id: self._stages.get(image_id) for image_id in dict.fromkeys(image_ids)}
        missing = [image_id for image_id, stages in found.items() if stages is None]
        for image_id, features in zip(missing, self.features.get(missing, text=False), strict=True):
            stages = [stage.to(self._device).float() for stage in features.stages]
            found[image_id] = self._stages.put(image_id, stages)
        if len(image_ids) == 1:
            return [stage[None] for stage in found[image_ids[0]] or ()]
        return [torch.stack(stage) for stage in zip(*(found[i] or () for i in image_ids), strict=True)]

    def _weights(self, supports: Sequence[tuple[str, int]], kind: str) -> Tensor:
        """Foreground and background weights of supports, each with its class, [B, 2, h, w]; boxes settled."""
        grid = self.features.encoder.config.feature_grid
        drawn = {of: self.cues.weights(*of, kind, grid) for of in supports if kind != "box" or of not in self._boxes}
        if kind != "box":
            return torch.stack([drawn[of] for of in supports]).to(self._device)
        settled: dict[tuple[str, int], Tensor] = {}
        for start in range(0, len(drawn), self.pairs):
            part = list(drawn)[start : start + self.pairs]
            stages = [stage[:, None].float() for stage in self._stacked([support for support, _ in part])]
            weights = torch.stack([drawn[of] for of in part])[:, None].to(self._device)
            boxes = settle_boxes(stages, weights, torch.ones(len(part), 1, dtype=torch.bool))[:, 0]
            settled |= {of: self._boxes.put(of, box.clone()) for of, box in zip(part, boxes, strict=True)}
        return torch.stack([settled[of] if of in settled else self._boxes.get(of) for of in supports])  # type: ignore[misc]

    def _text(self, pairs: Sequence[Pair], alike: list[Tensor]) -> Tensor:
        """Maps of text cues, [B, 1, S, P, h, w]."""
        encoder = self.features.encoder
        dense = [features.text for features in self.features.get([query for query, _, _ in pairs])]
        if any(text is None for text in dense):
            raise UserError("a text cue needs a text model; name an open_clip companion (InputConfig.companion)")
        names = encoder.embed_names(self.cues.dataset.classes).to(self._device).float()
        stacked = torch.stack([text for text in dense if text is not None]).to(self._device).float()
        targets = torch.tensor([class_index for _, _, class_index in pairs], device=self._device)
        return text_priors(alike, torch.einsum("bdhw,nd->bnhw", stacked, names), targets)
