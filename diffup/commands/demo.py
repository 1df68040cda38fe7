"""``diffup demo``: a page on this machine to draw supports on, segment a query, and swap the backbone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup.demo.session import Session


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(prog="diffup demo", description=__doc__.replace("``", ""))
    add = made.add_argument
    add("--checkpoint", default="base", metavar="base|DIR|HUB_ID", help="trained part (default: the shipped one)")
    add("--backbones", type=_names, metavar="A,B,C", help="to choose from, the first is loaded at the start (default: "
        "that of the training, those with weights in --weights-dir, and the embedded ones)")  # fmt: skip
    add("--weights-dir", type=Path, metavar="DIR", help="folder of <backbone>.safetensors (default: download by name)")
    add("--device", default="cpu", help="where backbones run (default: cpu)")
    add("--port", type=int, help="of the address (default: the first free one from 7860)")
    add("--share", action="store_true", help="also make a public address, through Gradio's servers (default: no)")
    return made


def main(argv: Sequence[str]) -> int:
    """Serve the page until it is interrupted."""
    options = parser().parse_args(argv)
    from diffup.demo.serve import check_installed, free_port, private_folder, serve

    check_installed()
    port = free_port(options.port)
    with private_folder():
        session = open_session(options.checkpoint, options.backbones, options.weights_dir, options.device)
        serve(session, _shown(options.checkpoint), port=port, share=options.share)
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

    find_weights(next(iter(EMBEDDED)), weights_dir)  # the folder is there
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


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return names


def _with_weights(weights_dir: Path | None) -> list[str]:
    """Backbones that a file of `weights_dir` is named after."""
    from diffup.backbones.registry import check_backbone

    found = []
    for path in sorted(weights_dir.expanduser().glob("*.safetensors")) if weights_dir else ():
        with suppress(UserError):  # a file of another purpose
            check_backbone(path.stem)
            found.append(path.stem)
    return found
