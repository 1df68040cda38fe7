"""The renderer behind `shapes4i` and the embedded backbones: forms with appearances on textured backgrounds.

A thing is a *combination* of a form, a pattern and a colour ("striped red ring"). Forms are signed distance functions,
drawn with soft edges; every object is rotated, scaled, lit and may be hidden in part by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffup.errors import UserError

Array = NDArray[np.floating[Any]]

FORMS = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart")
PATTERNS = ("plain", "striped", "dotted", "checkered")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
HUES = {
    "red": (205, 45, 45),
    "green": (50, 165, 60),
    "blue": (50, 80, 205),
    "yellow": (220, 195, 50),
    "purple": (145, 60, 175),
    "cyan": (50, 190, 195),
}


@dataclass(frozen=True)
class Combination:
    """A form with an appearance; its name is what a person would say."""

    pattern: str
    colour: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.colour} {self.form}"


COMBINATIONS = tuple(Combination(*parts) for parts in product(PATTERNS, COLOURS, FORMS))


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: [H, W, 3] uint8.
        owner: [H, W] int16, index of the object seen at each pixel, -1 for the background.
        objects: the combination of each object.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int16]
    objects: tuple[Combination, ...]


def _distance(form: str, x: Array, y: Array) -> Array:
    """Signed distance-like function of a form in the square [-1, 1]², negative inside, y down."""
    radius = np.hypot(x, y)
    if form == "disc":
        return radius - 0.9
    if form == "ring":
        return np.abs(radius - 0.66) - 0.26
    if form == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.75
    if form == "triangle":
        return np.maximum(y - 0.55, np.abs(x) * 0.87 - (y + 0.95) * 0.5)
    if form == "star":
        angle = np.arctan2(x, -y)
        sector = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        return 0.5 * (radius * (np.cos(sector) + 2.2 * np.sin(sector)) - 0.95)
    if form == "cross":
        a, b = np.abs(x), np.abs(y)
        return np.maximum(np.minimum(a, b) - 0.28, np.maximum(a, b) - 0.9)
    if form == "crescent":
        return np.maximum(radius - 0.92, 0.72 - np.hypot(x - 0.42, y))
    if form == "heart":
        u, v = np.abs(x) * 1.15, -y * 1.15 + 0.12
        return (u**2 + v**2 - 0.75) ** 3 - u**2 * v**3
    raise UserError(f"unknown form {form!r}; forms are {', '.join(FORMS)}")


def _pattern(pattern: str, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Share of the second tone at each position, in [0, 1]."""
    period = rng.uniform(0.36, 0.52)
    phase = rng.uniform(0, 2 * np.pi, 2)
    u, v = 2 * np.pi * x / period + phase[0], 2 * np.pi * y / period + phase[1]
    soft = 3.0
    if pattern == "striped":
        return np.clip(0.5 + soft * np.sin(u) / 2, 0, 1)
    if pattern == "dotted":
        return np.clip(0.5 + soft * (np.sin(u) * np.sin(v) - 0.35), 0, 1)
    if pattern == "checkered":
        return np.clip(0.5 + soft * np.sin(u * 0.75) * np.sin(v * 0.75), 0, 1)
    return np.zeros_like(x)


