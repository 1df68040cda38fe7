"""The model card of a checkpoint: what it is, what it was trained on and how to load it, from the facts it carries.

The header is what the Hugging Face hub reads. No torch, and no times: the same checkpoint has the same card.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from diffup.config import ModelConfig
from diffup.data.spec import ALL_CLASSES

PACKAGES = ("diffup", "torch", "timm", "open_clip_torch", "numpy")
TAGS = ("image-segmentation", "few-shot-segmentation", "diffusion", "uncertainty", "diffup")
PAPER = "https://arxiv.org/abs/2407.16182"
CODE_LICENCE = "mit"
SAME_LICENCE = "The licence above is that of this code and of these weights"
OTHER_LICENCE = "The code is under the MIT licence, these weights are under the terms above"

TEXT = """\
# DiffUp, trained on {backbone}

The trained part of DiffUp: UAPF, which fuses backbone-agnostic prior maps to a mean and a variance, and UQDD, a
diffusion decoder that draws the mask from them. It segments a class that is shown by a few annotated images (mask,
box, scribble) or named by text. The frozen backbone is not in this folder and can be exchanged without re-training.

An independent implementation of [No Re-Train, More Gain]({paper}).
The paper's authors released no code; equations, schedules and losses are this project's own. No figure of the paper is
claimed for this checkpoint.

## Load

```python
from diffup import DiffUp, Support

model = DiffUp.load("FOLDER OR HUB ID")  # on the backbone it was trained with
model = model.swap_backbone("{other}")  # on another one, without re-training
query, support = model.encode(["query.jpg", "support.jpg"])
result = model.segment(query, [Support(support, mask, "mask")])
```

## Training

{training}

{notes}## Limitations

* Trained on few classes of one data set; on other domains it is unmeasured.
* Text on photographs is unverified: text cues were measured on rendered images only.
* The variance and the predicted IoU are learned estimates, not guarantees.
* {licence}; the backbone and the training images have their own.
"""


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those `packages` that are installed, by distribution name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def model_card(model: ModelConfig, facts: Mapping[str, Any], weights: str = "") -> str:
    """The card as Markdown with a YAML header.

    Args:
        model: configuration of the trained part.
        facts: of the checkpoint: ``cell`` (training cell as a document), ``key``, ``classes``, ``left_out`` (names) and
            ``versions``; what is missing is called not recorded. ``notes`` are further sections, Markdown by heading,
            and ``licence`` is that of the weights, as the hub names it, where it is not the code's.
        weights: what identifies them, for people.
    """
    from huggingface_hub import ModelCardData

    cell: Mapping[str, Any] = facts.get("cell") or {}
    backbone = str(cell.get("backbone") or "an unrecorded backbone")
    licence = str(facts.get("licence") or CODE_LICENCE)
    header = ModelCardData(
        license=licence,
        library_name="diffup",
        pipeline_tag="image-segmentation",
        tags=list(TAGS),
        model_name=f"DiffUp trained on {backbone}",
    )
    rows = {
        "backbone": _joined(cell, "backbone", "weights"),
        "text companion": _joined(cell.get("input") or {}, "companion", "companion_weights") or "none",
        "data set": _joined(cell, "dataset", "dataset_hash"),
        "protocol": _joined(cell, "protocol", "protocol_hash"),
        "fold left out": "none" if cell.get("fold") == ALL_CLASSES else cell.get("fold"),
        "classes trained on": ", ".join(facts.get("classes") or ()),
        "classes left out": ", ".join(facts["left_out"]) or "none" if "left_out" in facts else "",
        "bank": ", ".join(facts.get("bank") or ()) or "none",
        "variant": cell.get("variant"),
        "training seed": cell.get("train_seed"),
        "training cell": facts.get("key"),
        "input": _settings(cell.get("input")),
        "model": _settings(dataclasses.asdict(model)),
        "training": _settings(cell.get("train")),
        "versions": _settings(facts.get("versions")),
        "weights": weights,
    }
    table = ["| | |", "|---|---|"]
    table += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    other = "tiny_regnet" if backbone.startswith("tiny_") else "vit_small_patch14_dinov2.lvd142m"
    text = TEXT.format(
        backbone=backbone,
        paper=PAPER,
        other=other,
        training="\n".join(table),
        notes="".join(f"## {heading}\n\n{note.strip()}\n\n" for heading, note in (facts.get("notes") or {}).items()),
        licence=SAME_LICENCE if licence == CODE_LICENCE else OTHER_LICENCE,
    )
    return f"---\n{header.to_yaml()}\n---\n\n{text}"


def _joined(document: Mapping[str, Any], name: str, detail: str) -> str:
    """``name (detail)`` of two fields, ``""`` without the first."""
    if not document.get(name):
        return ""
    return f"{document[name]} ({document[detail]})" if document.get(detail) else str(document[name])


def _settings(document: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted((document or {}).items()))


def _cell(value: object) -> str:
    """A value in a Markdown table."""
    text = "" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").split()) or "not recorded"
