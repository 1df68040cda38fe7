"""Protocols: named, hashed rules of evaluation. A number without its protocol can't be compared with another one.

A protocol says which images may serve for a class, how episodes are drawn and at which size they are scored; the lists
themselves follow from the data. Its hash is part of every cell's identity.

    diffup protocols show NAME

prints a protocol in words. ``hsnet`` reproduces HSNet's episodes exactly (arXiv 2104.01538) on ``pascal5i`` and
``coco20i``, from its list files. ``pfenet``, ``bam`` and ``panet`` follow the rules of these projects (PFENet
2008.01449, BAM 2203.07615, PANet 1908.06391), read off their public code; their random streams depend on the number of
workers or are never seeded, so that the episodes themselves are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffup.data.spec import SizeRule
from diffup.errors import UserError, command_line
from diffup.fields import added_later, in_key
from diffup.usage import Parser

DRAWS = ("index-seeded", "list order", "HSNet's stream")
FITS = ("stretch", "longest side")
TRAINING_IMAGES = ("all", "without novel classes")
EPISODES = 1000
QUERIES = {
    "index-seeded": "the classes of the fold in turn, then an image of the class at random; episode i has a random "
    "stream of its own",
    "list order": "the images of the fold in the order of their names, over and over; the class at random among those "
    "of the image; episode i has a random stream of its own",
    "HSNet's stream": "on pascal5i the entries of HSNet's list in turn; on coco20i a class at random, then one of its "
    "images; elsewhere the pairs of image and class in order of their names; one random stream for all episodes",
}
ANY = ""  # stands for every data set that is not named


@dataclass(frozen=True, kw_only=True)
class Protocol(SizeRule):
    """Rules of one protocol, beside which images may serve for a class.

    Attributes:
        draw: how episodes are drawn; ``"index-seeded"`` is `diffup.episodes.sampling.paired_episodes`, ``"list order"``
            `diffup.episodes.sampling.list_order_episodes`, ``"HSNet's stream"`` `diffup.episodes.hsnet.hsnet_episodes`.
        supports: ``"distinct, nested"``: no support repeats, and the K supports begin the K+1 ones.
        scored_at: size that predictions are compared with the truth at.
        void: what happens to query pixels labelled 255.
        sides: (data set or ``""`` for any other, pixels): labels are resized to this size by nearest neighbour and
            predictions are compared there; none: the original size.
        fit: ``"stretch"`` to a square of that side, or ``"longest side"`` to it (what pads it to a square is void).
        training_images: ``"all"``, in which novel classes are background, or ``"without novel classes"``.
        episodes: (data set or ``""``, number of episodes that the protocol has); others have 1000.
        seeds: episode seeds that the protocol has.
        lists: whose list files name images and classes in the benchmarks, in place of the rules above; none: no one's.
    """

    draw: str = "index-seeded"
    supports: str = "distinct, nested"
    scored_at: str = "original resolution"
    void: str = "ignored"
    sides: tuple[tuple[str, int], ...] = added_later(())
    fit: str = added_later("stretch")
    training_images: str = added_later("all")
    episodes: tuple[tuple[str, int], ...] = added_later(())
    seeds: tuple[int, ...] = added_later((0,))
    lists: str = added_later("")

    def __post_init__(self) -> None:
        for name, allowed in (("draw", DRAWS), ("fit", FITS), ("training_images", TRAINING_IMAGES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"Protocol.{name} must be one of {', '.join(allowed)}; not {getattr(self, name)!r}")
        for name in ("sides", "episodes"):
            if any(number < 1 for _, number in getattr(self, name)):
                raise UserError(f"Protocol.{name}: numbers must be 1 or more, not {getattr(self, name)}")
        if self.min_pixels < 1:
            raise UserError(f"Protocol.min_pixels must be 1 or more, not {self.min_pixels}")
        if not 0 <= self.min_fraction < 1:
            raise UserError(f"Protocol.min_fraction must be in [0, 1), not {self.min_fraction}")

    def hash(self) -> str:
        """First 12 hex digits of the sha256 of all rules; those added later count once they are not the default."""
        values = ((item, getattr(self, item.name)) for item in dataclasses.fields(self))
        rules = {item.name: value for item, value in values if in_key(item, value)}
        canonical = json.dumps(rules, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def label_size(self, dataset: str, size: tuple[int, int]) -> tuple[int, int]:
        """The size (H, W) at which labels and predictions of an image of `size` are compared."""
        sides = dict(self.sides)
        side = sides.get(dataset, sides.get(ANY, 0))
        if not side:
            return size
        if self.fit == "stretch":
            return side, side
        longest = max(size)
        return max(1, round(size[0] * side / longest)), max(1, round(size[1] * side / longest))

    @property
    def repeats(self) -> bool:
        """Whether an episode may have the same support twice: HSNet draws supports independently."""
        return self.draw == DRAWS[2]

    def needs_lists(self, dataset: str) -> bool:
        """Whether the images of a data set come from list files that the user must have."""
        return bool(self.lists) and dataset in BENCHMARKS

    def episode_count(self, dataset: str) -> int:
        """How many episodes the protocol has on a data set."""
        numbers = dict(self.episodes)
        return numbers.get(dataset, numbers.get(ANY, EPISODES))

    def words(self) -> str:
        """Every rule in words, a line each."""
        numbers = ", ".join(f"{number} on {dataset or 'others'}" for dataset, number in self.episodes) or EPISODES
        seeds = f"{len(self.seeds)} episode seeds ({', '.join(map(str, self.seeds))})"
        lines = {
            "protocol": f"{self.name}, hash {self.hash()}",
            "images": f"a class counts in an image from {self.min_pixels} pixels at original size on "
            f"{' and '.join(self.pixel_datasets)}; elsewhere from {self.min_fraction:.1%} of the image, unless its "
            "dataset.json says otherwise",
            **({"lists": f"{self.lists}: in place of the rule above, for training too"} if self.lists else {}),
            "training": "images of base classes; novel classes are background"
            if self.training_images == "all"
            else "images of base classes without a pixel of a novel class",
            "episodes": f"{numbers} for each of {seeds}",
            "queries": QUERIES[self.draw],
            "supports": self.supports,
            "scored at": self.scored_at,
            "void": f"query pixels labelled 255 are {self.void}; in a support they are background",
        }
        return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def nearest(labels_HW: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels resized by nearest neighbour: pixel (i, j) takes (⌊i·H/h⌋, ⌊j·W/w⌋), torch's and OpenCV's convention."""
    if labels_HW.shape == size:
        return labels_HW
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, labels_HW.shape, strict=True))
    resized: NDArray[np.uint8] = labels_HW[rows[:, None], columns[None, :]]
    return resized


