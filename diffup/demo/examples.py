"""Examples of the page: scenes of `shapes4i`'s kind, drawn when they are asked for, with strokes as by a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from diffup.data.render import Combination, render
from diffup.data.shapes4i import CLASS_COMBINATIONS
from diffup.demo.pictures import Pictures

HEIGHT, WIDTH, RADII = 300, 400, (40.0, 70.0)
RAYS = 72  # of an outline
PEN = 8.0  # width of a scribble in pixels
Points = list[list[float]]


@dataclass(frozen=True)
class Example:
    """A task.

    Attributes:
        label: of its button.
        target: what is looked for, by place in `CLASS_COMBINATIONS`.
        others: what else is in the pictures.
        tools: how each support is annotated, of ``"scribble"``, ``"box"`` and ``"outline"``.
        seed: of the scenes.
    """

    label: str
    target: int
    others: tuple[int, ...]
    tools: tuple[str, ...]
    seed: int

    @property
    def class_name(self) -> str:
        """What is looked for in words."""
        return CLASS_COMBINATIONS[self.target].name


# Chosen among a few seeds with the quickstart's checkpoint: in the first another backbone helps, the others just work.
EXAMPLES = (
    Example("One scribble: a striped red ring", 0, (1, 11, 8), ("scribble",), 4),
    Example("One box: a plain green star", 2, (10, 5, 3), ("box",), 6),
    Example("Two outlines: a dotted red triangle", 4, (13, 1, 12), ("outline", "outline"), 8),
)


def build(example: Example, pictures: Pictures) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the support and the query canvas, their pictures kept in `pictures`."""
    rng = np.random.default_rng(example.seed)
    supports = []
    for tool in example.tools:
        image, mask = _scene(example, rng)
        supports.append({**pictures.add(image).to_page(), "strokes": [_stroke(tool, mask)]})
    query, _ = _scene(example, rng)
    return {"pictures": supports}, {"pictures": [{**pictures.add(query).to_page(), "strokes": []}]}


def _scene(example: Example, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture with the target in front, and the target's mask."""
    things: list[Combination] = [CLASS_COMBINATIONS[i] for i in (*example.others, example.target)]
    scene = render(things, rng, HEIGHT, WIDTH, RADII)
    return scene.image, scene.owner == len(things) - 1


def _stroke(tool: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    points = {"scribble": _along, "box": _corners, "outline": _around}[tool](mask)
    return {"tool": tool, "size": PEN, "points": points}


def _corners(mask: NDArray[np.bool_]) -> Points:
    y, x = np.nonzero(mask)
    return [[float(x.min()), float(y.min())], [float(x.max() + 1), float(y.max() + 1)]]


def _angles(mask: NDArray[np.bool_], y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sector of `RAYS` around the middle of the mask that each position is in."""
    middle_y, middle_x = (side.mean() for side in np.nonzero(mask))
    return ((np.arctan2(y - middle_y, x - middle_x) / (2 * np.pi) % 1) * RAYS).astype(np.int64)


def _around(mask: NDArray[np.bool_]) -> Points:
    """The mask's outermost pixel of every sector: an outline, if no sector leaves the mask and enters it again."""
    y, x = np.nonzero(mask)
    sector, radius = _angles(mask, y, x), np.hypot(y - y.mean(), x - x.mean())
    outermost = [np.flatnonzero(sector == s)[radius[sector == s].argmax()] for s in np.unique(sector)]
    return [[float(x[i]) + 0.5, float(y[i]) + 0.5] for i in outermost]


def _along(mask: NDArray[np.bool_]) -> Points:
    """The deepest pixel of every sector, in order: around a ring, or near the middle of a filled form."""
    depth = distance_transform_edt(mask)
    y, x = np.nonzero(depth > 0.6 * depth.max())
    sector = _angles(mask, y, x)
    deepest = [np.flatnonzero(sector == s)[depth[y, x][sector == s].argmax()] for s in np.unique(sector)]
    return [[float(x[i]) + 0.5, float(y[i]) + 0.5] for i in deepest[: RAYS * 2 // 3]]
