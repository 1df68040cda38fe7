"""Backbone names: which library a name belongs to, whether it exists, and what was probably meant. No torch at import.

Four kinds of names:

* ``resnet50``, ``vit_small_patch14_dinov2.lvd142m``: a timm model, with an optional pretrained tag after the dot;
* ``open_clip:ViT-B-16/openai``: an open_clip model, with an optional pretrained tag after the slash;
* ``tiny_resnet``: one of the models that are shipped with this package (`diffup.backbones.embedded`);
* ``my_package.my_module:build``: a function of one's own that builds a module (`diffup.backbones.own`), or the name of
  an entry point of group ``diffup.backbones``, which stands for one.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffup.backbones.embedded import EMBEDDED
from diffup.errors import UserError, extra
from diffup.plugins import BACKBONES, by_module, entry_points, is_function, source_hash

OPEN_CLIP_PREFIX = "open_clip:"
SUGGESTIONS = 5
OWN_WHAT, SOURCE = "backbone", "source:"


@dataclass(frozen=True, kw_only=True)
class BackboneName:
    """A parsed name.

    Attributes:
        kind: ``"timm"``, ``"open_clip"``, ``"embedded"`` or ``"own"``.
        model: the architecture, as its library calls it; of one's own, the function that builds it.
        tag: the pretrained tag, ``""`` for the library's default.
    """

    kind: str
    model: str
    tag: str = ""

    @property
    def timm_name(self) -> str:
        """``model.tag`` as `timm.create_model` takes it."""
        return f"{self.model}.{self.tag}" if self.tag else self.model


def parse_backbone(name: str) -> BackboneName:
    """Split a backbone name into kind, model and tag; existence is not checked (see `check_backbone`).

    Raises:
        UserError: no text, or the name is empty or has an empty part.
    """
    if not isinstance(name, str):
        raise UserError(
            f"a backbone is given by its name, a timm one, 'open_clip:MODEL/TAG', 'package.module:build' or one of "
            f"{', '.join(EMBEDDED)}; or as a torch.nn.Module; not as a {type(name).__name__}"
        )
    if name in EMBEDDED:
        return BackboneName(kind="embedded", model=name)
    if function := own_function(name):
        return BackboneName(kind="own", model=function)
    kind, separator = ("open_clip", "/") if name.startswith(OPEN_CLIP_PREFIX) else ("timm", ".")
    model, found, tag = name.removeprefix(OPEN_CLIP_PREFIX).partition(separator)
    if (not model or (found and not tag) or name != name.strip()) and not by_module(name):
        raise UserError(
            f"backbone name {name!r} is incomplete; write a timm name such as 'resnet50' or 'resnet50.a1_in1k', or "
            f"'open_clip:MODEL/TAG' such as 'open_clip:ViT-B-16/openai'"
        )
    return BackboneName(kind=kind, model=model, tag=tag)


def own_function(name: str) -> str:
    """The function that builds a backbone of one's own, ``"package.module:build"``; ``""`` for any other name."""
    if is_function(name) and not name.startswith(OPEN_CLIP_PREFIX):
        return name
    return entry_points(BACKBONES).get(name, "")


def own_identity(name: str) -> str:
    """``"source:<12 hex>"`` of the file of the function that a name stands for: what a cell records as its weights.

    Raises:
        UserError: there is no such module or file.
    """
    return f"{SOURCE}{source_hash(own_function(name), OWN_WHAT)}"


def has_text_encoder(name: str) -> bool:
    """Whether the name promises a text encoder; a planner can ask this without loading anything."""
    parsed = parse_backbone(name)
    return parsed.kind == "open_clip" or (parsed.kind == "embedded" and EMBEDDED[parsed.model].has_text)


def known_names() -> list[str]:
    """Every architecture by name, without tags: embedded, plug-ins, timm's, and open_clip's where that is installed."""
    import timm

    names = [*EMBEDDED, *entry_points(BACKBONES), *timm.list_models()]
    with suppress(ModuleNotFoundError):
        import open_clip

        names += [f"{OPEN_CLIP_PREFIX}{model}" for model in open_clip.list_models()]
    return names


