"""Prior maps by triple: a query, a support, the kind of its annotation. Nested shots, variants and seeds share them.

A triple's maps depend on neither K nor the trained model. They are read from a `ShardStore` where it holds them, else
computed: on a GPU many pairs of images at a time; on a CPU one pair at a time, so that a map's bytes do not depend on
what else is computed.

Letters: B batch · K cues · S stages · P prior maps · C channels · h w feature grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from diffup.config import CUES
from diffup.episodes.cue_source import CueSource
from diffup.errors import UserError
from diffup.evaluation.encode import FeatureCache
from diffup.evaluation.shards import ShardStore
from diffup.lru import ByteLRU, nbytes
from diffup.models.baft import self_affinities, settle_boxes, text_priors, visual_priors
from diffup.models.batch import Batch

PRIOR = "prior"  # name of a stored row's only tensor
ID_DIGITS = 24
GPU_PAIRS = 64  # pairs of images at a time
STAGES_BYTES, GPU_STAGES_BYTES = 256 << 20, 2 << 30  # of images' features in float32 that are kept
BOXES_BYTES = 64 << 20  # of settled boxes that are kept
AHEAD_BYTES = 256 << 20  # of maps that were computed before they are asked for

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


class PriorSource:
    """Prior maps of triples of one data set and encoder, from shards where they have them.

    Args:
        cues: annotations of supports.
        features: of the encoder.
        visual, text: stores of maps of visual cues and of text; only read.

    Attributes:
        computed: number of triples computed so far.
    """

    def __init__(
        self, cues: CueSource, features: FeatureCache, visual: ShardStore | None = None, text: ShardStore | None = None
    ) -> None:
        self.cues, self.features = cues, features
        self.stores = {True: text, False: visual}
        self.computed = 0
        self._device = torch.device(features.encoder.device)
        self._on_gpu = self._device.type != "cpu"
        self._boxes: ByteLRU[tuple[str, int], Tensor] = ByteLRU(BOXES_BYTES, lambda weights: nbytes([weights]))
        limit = GPU_STAGES_BYTES if self._on_gpu else STAGES_BYTES
        self._stages: ByteLRU[str, list[Tensor]] = ByteLRU(limit, nbytes)
        self._ahead: ByteLRU[Triple, Tensor] = ByteLRU(AHEAD_BYTES, lambda maps: nbytes([maps]))

    def batch(self, rows: Sequence[Sequence[Triple]]) -> Batch:
        """The maps of a batch of episodes, each given by its K cues.

        Raises:
            UserError: a support does not show the class, or a text cue without a text model.
        """
        found = self.get(triple for row in rows for triple in row)
        queries = self.features.get([row[0].query for row in rows])
        return Batch(
            prior_BKSPhw=torch.stack([torch.stack([found[triple] for triple in row]) for row in rows]),
            kind_BK=torch.tensor([[CUES.index(triple.kind) for triple in row] for row in rows]),
            rgb_B3RR=torch.stack([query.rgb for query in queries]),
        )

    def get(self, triples: Iterable[Triple]) -> dict[Triple, Tensor]:
        """Maps [S, P, h, w] in [0, 1] of each triple."""
        wanted = list(dict.fromkeys(triples))
        found = {triple: maps for triple in wanted if (maps := self._known(triple)) is not None}
        return found | dict(self.compute(triple for triple in wanted if triple not in found))

    def prepare(self, triples: Iterable[Triple]) -> None:
        """Compute maps that several evaluations are about to `get`, all annotations of a pair at once."""
        for triple, maps in self.compute(triple for triple in set(triples) if self._known(triple) is None):
            self._ahead.put(triple, maps.clone())  # on a GPU it is a view of all that were computed with it

    def _known(self, triple: Triple) -> Tensor | None:
        if (maps := self._ahead.get(triple)) is not None:
            return maps
        store = self.stores[triple.kind == "text"]
        row = store.get(triple.key) if store is not None else None
        return None if row is None else row[PRIOR]

    @torch.inference_mode()
    def compute(self, triples: Iterable[Triple]) -> Iterator[tuple[Triple, Tensor]]:
        """The maps of each triple, on the CPU; all annotations of a pair of images are computed together."""
        computed_for: tuple[str, ...] = ()
        for kinds, pairs in self._chunks(triples):
            queries = tuple(dict.fromkeys(query for query, _, _ in pairs))
            if queries != computed_for:  # consecutive pairs often share their query
                stages = self._stacked(queries)
                computed_for, affinities = queries, self_affinities(stages)
            rows = slice(None) if len(queries) == len(pairs) else [queries.index(query) for query, _, _ in pairs]
            query, alike = [stage[rows] for stage in stages], [affinity[rows] for affinity in affinities]
            if kinds == ("text",):
                made = [self._text(pairs, alike)]
            else:
                supports = [stage[:, None] for stage in self._stacked([support for _, support, _ in pairs])]
                weights = [torch.stack([self._weights(s, c, kind) for _, s, c in pairs])[:, None] for kind in kinds]
                made = visual_priors(query, alike, supports, weights)
            self.computed += len(kinds) * len(pairs)
            for kind, maps_B1SPhw in zip(kinds, made, strict=True):
                for pair, maps_1SPhw in zip(pairs, maps_B1SPhw.cpu(), strict=True):
                    yield Triple(*pair, kind), maps_1SPhw[0]

    def _chunks(self, triples: Iterable[Triple]) -> Iterator[tuple[tuple[str, ...], list[Pair]]]:
        """Pairs that are computed together, and the kinds of annotation that all of them have."""
        by_pair = groupby(sorted(triples), key=lambda t: (t.query, t.support, t.class_index))
        pairs = [(tuple(triple.kind for triple in group), pair) for pair, group in by_pair]
        if not self._on_gpu:
            yield from ((kinds, [pair]) for kinds, pair in pairs)
            return
        for kinds, group in groupby(sorted(pairs), key=lambda item: item[0]):
            same = [pair for _, pair in group]
            yield from ((kinds, same[start : start + GPU_PAIRS]) for start in range(0, len(same), GPU_PAIRS))

    def _stacked(self, image_ids: Sequence[str]) -> list[Tensor]:
        """Stage features of images in float32, S × [B, C, h, w]."""
        found = {image_id: self._stages.get(image_id) for image_id in dict.fromkeys(image_ids)}
        missing = [image_id for image_id, stages in found.items() if stages is None]
        for image_id, features in zip(missing, self.features.get(missing), strict=True):
            stages = [stage.to(self._device).float() for stage in features.stages]
            found[image_id] = self._stages.put(image_id, stages)
        return [torch.stack(stage) for stage in zip(*(found[i] or () for i in image_ids), strict=True)]

    def _weights(self, support: str, class_index: int, kind: str) -> Tensor:
        """Foreground and background weights of a support, [2, h, w]; boxes settled, once each."""
        grid = self.features.encoder.config.feature_grid
        weights = self.cues.weights(support, class_index, kind, grid).to(self._device)
        if kind != "box":
            return weights
        key = (support, class_index)
        if (known := self._boxes.get(key)) is None:
            stages = [stage[:, None] for stage in self._stacked([support])]
            boxed = torch.ones(1, 1, dtype=torch.bool, device=self._device)
            known = self._boxes.put(key, settle_boxes(stages, weights[None, None], boxed)[0, 0])
        return known

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
