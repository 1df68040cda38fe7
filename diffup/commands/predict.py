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
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffup.commands.options import parse
from diffup.commands.predict_inputs import ANNOTATIONS, find_queries, in_order
from diffup.commands.predict_options import Predict
from diffup.commands.threads import use_threads
from diffup.errors import UserError
from diffup.files import as_path

PROG = "diffup predict"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code. The model comes from `diffup.commands.predict_run.load`.

    Raises:
        UserError: bad input. Results that are finished are kept.
    """
    asked = parse(Predict, argv, prog=PROG, description=__doc__)
    level = logging.INFO if asked.verbose else logging.ERROR if asked.quiet else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")
    shown = in_order(argv, {option: getattr(asked, option) for option in ("support", *ANNOTATIONS)})
    if not shown and not asked.text:
        raise UserError("say what to look for: --support S.jpg with --mask M.png (or --box …) after it, or --text NAME")
    asked = replace(asked, out=_folder(asked.out))
    queries = find_queries(asked.queries)
    use_threads(asked.threads)
    from diffup.commands.predict_run import run  # torch: what is wrong with the command is told before

    return run(asked, shown, queries)


def _folder(out: Path) -> Path:
    """The folder of the results.

    Raises:
        UserError: a name that can't be one, or that of a file.
    """
    path = as_path(out, "-o")
    try:
        os.fsencode(path)
        taken = path.exists() and not path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or can't be one
        raise UserError(f"-o {str(out)!r:.80} can't be used ({error}); give a folder") from error
    if taken:
        raise UserError(f"-o {out} is a file; give a folder")
    return path
