"""Images and cues of the Python API as the network reads them: features, weights on the feature grid, embedded names.

Letters: K cues · h w feature grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffup.episodes.cues import cue_weights
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder
from diffup.models.batch import Features
from diffup.support import AnyImage, Cue, Support, Text, check_list, to_rgb


@dataclass(frozen=True)
class Cues:
    """Cues that were encoded.

    Attributes:
        supports: features of the K supports.
        kinds: what the network knows each support's cue by.
        weights_K2hw: foreground and background weight of each position.
        names: text embeddings [N, D], the class first; None without a text cue.
    """

    supports: list[Features]
    kinds: tuple[str, ...]
    weights_K2hw: Tensor
    names: Tensor | None


def encoded_cues(encoder: Encoder, cues: Sequence[Cue]) -> Cues:
    """Supports and text for the network.

    Raises:
        UserError: no cue, a cue that does not fit, or features of another backbone.
    """
    check_list(cues, "cues is a list; put a single cue in brackets")
    for i, cue in enumerate(cues):
        if not isinstance(cue, Support | Text):
            raise UserError(f"cues[{i}] is a {type(cue).__name__}; a cue is a Support or a Text")
    shown = [(i, cue) for i, cue in enumerate(cues) if isinstance(cue, Support)]
    texts = [cue for cue in cues if isinstance(cue, Text)]
    if not cues:
        raise UserError("segmentation needs a cue: a Support or a Text")
    if len(texts) > 1:
        raise UserError("one Text cue at most; put other names into its 'others'")
    names = None
    if texts:
        if encoder.text_model is None:
            raise UserError(
                f"a Text cue needs a model that reads text, and backbone {encoder.backbone.name!r} has none "
                f"beside it; name an open_clip model: from_pretrained(…, companion='open_clip:ViT-B-16/openai')"
            )
        names = encoder.embed_names((texts[0].name, *texts[0].others))
    pixels = pictures([cue.image for _, cue in shown], [f"cues[{i}]" for i, _ in shown])
    supports = features(encoder, [cue.image for _, cue in shown], pixels, [f"cues[{i}]" for i, _ in shown])
    grid = encoder.config.feature_grid
    weights = torch.zeros(len(shown), 2, grid, grid)
    for k, (i, cue) in enumerate(shown):
        try:
            weights[k] = cue_weights(cue.drawn(supports[k].size), cue.cue, grid)
        except UserError as error:
            raise UserError(f"cues[{i}]: {error}") from error
    return Cues(supports, tuple(cue.cue for _, cue in shown), weights, names)


def pictures(images: Sequence[AnyImage | Features], places: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """The pixels of images, uint8 [H, W, 3]; None for features.

    Raises:
        UserError: something that is no image; the message begins with its place.
    """
    return [None if isinstance(im, Features) else to_rgb(im, place) for im, place in zip(images, places, strict=True)]


def features(
    encoder: Encoder,
    images: Sequence[AnyImage | Features],
    pixels: Sequence[NDArray[np.uint8] | None],
    places: Sequence[str],
) -> list[Features]:
    """Features as they are, and images, whose `pictures` are given, encoded (all at once).

    Raises:
        UserError: features of another backbone.
    """
    for image, place in zip(images, places, strict=True):
        if isinstance(image, Features) and image.made_by != encoder.identity:
            raise UserError(
                f"{place} was encoded by {image.made_by or 'something unknown'}, but this DiffUp has "
                f"{encoder.identity}; encode the image again with this one"
            )
    fresh = iter(encoder.encode([picture for picture in pixels if picture is not None]))
    return [image if isinstance(image, Features) else next(fresh) for image in images]
