"""A page on this machine to draw on supports, segment a query, and swap the backbone: diffup demo.

    diffup demo
    diffup demo --backbones resnet50,vit_small_patch14_dinov2.lvd142m --weights-dir weights

Pictures stay in memory and are gone when the process ends, by Ctrl+C or SIGTERM.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffup.commands.options import CountOrNone, Folder, Name, NamesOrNone, option, parse
from diffup.commands.threads import use_threads
from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup.demo.session import Session

LARGEST_PORT = 65535


def port(text: str) -> int:
    """A port's number."""
    if not re.fullmatch(r"\d{1,5}", text, flags=re.ASCII) or int(text) > LARGEST_PORT:
        raise UserError(f"must be 0 to {LARGEST_PORT}, not {text}")
    return int(text)


PortOrNone = Annotated[int | None, *option("PORT", port, default=False)]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Options of the command."""

    checkpoint: Name = "base"
    """the trained part: base, a checkpoint's folder, or a Hugging Face hub id owner/name"""
    backbones: NamesOrNone = None
    """to choose from, the first is loaded at the start (default: that of the training, those with weights in
    --weights-dir, and the embedded ones)"""
    weights_dir: Folder = None
    """folder of <backbone>.safetensors; others are downloaded by name"""
    device: Name = "cpu"
    """where backbones run"""
    threads: CountOrNone = None
    """of the CPU (default: torch's own number); fewer leave cores to others"""
    port: PortOrNone = None
    """of the address; 0 for any that is free (default: the first free one from 7860)"""
    share: bool = False
    """also make a public address, through Gradio's servers"""


def main(argv: Sequence[str]) -> int:
    """Serve the page until it is interrupted."""
    options = parse(Demo, argv, prog="diffup demo", description=__doc__ or "")
    if options.backbones == ():
        raise UserError("--backbones names no backbone")
    use_threads(options.threads)
    from diffup.demo.serve import check_installed, free_port, private_folder, serve

    check_installed()
    chosen = free_port(options.port)
    with private_folder():
        session = open_session(options.checkpoint, options.backbones, options.weights_dir, options.device)
        serve(session, _shown(options.checkpoint), port=chosen, share=options.share)
    return 0


def open_session(
    checkpoint: str, names: Sequence[str] | None, weights_dir: Path | None = None, device: str = "cpu"
) -> Session:
    """A checkpoint on the first backbone of `names`, the others to be loaded when they are chosen.

    Args:
        checkpoint: as `DiffUp.from_pretrained` takes it.
        names: of backbones; None for that of the training, if it is available, those with weights in `weights_dir`,
            and the embedded ones.
        weights_dir: folder of weights.
        device: where backbones run.

    Raises:
        UserError: no such checkpoint, backbone or device.
    """
    from diffup.api import DiffUp
    from diffup.backbones.embedded import EMBEDDED
    from diffup.backbones.registry import check_backbone
    from diffup.backbones.weights import find_weights
    from diffup.demo.session import Backbones, Session

    find_weights("resnet50", weights_dir)  # the folder is there
    for name in names or ():
        check_backbone(name)
    load = partial(DiffUp.from_pretrained, checkpoint, weights_dir=weights_dir, device=device)
    try:
        first = load(names[0] if names else None)
    except UserError as error:
        if names:
            raise
        first = load(next(iter(EMBEDDED)))
        print(f"the training backbone is left out: {error}", file=sys.stderr)
    others = names or [*_with_weights(weights_dir), *EMBEDDED]
    shown = list(dict.fromkeys([first.encoder.backbone.name, *others]))
    backbones = Backbones(first, shown, lambda name: first.swap_backbone(name, weights_dir=weights_dir))
    return Session(backbones, str(first.facts["cell"]["backbone"]))


def _shown(checkpoint: str) -> str:
    """A checkpoint's name for the page, which may be shared: of a folder the last part."""
    path = Path(checkpoint).expanduser()
    return path.resolve().name if path.is_dir() else checkpoint


def _with_weights(weights_dir: Path | None) -> list[str]:
    """Backbones that a file of `weights_dir` is named after."""
    from diffup.backbones.registry import check_backbone

    found = []
    for path in sorted(weights_dir.expanduser().glob("*.safetensors")) if weights_dir else ():
        with suppress(UserError):  # a file of another purpose
            check_backbone(path.stem)
            found.append(path.stem)
    return found
