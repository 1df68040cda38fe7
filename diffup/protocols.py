"""Protocols: named, hashed rules of evaluation. A number without its protocol can't be compared with another one.

A protocol says which images may serve for a class, how episodes are drawn and at which size they are scored; the lists
themselves follow from the data. Its hash is part of every cell's identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules of one protocol.

    Attributes:
        name: how cells and tables name it.
        min_pixels: in the data sets named in `pixel_datasets`, an image counts for a class that covers at least this
            many pixels at original size (PFENet's rule: 2·32·32).
        pixel_datasets: data sets that `min_pixels` is meant for.
        min_fraction: in any other data set, an image counts for a class that covers at least this share of it, unless
            its ``dataset.json`` gives a ``min_area_fraction`` of its own.
        draw: how episodes are drawn; ``"index-seeded"`` is `diffup.episodes.paired_episodes`.
        supports: ``"distinct, nested"``: no support repeats, and the K supports begin the K+1 ones.
        scored_at: size that predictions are compared with the truth at.
        void: what happens to query pixels labelled 255.
    """

    name: str
    min_pixels: int
    pixel_datasets: tuple[str, ...]
    min_fraction: float
    draw: str = "index-seeded"
    supports: str = "distinct, nested"
    scored_at: str = "original resolution"
    void: str = "ignored"

    def __post_init__(self) -> None:
        if self.min_pixels < 1:
            raise ValueError(f"Protocol.min_pixels must be 1 or more, not {self.min_pixels}")
        if not 0 <= self.min_fraction < 1:
            raise ValueError(f"Protocol.min_fraction must lie in [0, 1), not {self.min_fraction}")

    def hash(self) -> str:
        """First 12 hex digits of the sha256 of all fields."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def needed_pixels(self, dataset: str, size: tuple[int, int], min_fraction: float | None = None) -> float:
        """Pixels that a class must cover for an image to count, at least 1.

        Args:
            dataset: name of the data set.
            size: (H, W) of the image.
            min_fraction: the data set's own share, in place of the protocol's.
        """
        if dataset in self.pixel_datasets:
            return self.min_pixels
        fraction = self.min_fraction if min_fraction is None else min_fraction
        return max(1.0, fraction * size[0] * size[1])

    def describe(self) -> str:
        """One line for logs and captions."""
        return (
            f"{self.name} [{self.hash()}]: {self.draw} episodes, {self.supports} supports, scored at "
            f"{self.scored_at}, void {self.void}; a class counts from {self.min_pixels} px "
            f"({', '.join(self.pixel_datasets)}) or {self.min_fraction:.1%} of the image (others)"
        )


PROTOCOLS = {
    "paired": Protocol(
        name="paired", min_pixels=2 * 32 * 32, pixel_datasets=("pascal5i", "coco20i"), min_fraction=0.01
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; there is {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name]
