"""The ``diffup`` command: data sets, protocols and backbones; in a checkout of the repository also its grids.

diffup data prepare pascal5i --root VOCdevkit/VOC2012
diffup data verify birds/dataset.json
diffup protocols show hsnet
diffup backbones dinov2
diffup demo --weights-dir weights
diffup run quickstart --dry-run
diffup submit full_grid --results /shared/results/full
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from diffup import __version__
from diffup.errors import UserError, command_line

CHECKOUT = Path(__file__).resolve().parents[1]
STUDIES = CHECKOUT / "experiments"
IN_CHECKOUT = (STUDIES / "quickstart.py").is_file() and (CHECKOUT / "cluster" / "launch.py").is_file()


def data(argv: Sequence[str]) -> int:
    """Prepare or verify a data set."""
    from diffup.data.__main__ import main

    return main(argv)


def protocols(argv: Sequence[str]) -> int:
    """List the evaluation protocols, or show one in words."""
    from diffup.episodes.protocols import main

    return main(argv or ["list"])


def backbones(argv: Sequence[str]) -> int:
    """List the shipped backbones, or all whose name contains a word."""
    parser = argparse.ArgumentParser(prog="diffup backbones", description="List backbones by name.")
    parser.add_argument("word", nargs="?", help="part of a timm or open_clip name, e.g. dinov2")
    word = parser.parse_args(argv).word
    if word is None:
        from diffup.backbones.embedded import EMBEDDED

        for name, spec in EMBEDDED.items():
            print(f"{name:14}{spec.family}")
        print("and any model of timm and open_clip; 'diffup backbones WORD' lists those with WORD in their name")
        return 0
    from diffup.backbones.registry import known_names

    found = [name for name in known_names() if word.lower() in name.lower()]
    if not found:
        raise UserError(f"no backbone has {word!r} in its name")
    print("\n".join(found))
    return 0


def demo(argv: Sequence[str]) -> int:
    """Open a web page to draw on images and segment others."""
    from diffup.commands.demo import main

    return main(argv)


def run(argv: Sequence[str]) -> int:
    """Run a study of experiments/ with its own options."""
    return _python([_study(argv, "run"), *argv[1:]])


def submit(argv: Sequence[str]) -> int:
    """Submit a study to a Ray cluster."""
    return _python(["-m", "cluster", "submit", _study(argv, "submit"), *argv[1:]])


def _study(argv: Sequence[str], command: str) -> str:
    """Path of the script of the study that is named first."""
    names = sorted(path.stem for path in STUDIES.glob("*.py") if not path.stem.startswith("_"))
    if not argv or argv[0] not in names:
        raise UserError(f"diffup {command} takes the name of a study first, one of {', '.join(names)}")
    if find_spec("ray") is None:
        raise UserError("studies run on Ray, which is not installed; run: pip install 'diffup[platform]'")
    return os.path.relpath(STUDIES / f"{argv[0]}.py") if command == "run" else f"experiments/{argv[0]}.py"


def _python(arguments: list[str]) -> int:
    """Replace this process by Python with the checkout on its path."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    os.execv(sys.executable, [sys.executable, *arguments])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "data": data,
    "protocols": protocols,
    "backbones": backbones,
    "demo": demo,
}
if IN_CHECKOUT:
    COMMANDS |= {"run": run, "submit": submit}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    listed = "\n".join(f"  {name:12}{function.__doc__}" for name, function in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="diffup",
        description=f"Few-shot segmentation with any backbone and any annotation.\n\ncommands:\n{listed}",
        epilog="'diffup COMMAND --help' shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffup {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args((sys.argv[1:] if argv is None else argv) or ["--help"])
    return COMMANDS[args.command](args.arguments)


def console() -> int:
    """Entry point of the ``diffup`` command."""
    return command_line(main)


if __name__ == "__main__":
    sys.exit(console())
