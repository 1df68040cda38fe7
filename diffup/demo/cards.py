"""A backbone's result as a card of the page: figures, mask, prior mean and deviation as HTML, pictures inside."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.overlay import overlay
from diffup.demo.pictures import data_url
from diffup.demo.session import Outcome

# Anchors of a map from 0 to 1 that is ordered in lightness and clear to colour-blind readers (as matplotlib's viridis).
ANCHORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
VIEWS = {"mask": "Mask", "mean": "Prior mean", "deviation": "Deviation", "probability": "Probability"}
MAP_SIDE = 640  # pixels, of the longer side of a map's picture: maps are smooth
DEVIATION_TOP = 0.5  # the largest deviation of a probability


def waiting(text: str) -> str:
    """A card without a result."""
    return f'<article aria-live="polite" class="du-card"><p class="du-hint">{escape(text)}</p></article>'


def failed(backbone: object, message: str) -> str:
    """A card that says what the user can do."""
    name = escape(str(backbone or ""))[:120]
    return (
        f'<article aria-live="polite" class="du-card du-failed" data-backbone="{name}"><h3>{name}</h3>'
        f'<p role="alert">{escape(message)}</p></article>'
    )


def card(outcome: Outcome, trained_on: str) -> str:
    """A card with a result."""
    result, name = outcome.result, escape(outcome.backbone)
    seen = "the decoder was trained on it" if outcome.backbone == trained_on else "never seen in training"
    new = f"{outcome.encoded} new" if outcome.encoded else "all in memory"
    facts = [
        ("Predicted IoU", f"{result.predicted_iou:.2f}"),
        ("Area", f"{100 * result.mask.mean():.1f} %"),
        ("Decode", f"{1000 * outcome.decode_seconds:.0f} ms"),
        (f"Encode ({new})", f"{1000 * outcome.encode_seconds:.0f} ms"),
    ]
    if outcome.load_seconds:
        facts.append(("Load backbone", f"{outcome.load_seconds:.1f} s"))
    maps = {"mean": (result.prior, 1.0), "deviation": (np.sqrt(result.variance), DEVIATION_TOP),
            "probability": (result.probability, 1.0)}  # fmt: skip
    figures = _figure("mask", name, overlay(outcome.query.pixels, result.mask), "")
    for view, (values, top) in maps.items():
        assert values is not None
        colours = Image.fromarray(heat(values, top))
        colours.thumbnail((MAP_SIDE, MAP_SIDE))
        figures += _figure(view, name, colours, scale(top))
    rows = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts)
    mask = data_url(Image.fromarray(result.mask).convert("L"), "PNG")
    return (
        f'<article aria-live="polite" class="du-card" data-backbone="{name}">'
        f"<header><h3>{name}</h3><span>{seen}</span></header>"
        f'<dl>{rows}</dl><div class="du-views">{figures}</div>'
        f'<p class="du-cues">From {escape(outcome.cues)}. '
        f'<a class="du-save" download="mask_{name.replace("/", "_")}.png" href="{mask}">Save the mask (PNG)</a></p>'
        "</article>"
    )


def _figure(view: str, backbone: str, image: Image.Image, legend: str) -> str:
    label = VIEWS[view]
    return (
        f'<figure data-view="{view}"><img src="{data_url(image, "JPEG")}" alt="{label} by {backbone}">'
        f"<figcaption>{label}{legend}</figcaption></figure>"
    )


def heat(values_HW: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """Values from 0 to `top` in colours, [H, W, 3]."""
    share = np.clip(values_HW / top, 0, 1)
    places = np.linspace(0, 1, len(ANCHORS))
    table = np.stack([np.interp(np.arange(256) / 255, places, channel) for channel in zip(*ANCHORS)], axis=1)
    return table.round().astype(np.uint8)[(share * 255).round().astype(np.uint8)]


def scale(top: float) -> str:
    """The colours of `heat` as a legend."""
    stops = ", ".join(f"rgb{anchor}" for anchor in ANCHORS)
    bar = f'<i class="du-bar" style="background: linear-gradient(90deg, {stops})"></i>'
    return f'<span class="du-scale"><b>0</b>{bar}<b>{top:g}</b></span>'
