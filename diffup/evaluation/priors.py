"""Prior maps by triple: a query, a support, the kind of its annotation. Nested shots, variants and seeds share them.

A triple's maps depend on neither K nor the trained model. They are computed once where a `ShardStore` holds them, and
one by one, so that on a CPU their bytes are the same whatever is computed beside them.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid · R side of the query infos' RGB.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
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
from diffup.models.baft import pair_priors, self_affinity, settle_boxes, text_priors

PRIOR = "prior"  # name of a stored row's only tensor
ID_DIGITS = 24
IMAGES_AT_HAND = 32  # in float32
BOXES_BYTES = 64 << 20  # of settled boxes that are kept


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


@dataclass(frozen=True)
class Prepared:
    """A batch of episodes as prior maps: all that the trained part reads of it. Sizes are the queries' in pixels."""

    prior_BKSPhw: Tensor
    kind_BK: Tensor
    rgb_B3RR: Tensor
    sizes_B2: Tensor


class PairPriors:
    """Prior maps of triples of one data set and encoder, from shards where they are there.

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
        self._boxes: ByteLRU[tuple[str, int], tuple[Tensor, Tensor]] = ByteLRU(BOXES_BYTES, nbytes)
        self._images: OrderedDict[str, list[Tensor]] = OrderedDict()

    def batch(self, rows: Sequence[Sequence[Triple]]) -> Prepared:
        """The maps of a batch of episodes, each given by its K cues.

        Raises:
            UserError: a support does not show the class, or a text cue without a text model.
        """
        found = self.get(triple for row in rows for triple in row)
        queries = self.features.get([row[0].query for row in rows])
        return Prepared(
            prior_BKSPhw=torch.stack([torch.stack([found[triple] for triple in row]) for row in rows]),
            kind_BK=torch.tensor([[CUES.index(triple.kind) for triple in row] for row in rows]),
            rgb_B3RR=torch.stack([query.rgb for query in queries]),
            sizes_B2=torch.tensor([query.size for query in queries]),
        )

    def get(self, triples: Iterable[Triple]) -> dict[Triple, Tensor]:
        """Maps [S, P, h, w] in [0, 1] of each triple."""
        found, absent = {}, []
        for triple in dict.fromkeys(triples):
            store = self.stores[triple.kind == "text"]
            row = store.get(triple.key) if store is not None else None
            if row is None:
                absent.append(triple)
            else:
                found[triple] = row[PRIOR]
        for triple, maps in self.compute(absent):
            found[triple] = maps
        return found

    @torch.inference_mode()
    def compute(self, triples: Iterable[Triple]) -> Iterator[tuple[Triple, Tensor]]:
        """The maps of each triple, on the CPU; those of a pair of images are computed together."""
        for query, of_query in groupby(sorted(triples), key=lambda triple: triple.query):
            stages = self._stages(query)
            alike = [self_affinity(stage.flatten(1).T[None]) for stage in stages]
            for (support, class_index), group in groupby(of_query, key=lambda t: (t.support, t.class_index)):
                cues = list(group)
                self.computed += len(cues)
                if not support:
                    yield from ((cue, self._text(cue)) for cue in cues)
                    continue
                sides = [self._sides(support, class_index, cue.kind) for cue in cues]
                made = pair_priors(stages, alike, self._stages(support), sides)
                yield from zip(cues, (maps.cpu() for maps in made), strict=True)

    def _stages(self, image_id: str) -> list[Tensor]:
        if image_id not in self._images:
            (features,) = self.features.get([image_id])
            device = self.features.encoder.device
            self._images[image_id] = [stage.to(device).float() for stage in features.stages]
            if len(self._images) > IMAGES_AT_HAND:
                self._images.popitem(last=False)
        self._images.move_to_end(image_id)
        return self._images[image_id]

    def _sides(self, support: str, class_index: int, kind: str) -> tuple[Tensor, Tensor]:
        """Foreground and background weights [h, w] of a support; boxes settled, once each."""
        device = self.features.encoder.device
        if kind != "box":
            foreground, background = self.cues.weights(support, class_index, kind).to(device)
            return foreground, background
        key = (support, class_index)
        if (known := self._boxes.get(key)) is not None:
            return known
        stages = [stage[None, None] for stage in self._stages(support)]
        boxed = torch.ones(1, 1, dtype=torch.bool, device=device)
        weights = self.cues.weights(support, class_index, kind).to(device)
        foreground, background = settle_boxes(stages, weights[None, None, 0], weights[None, None, 1], boxed)
        return self._boxes.put(key, (foreground[0, 0], background[0, 0]))

    def _text(self, cue: Triple) -> Tensor:
        (features,) = self.features.get([cue.query])
        if features.text is None:
            raise UserError("a text cue needs a text model; name an open_clip companion (InputConfig.companion)")
        device = self.features.encoder.device
        names = self.features.encoder.embed_names(self.cues.dataset.classes).to(device)
        similarity = torch.einsum("bdhw,nd->bnhw", features.text[None].to(device).float(), names.float())
        target = torch.tensor([cue.class_index], device=device)
        stages = [stage[None] for stage in self._stages(cue.query)]
        return text_priors(stages, similarity, target)[0, 0].cpu()