def suggest(name: str) -> list[str]:
    """Existing names that look like `name`, best first (at most five).

    Architectures are compared without their tags, so that a wrong tag still leads to the right model.
    """
    wanted = name.lower()
    known = {model.lower(): model for model in known_names()}
    stem = wanted.partition("/")[0]
    parts = [wanted, wanted.partition(".")[0], stem, f"{OPEN_CLIP_PREFIX}{stem}"]
    found: dict[str, float] = {}
    for part in dict.fromkeys(parts):
        for match in difflib.get_close_matches(part, known, n=SUGGESTIONS, cutoff=0.6):
            score = difflib.SequenceMatcher(None, part, match).ratio()
            found[known[match]] = max(score, found.get(known[match], 0.0))
    return sorted(found, key=lambda match: (-found[match], match))[:SUGGESTIONS]


def _unknown(name: str, what: str, near: list[str]) -> UserError:
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models(), open_clip.list_models() list all names"
    if own := by_module(name):
        hint = f"for a function of your own write {own}"
    return UserError(f"backbone {name!r}: {what} ({hint})")


def check_backbone(name: str) -> BackboneName:
    """Parse a name and make sure that its library knows the model and the tag.

    Raises:
        UserError: unknown model or tag; the message suggests near names.
    """
    parsed = parse_backbone(name)
    if parsed.kind == "embedded":
        return parsed
    if parsed.kind == "own":
        own_identity(name)
        if name in entry_points(BACKBONES):
            import timm

            if timm.is_model(name.partition(".")[0]):
                raise UserError(
                    f"backbone {name!r} is both a model of timm and an entry point of group {BACKBONES}; write "
                    f"{parsed.model!r} for the latter, or rename it"
                )
        return parsed
    if parsed.kind == "timm":
        import timm

        if not timm.is_model(parsed.model):
            raise _unknown(name, "neither timm nor this package has such a model", suggest(name))
        start = f"{parsed.model}."
        tags = [full.removeprefix(start) for full in timm.list_pretrained(f"{start}*")] if parsed.tag else []
    else:
        with extra("clip"):
            import open_clip

        if parsed.model not in open_clip.list_models():
            raise _unknown(name, f"open_clip has no model {parsed.model!r}", suggest(name))
        start = f"{OPEN_CLIP_PREFIX}{parsed.model}/"
        tags = open_clip.list_pretrained_tags_by_model(parsed.model)
    if parsed.tag and parsed.tag not in tags:
        near = difflib.get_close_matches(parsed.tag, tags, n=SUGGESTIONS, cutoff=0.0)
        what = f"{parsed.kind}'s {parsed.model} has no pretrained tag {parsed.tag!r}"
        raise _unknown(name, what, [f"{start}{tag}" for tag in near])
    return parsed


def check_tag(name: str, path: Path) -> None:
    """Make sure that a name says which activation the weights in a file want.

    The same open_clip architecture is trained with GELU by some and with QuickGELU by others, OpenAI first; the shapes
    are the same, so that the wrong activation goes unnoticed and spoils every feature. Only the tag tells.

    Raises:
        UserError: an open_clip name without a tag whose tags differ from the architecture's own activation.
    """
    parsed = parse_backbone(name)
    if parsed.kind != "open_clip" or parsed.tag:
        return
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(parsed.model)
    quick = [tag for tag in tags if open_clip.get_pretrained_cfg(parsed.model, tag).get("quick_gelu")]
    if not quick or (open_clip.get_model_config(parsed.model) or {}).get("quick_gelu"):
        return
    plain = [tag for tag in tags if tag not in quick]
    others = f"; plain GELU goes with {', '.join(plain[:SUGGESTIONS])}" if plain else ""
    whose = " for OpenAI's weights" if quick[0] == "openai" else ""
    raise UserError(
        f"backbone {name!r} with weights file {path}: the name doesn't say whose weights these are, and those of "
        f"{', '.join(quick[:SUGGESTIONS])} want QuickGELU in place of GELU{others}. Name the tag they were trained "
        f"as, '{name}/{quick[0]}'{whose}"
    )
