"""Panels in two parts: what all methods share (supports, query, truth), shown once, and what is a method's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from analysis.report.gallery import Shown
from analysis.tables.places import grouped
from diffup.evaluation.drawing import LAYOUTS

QUALITY = 85  # of JPEG
PAPER = 230  # grey level from which a pixel is white, though JPEG has changed it
FEWEST_OWN = 2  # tiles of a method: a map and its prediction


@dataclass(frozen=True, eq=False)
class Example:
    """An episode with what several methods or backbones made of it.

    Attributes:
        shared: the strip of supports, query and ground truth; None if the panels can't be taken apart.
        panels: each with its own strip, or its whole panel.
        missing: panels whose picture can't be read.
    """

    shared: Image.Image | None
    panels: tuple[tuple[Shown, Image.Image], ...]
    missing: int = 0

    @property
    def first(self) -> Shown:
        """A panel, for what all of them have in common."""
        return self.panels[0][0]


def examples(panels: Sequence[Shown]) -> list[list[Shown]]:
    """The panels of each episode: of one task, fold and rank."""
    return list(grouped(((panel.task, panel.fold, panel.rank), panel) for panel in panels).values())


def read_example(panels: Sequence[Shown]) -> Example | None:
    """Read the pictures of one episode; None if none can be read."""
    whole = [(panel, image) for panel in panels if (image := _read(panel.path)) is not None]
    missing = len(panels) - len(whole)
    if not whole:
        return None
    tiles = [split(image, supports=panel.supports) for panel, image in whole]
    if any(part is None for part in tiles):
        return Example(None, tuple(whole), missing)
    known = [part for part in tiles if part is not None]
    own = tuple((panel, mine) for (panel, _), (_, mine) in zip(whole, known))
    return Example(known[0][0], own, missing)


def _read(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def split(panel: Image.Image, *, supports: bool) -> tuple[Image.Image, Image.Image] | None:
    """The shared tiles of a panel and a method's own; None if it is not laid out as `diffup.evaluation.panels.panel`.

    Args:
        panel: the whole row.
        supports: whether its first tile shows them.
    """
    front = 2 if supports else 1
    for side, gap, head in LAYOUTS:
        count, rest = divmod(panel.width + gap, side + gap)
        if panel.height == side + head and rest == 0 and count >= front + 1 + FEWEST_OWN:
            break
    else:
        return None

    bottom = _bottom(panel)

    def strip(places: Sequence[int]) -> Image.Image:
        sheet = Image.new("RGB", (len(places) * (side + gap) - gap, bottom), "white")
        for at, place in enumerate(places):
            left = place * (side + gap)
            sheet.paste(panel.crop((left, 0, left + side, bottom)), (at * (side + gap), 0))
        return sheet

    return strip([*range(front), count - 1]), strip(range(front, count - 1))


def _bottom(panel: Image.Image) -> int:
    """The last row that is not white in all tiles: those of a query that is wider than high end above the panel's."""
    inked = panel.convert("L").point([255 * (level < PAPER) for level in range(256)]).getbbox()
    return inked[3] if inked else panel.height


def to_jpeg(image: Image.Image) -> bytes:
    """The picture's bytes."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
