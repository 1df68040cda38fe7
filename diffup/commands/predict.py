"""Segment pictures by one or a few annotated examples, on any backbone.

    diffup predict photos/ --support cow.jpg --mask cow.png -o masks
    diffup predict a.jpg b.jpg --support s.jpg --box 60,76,120,138 --support t.jpg --points "90,40;120,52" -o masks
    diffup predict 'photos/*.jpg' --support s.jpg --scribble s.png --backbone vit_small_patch14_dinov2.lvd142m -o masks

Each --support is followed by its own annotation. For each query the mask (PNG, 0 and 255), an overlay (JPEG) and a JSON
file are written. Run again, it goes on where it stopped. Exit code: 0, 1 if a query could not be read (the others are
done), 2 for other bad input, 130 when it was interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from diffup.commands.options import Count, Name, NameOrNone, Text, option, parse, repeatable
from diffup.commands.predict_inputs import ANNOTATIONS, find_queries, in_order
from diffup.errors import UserError

if TYPE_CHECKING:
    from diffup import DiffUp

PROG = "diffup predict"
Folder = Annotated[Path | None, *option("DIR", Path, default=False)]


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Options of ``diffup predict``."""

    queries: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="QUERY…", help_behavior_hint="")]
    ] = ()
    """pictures to segment: files, patterns in quotes, folders with all that is in them"""
    support: Annotated[tuple[str, ...], *repeatable("S.jpg")] = ()
    """a picture that shows the class; its annotation follows"""
    mask: Annotated[tuple[str, ...], *repeatable("M.png")] = ()
    """PNG of the support's size, the class white (255, or 1)"""
    box: Annotated[tuple[str, ...], *repeatable("X0,Y0,X1,Y1")] = ()
    """around the class, in pixels; several with ; between"""
    scribble: Annotated[tuple[str, ...], *repeatable("P.png")] = ()
    """PNG of the support's size, strokes on the class white"""
    points: Annotated[tuple[str, ...], *repeatable("X,Y;…")] = ()
    """on the class, in pixels"""
    text: Text = ""
    """name of the class, alone or beside supports; needs a backbone or companion that reads text"""
    checkpoint: Name = "base"
    """base (comes with the package), a checkpoint's folder, or a Hugging Face hub id owner/name"""
    backbone: NameOrNone = None
    """any timm or open_clip name (default: the one that the checkpoint was trained on)"""
    companion: NameOrNone = None
    """open_clip model that reads --text where the backbone can't"""
    weights_dir: Folder = None
    """folder of backbone weights, NAME.safetensors (default: downloaded by name)"""
    device: Name = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:1"""
    bank: Folder = None
    """folder of 15 to 60 pictures that do not show the class, to compare with (DiffUp.calibrate)"""
    steps: Count = 2
    """of the diffusion decoder"""
    snap: bool = False
    """let edges follow those of the image (superpixels), about a second per picture"""
    out: Annotated[Path, *option("DIR", Path), tyro.conf.arg(aliases=["-o"], help_behavior_hint="(required)")]
    """folder of the results"""
    overwrite: bool = False
    """make results again that another request made, and replace files of other origin"""
    json: bool = False
    """print one JSON document with all results"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """print errors alone"""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """also say what is loaded"""


def main(argv: Sequence[str], loader: Callable[[Predict], DiffUp] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: its arguments.
        loader: what gives the model, in place of `diffup.commands.predict_run.load`; tests keep one for many calls.

    Raises:
        UserError: bad input. A query that can't be read is none, nor are results lost that are finished.
    """
    asked = parse(Predict, argv, prog=PROG, description=__doc__)
    level = logging.INFO if asked.verbose else logging.ERROR if asked.quiet else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")
    shown = in_order(argv, {option: getattr(asked, option) for option in ("support", *ANNOTATIONS)})
    if not shown and not asked.text:
        raise UserError("say what to look for: --support S.jpg with --mask M.png (or --box …) after it, or --text NAME")
    if asked.out.exists() and not asked.out.is_dir():
        raise UserError(f"-o {asked.out} is a file; give a folder")
    queries = find_queries(asked.queries, asked.out)
    from diffup.commands.predict_run import load, run  # torch: what is wrong with the command is told before

    return run(asked, shown, queries, loader or load)