BENCHMARKS = ("pascal5i", "coco20i")
PROTOCOLS = {
    "paired": Protocol(name="paired"),
    "hsnet": Protocol(
        name="hsnet",
        draw="HSNet's stream",
        supports="drawn independently: never the query, but one may repeat",
        scored_at="400 × 400, labels by nearest neighbour",
        sides=((ANY, 400),),
        lists="HSNet's, on pascal5i and coco20i",
    ),
    "pfenet": Protocol(
        name="pfenet",
        draw="list order",
        supports="distinct",
        scored_at="original resolution (PFENet pads labels to a square with void, which is the same)",
        episodes=(("pascal5i", 5000), ("coco20i", 20000)),
    ),
    "bam": Protocol(
        name="bam",
        draw="list order",
        supports="distinct",
        scored_at="473 px on the longest side (641 on coco20i), labels by nearest neighbour",
        sides=(("coco20i", 641), (ANY, 473)),
        fit="longest side",
        training_images="without novel classes",
        seeds=(0, 1, 2, 3, 4),
    ),
    "panet": Protocol(
        name="panet",
        supports="distinct",
        scored_at="417 × 417, labels by nearest neighbour",
        sides=((ANY, 417),),
        seeds=(0, 1, 2, 3, 4),
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; there is {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a protocol in words; returns the exit code, 2 for an unknown one."""
    parser = Parser(prog="diffup protocols", description="Protocols in words.")
    parser.add_argument("command", choices=("show", "list"))
    parser.add_argument("name", nargs="?", help="for show")
    args = parser.parse_args(argv)
    if args.command == "list":
        for protocol in PROTOCOLS.values():
            print(f"{protocol.name:8}{protocol.hash()}")
        return 0
    try:
        print(get_protocol(args.name or "").words())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
