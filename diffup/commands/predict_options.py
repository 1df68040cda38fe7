"""Options of ``diffup predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diffup.commands.options import Count, CountOrNone, Folder, Name, NameOrNone, Text, folder, option, repeatable


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
    """a timm or open_clip name, tiny_resnet …, or your own package.module:build (default: that of the training)"""
    companion: NameOrNone = None
    """open_clip model that reads --text where the backbone can't"""
    weights_dir: Folder = None
    """folder of backbone weights, NAME.safetensors (default: downloaded by name)"""
    device: Name = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:1"""
    threads: CountOrNone = None
    """of the CPU (default: torch's own number); fewer leave cores to others"""
    bank: Folder = None
    """folder of 15 to 60 pictures that do not show the class, to compare with (DiffUp.calibrate)"""
    steps: Count = 2
    """of the diffusion decoder"""
    snap: bool = False
    """let edges follow those of the image (superpixels), which takes longer"""
    out: Annotated[Path, *option("DIR", folder), tyro.conf.arg(aliases=["-o"], help_behavior_hint="(required)")]
    """folder of the results"""
    overwrite: bool = False
    """make results again that another request made, and replace files of other origin"""
    json: bool = False
    """print one JSON document with all results"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """print errors alone"""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """also say what is loaded"""