def _smooth_noise(height: int, width: int, cell: int, rng: np.random.Generator) -> Array:
    """Value noise in [0, 1] with features of about `cell` pixels."""
    coarse = rng.random((height // cell + 3, width // cell + 3)).astype(np.float32)
    rows = np.arange(height, dtype=np.float32) / cell
    cols = np.arange(width, dtype=np.float32) / cell
    r, c = rows.astype(int), cols.astype(int)
    fr, fc = (rows - r)[:, None], (cols - c)[None]
    top = coarse[r][:, c] * (1 - fc) + coarse[r][:, c + 1] * fc
    bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, c + 1] * fc
    return top * (1 - fr) + bottom * fr


def _background(height: int, width: int, rng: np.random.Generator) -> Array:
    """Textured ground, [H, W, 3] in [0, 255]: two muted tones mixed by noise, sometimes by faint bands."""
    tones = rng.uniform(60, 200, (2, 1)) + rng.uniform(-35, 35, (2, 3))
    mix = 0.6 * _smooth_noise(height, width, int(rng.integers(18, 50)), rng)
    mix += 0.4 * _smooth_noise(height, width, int(rng.integers(4, 10)), rng)
    if rng.random() < 0.4:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 30)
        mix += 0.25 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    mix = np.clip(mix, 0, 1)[..., None]
    return (tones[0] * mix + tones[1] * (1 - mix)).astype(np.float32)


def _draw(
    canvas: Array, owner: NDArray[np.int16], index: int, thing: Combination, centre: tuple[float, float], radius: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    height, width = owner.shape
    top, bottom = int(max(0, centre[0] - 1.5 * radius)), int(min(height, centre[0] + 1.5 * radius + 1))
    left, right = int(max(0, centre[1] - 1.5 * radius)), int(min(width, centre[1] + 1.5 * radius + 1))
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.88, 1.12)
    x, y = (x - centre[1]) / radius * stretch, (y - centre[0]) / radius / stretch
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = _distance(thing.form, u, v)
    scale = radius * (2.2 if thing.form == "heart" else 1.0)
    alpha = np.clip(0.5 - distance * scale, 0, 1)[..., None]
    tone = np.asarray(HUES[thing.colour], np.float32) * rng.uniform(0.8, 1.15) + rng.uniform(-14, 14, 3)
    second = tone * 0.22 if rng.random() < 0.5 else 255 - (255 - tone) * 0.22
    turn = rng.uniform(0, 2 * np.pi)
    share = _pattern(thing.pattern, u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn), rng)
    colour = tone * (1 - share[..., None]) + second * share[..., None]
    light = 1 + rng.uniform(0, 0.3) * (x * np.cos(turn) + y * np.sin(turn))
    patch = canvas[top:bottom, left:right]
    canvas[top:bottom, left:right] = patch * (1 - alpha) + colour * light[..., None] * alpha
    owner[top:bottom, left:right][alpha[..., 0] > 0.5] = index


def render(
    things: list[Combination], rng: np.random.Generator, height: int = 160, width: int = 160,
    radii: tuple[float, float] = (11.0, 34.0),
) -> Scene:  # fmt: skip
    """Render a scene.

    Args:
        things: what to draw, the last in front.
        rng: source of all randomness.
        height, width: size in pixels.
        radii: smallest and largest radius in pixels; small objects are as likely as large ones.
    """
    canvas, owner = _background(height, width, rng), np.full((height, width), -1, np.int16)
    placed: list[tuple[float, float, float]] = []
    for index, thing in enumerate(things):
        radius = float(np.exp(rng.uniform(*np.log(radii))))
        best, best_gap = (height / 2, width / 2), -np.inf
        for _ in range(8):  # the roomiest of a few places: things overlap at times, and rarely hide
            place = (rng.uniform(0.7 * radius, height - 0.7 * radius), rng.uniform(0.7 * radius, width - 0.7 * radius))
            gaps = [np.hypot(place[0] - y, place[1] - x) - 0.8 * (radius + r) for y, x, r in placed]
            if min(gaps, default=0.0) > best_gap:
                best, best_gap = place, min(gaps, default=0.0)
            if best_gap >= 0:
                break
        placed.append((*best, radius))
        _draw(canvas, owner, index, thing, best, radius, rng)
    shade = 1 + rng.uniform(0, 0.35) * (_smooth_noise(height, width, max(height, width) // 2, rng) - 0.5) * 2
    canvas = canvas * shade[..., None] * rng.uniform(0.8, 1.15) + rng.normal(0, rng.uniform(1, 7), canvas.shape)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), owner, tuple(things))
