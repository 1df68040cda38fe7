"""Panels for a paper: a sheet per task, supports, query and ground truth once per episode."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from analysis.report.gallery import Shown
from analysis.report.strips import Example, examples, read_example, to_jpeg
from analysis.tables.places import grouped
from diffup.evaluation.drawing import FONT, GAP, HEAD

SPACE = 28  # pixels between episodes


def sheets(panels: Sequence[Shown]) -> dict[str, bytes]:
    """One picture per task, JPEG by name, of the first fold's panels: episode by episode, a row per backbone."""
    made: dict[str, bytes] = {}
    for task, here in grouped((panel.task, panel) for panel in panels).items():
        first = [panel for panel in here if panel.fold == here[0].fold]
        images = [_sheet(example) for group in examples(first) if (example := read_example(group))]
        if images:
            height = sum(image.height for image in images) + SPACE * (len(images) - 1)
            sheet = Image.new("RGB", (max(image.width for image in images), height), "white")
            top = 0
            for image in images:
                sheet.paste(image, (0, top))
                top += image.height + SPACE
            made[f"panels_{re.sub(r'[^A-Za-z0-9]+', '_', task)}"] = to_jpeg(sheet)
    return made


def _sheet(example: Example) -> Image.Image:
    """What is shared at the left, a row of each backbone beside it."""
    shared = example.shared
    left = shared.width + 2 * GAP if shared is not None else 0
    line = HEAD
    width = left + max(image.width for _, image in example.panels)
    sheet = Image.new("RGB", (width, sum(image.height + line for _, image in example.panels)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    first = example.first
    draw.text((0, 2), f"{first.rank}: fold {first.fold}, episode {first.episode}", "black", font)
    if shared is not None:
        sheet.paste(shared, (0, line))
    top = 0
    for panel, image in example.panels:
        x = left or draw.textlength(f"{first.rank}: fold {first.fold}, episode {first.episode}   ", font) * (top == 0)
        draw.text((x, top + 2), f"{panel.method} on {panel.backbone}", "black", font)
        sheet.paste(image, (left, top + line))
        top += image.height + line
    return sheet
