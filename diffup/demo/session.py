"""What the page does, without the page: its pictures and drawings become cues, and a chosen backbone segments them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffup.api import DiffUp
from diffup.backbones.registry import has_text_encoder
from diffup.demo.drawing import annotations_of, read_strokes
from diffup.demo.pictures import Picture, Pictures
from diffup.errors import UserError
from diffup.lru import ByteLRU
from diffup.models.batch import Features
from diffup.result import Result
from diffup.support import Cue, Support, Text

KEPT_MODELS = 4
KEPT_FEATURES = 500_000_000  # bytes
MOST_SUPPORTS = 10
NO_QUERY = "add a query picture: the one to segment"
NO_READER = "there is none here, but CLIP does, such as open_clip:ViT-B-16/openai (diffup demo --backbones …)"
NO_CUE = "nothing says what to look for: draw on a support picture{}"


class Backbones:
    """One checkpoint on several backbones, each loaded when it is first asked for.

    Args:
        first: on the backbone that `names` begins with.
        names: the backbones to choose from.
        load: the checkpoint on another backbone.
        keep: how many stay in memory; those not used for longest go, and with them their features.
    """

    def __init__(
        self, first: DiffUp, names: Sequence[str], load: Callable[[str], DiffUp], keep: int = KEPT_MODELS
    ) -> None:
        self.names, self._load, self._keep = tuple(names), load, keep
        self._kept: OrderedDict[str, DiffUp] = OrderedDict({self.names[0]: first})

    def get(self, name: object) -> DiffUp:
        """The checkpoint on a backbone.

        Raises:
            UserError: not one of `names`, or its weights are not available.
        """
        if not isinstance(name, str) or name not in self.names:
            raise UserError(f"choose a backbone: one of {', '.join(self.names)}")
        if name not in self._kept:
            self._kept[name] = self._load(name)
        self._kept.move_to_end(name)
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return self._kept[name]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a backbone made of a query.

    Attributes:
        backbone: its name.
        query: the query's picture.
        result: masks and estimates.
        cues: what was drawn or written, in words.
        load_seconds: for loading the backbone; 0 if it was in memory.
        encode_seconds, encoded: for encoding so many pictures; those encoded before are in memory.
        decode_seconds: from features and cues to the mask.
    """

    backbone: str
    query: Picture
    result: Result
    cues: str
    load_seconds: float
    encode_seconds: float
    encoded: int
    decode_seconds: float


@dataclass(eq=False)
class Session:
    """Pictures, backbones and features of a running page; one segmentation at a time.

    Attributes:
        backbones: to choose from.
        trained_on: name of the backbone of the training.
        pictures: that users have added.
    """

    backbones: Backbones
    trained_on: str
    pictures: Pictures = field(default_factory=Pictures)
    _features: ByteLRU[tuple[str, str], Features] = field(
        default_factory=lambda: ByteLRU(KEPT_FEATURES, Features.nbytes)
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def segment(self, supports: object, query: object, class_name: object, others: object, backbone: object) -> Outcome:
        """Segment the query with one backbone.

        Args:
            supports, query: what the two canvases hold (`drawn`).
            class_name: the class in words; empty for no text cue.
            others: names of what else may be in the picture, separated by commas.
            backbone: one of `Backbones.names`.

        Raises:
            UserError: something is missing or can't be used; the message is for the user of the page.
        """
        with self._lock:
            began = time.perf_counter()
            model = self.backbones.get(backbone)
            loaded = time.perf_counter()
            found = self.drawn(query)
            if not found:
                raise UserError(NO_QUERY)
            picture, (drawings, words) = found[-1][0], self._cues(supports, class_name, others, model)
            ready = time.perf_counter()
            needed = {each.token: each for each in [picture, *(pic for pic, _, _ in drawings)]}
            features, encoded = self._encoded(model, needed)
            made = time.perf_counter()
            cues: list[Cue] = [Support(features[pic.token], drawn, kind) for pic, kind, drawn in drawings]
            result = model.segment(features[picture.token], [*cues, *words])
            done = time.perf_counter()
        described = _described([kind for _, kind, _ in drawings], words)
        load_seconds = loaded - began if loaded - began > 0.05 else 0.0
        return Outcome(str(backbone), picture, result, described, load_seconds, made - ready, encoded, done - made)

    def drawn(self, value: object) -> list[tuple[Picture, dict[str, Any]]]:
        """The pictures of a canvas with their annotations by kind.

        Args:
            value: ``{"pictures": [{"token": …, "strokes": […]}, …]}``, or None for an empty canvas.

        Raises:
            UserError: it is something else, a picture that is no longer kept, or there are too many.
        """
        given = value.get("pictures") if isinstance(value, Mapping) else None
        if value is None or given is None:
            return []
        if not isinstance(given, Sequence) or not all(isinstance(each, Mapping) for each in given):
            raise UserError("the page sent something that is no list of pictures; load it again")
        if len(given) > MOST_SUPPORTS:
            raise UserError(f"at most {MOST_SUPPORTS} pictures are taken; remove some")
        found = []
        for each in given:
            picture = self.pictures.get(each.get("token"))
            found.append((picture, annotations_of(read_strokes(each.get("strokes", ())), picture.size)))
        return found

    def _cues(
        self, supports: object, class_name: object, others: object, model: DiffUp
    ) -> tuple[list[tuple[Picture, str, Any]], list[Text]]:
        drawings = []
        for number, (picture, kinds) in enumerate(self.drawn(supports), 1):
            if not kinds:
                raise UserError(f"nothing is drawn on support {number}: draw the object on it, or remove it")
            drawings += [(picture, kind, drawn) for kind, drawn in kinds.items()]
        name = class_name.strip() if isinstance(class_name, str) else ""
        reads_text = model.encoder.text_model is not None
        if name and not reads_text:
            readers = ", ".join(filter(has_text_encoder, self.backbones.names)) or NO_READER
            this = model.encoder.backbone.name
            raise UserError(f"{this} reads no text: clear the class name, or choose one that does: {readers}")
        names = [each.strip() for each in others.split(",")] if isinstance(others, str) else []
        words = [Text(name, tuple(each for each in names if each))] if name else []
        if not drawings and not words:
            raise UserError(NO_CUE.format(", or write a class name" if reads_text else ""))
        return drawings, words

    def _encoded(self, model: DiffUp, needed: Mapping[str, Picture]) -> tuple[dict[str, Features], int]:
        """Features by token, and how many pictures had to be encoded for them."""
        made_by = model.encoder.identity
        found = {token: self._features.get((made_by, token)) for token in needed}
        missing = [token for token, features in found.items() if features is None]
        # One at a time: what is made of a picture must not depend on which others were new.
        made = dict(zip(missing, model.encode([needed[token].pixels for token in missing], batch_size=1)))
        for token, features in made.items():
            self._features.put((made_by, token), features)
        return {token: features or made[token] for token, features in found.items()}, len(made)


def _described(kinds: Sequence[str], words: Sequence[Text]) -> str:
    """Cues in words: "2 × mask, 1 × box, text"."""
    counted = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join([*counted, *(f"text “{each.name}”" for each in words)])
