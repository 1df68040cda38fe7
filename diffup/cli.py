"""The ``diffup`` command: pictures, data sets, protocols and backbones; in a checkout also the repository's grids.

diffup predict photos/ --support cow.jpg --mask cow.png -o masks
diffup doctor
diffup data prepare pascal5i --root VOCdevkit/VOC2012
diffup data verify birds/dataset.json
diffup data import labelme FOLDER OUT
diffup episodes --dataset birds/dataset.json --fold 0 --shots 1
diffup protocols show hsnet
diffup backbones dinov2
diffup backbones check my_package.my_module:build
diffup eval my_package.my_module:my_method --dataset birds/dataset.json
diffup demo --weights-dir weights
diffup run quickstart --dry-run
diffup submit full_grid --results /shared/results/full
diffup paper --results ~/.diffup/results/quickstart --out paper
diffup mlflow --results ~/.diffup/results/quickstart
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from diffup import __version__
from diffup.commands.completion import SHELLS, script
from diffup.errors import INSTALL, UserError, command_line
from diffup.usage import Parser, meant

CHECKOUT = Path(__file__).resolve().parents[1]
STUDIES = CHECKOUT / "experiments"
IN_CHECKOUT = (STUDIES / "quickstart.py").is_file() and (CHECKOUT / "cluster" / "launch.py").is_file()


def predict(argv: Sequence[str]) -> int:
    """Segment pictures by a few annotated examples."""
    from diffup.commands.predict import main

    return main(argv)


def doctor(argv: Sequence[str]) -> int:
    """Show versions, devices, folders, and whether the hub answers."""
    from diffup.commands.doctor import main

    return main(argv)


def data(argv: Sequence[str]) -> int:
    """Import, prepare or verify a data set."""
    if list(argv[:1]) == ["import"]:
        from diffup.commands.import_data import main as import_data

        return import_data(argv[1:])
    from diffup.data.__main__ import main

    return main(argv)


def protocols(argv: Sequence[str]) -> int:
    """List the evaluation protocols, or show one in words."""
    from diffup.episodes.protocols import main

    return main(argv or ["list"])


def backbones(argv: Sequence[str]) -> int:
    """List backbones, or check one: ls WORD, check NAME."""
    from diffup.commands.backbones import main

    return main(argv)


def episodes(argv: Sequence[str]) -> int:
    """Print or write the episodes of a data set."""
    from diffup.episodes.__main__ import main

    return main(argv)


def demo(argv: Sequence[str]) -> int:
    """Open a web page to draw on images and segment others."""
    from diffup.commands.demo import main

    return main(argv)


def run(argv: Sequence[str]) -> int:
    """Run a study of experiments/ with its own options; --help lists them."""
    name = _study(argv, "run")
    return _python([os.path.relpath(STUDIES / f"{name}.py"), *argv[1:]]) if name else _list_studies(argv, "run")


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate a method of your own beside its training-free rivals."""
    return run(["evaluate_method", *argv])


def submit(argv: Sequence[str]) -> int:
    """Submit a study to a Ray cluster."""
    name = _study(argv, "submit")
    if not name:
        return _list_studies(argv, "submit")
    return _python(["-m", "cluster", "submit", f"experiments/{name}.py", *argv[1:]])


def _module(*words: str) -> Callable[[Sequence[str]], int]:
    """A command that is ``python -m`` with `words` before its own arguments."""
    return lambda argv: _python(["-m", *words, *argv])


def _study(argv: Sequence[str], command: str) -> str:
    """The study that is named first; empty where none is, or help is asked for."""
    if not argv or argv[0] in ("-h", "--help"):
        return ""
    if argv[0] not in (names := studies()):
        if near := meant(argv[0], names):
            raise UserError(f"there is no study {argv[0]!r:.60}{near}")
        raise UserError(f"diffup {command} takes the name of a study first, one of {', '.join(names)}")
    if find_spec("ray") is None:
        raise UserError(f"studies run on Ray, which is not installed; run in your clone of DiffUp: {INSTALL}")
    return argv[0]


def studies() -> dict[str, str]:
    """What each study asks: the first paragraph of its docstring, by name."""
    paths = sorted(path for path in STUDIES.glob("*.py") if not path.stem.startswith("_"))
    told = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in paths}
    return {name: " ".join(text.partition("\n\n")[0].replace("``", "").split()) for name, text in told.items()}


def _list_studies(argv: Sequence[str], command: str) -> int:
    """Print a line for each study; returns 0 where help was asked for, else 2."""
    print(f"usage: diffup {command} STUDY [OPTION …]\n\nstudies ('diffup run STUDY --help' shows the options of one):")
    for name, text in studies().items():
        print(f"  {name:18}{text}")
    return 0 if argv else 2


def _python(arguments: list[str]) -> int:
    """Replace this process by Python with the checkout on its path."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    os.execv(sys.executable, [sys.executable, *arguments])


LIBRARY: dict[str, Callable[[Sequence[str]], int]] = {
    "predict": predict,
    "demo": demo,
    "data": data,
    "episodes": episodes,
    "protocols": protocols,
    "backbones": backbones,
    "doctor": doctor,
}
# These replace the process by a script or module of the repository.
PLATFORM: dict[str, tuple[Callable[[Sequence[str]], int], str | None]] = {
    "eval": (evaluate, evaluate.__doc__),
    "run": (run, run.__doc__),
    "submit": (submit, submit.__doc__),
    "paper": (_module("analysis", "paper"), "Write a result store's tables and figures for LaTeX, and its report."),
    "report": (_module("analysis", "report"), "Write a result store's report, one HTML page."),
    "mlflow": (_module("cluster.tracking", "serve"), "Show a result store in MLflow's page."),
    "sync": (_module("cluster", "sync"), "Copy results from or to an object store: pull, push."),
    "cache": (_module("cluster", "cache"), "List, check or clean a cache of features."),
    "slurm": (_module("cluster", "slurm"), "Write a Slurm batch script of a study."),
}
COMMANDS = {name: (function, function.__doc__) for name, function in LIBRARY.items()}
if IN_CHECKOUT:
    COMMANDS |= PLATFORM


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    listed = "\n".join(f"  {name:12}{told}" for name, (_, told) in COMMANDS.items())
    if not IN_CHECKOUT:
        listed += f"\n\nin a clone of the repository also: {', '.join(PLATFORM)}"
    parser = Parser(
        prog="diffup",
        description=f"Few-shot segmentation with any backbone and any annotation.\n\ncommands:\n{listed}",
        epilog="'diffup COMMAND --help' shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffup {__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, metavar="bash|zsh", help='for the shell: eval "$(diffup … bash)"'
    )
    parser.add_argument("command", nargs="?", choices=[*LIBRARY, *PLATFORM], metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args((sys.argv[1:] if argv is None else argv) or ["--help"])
    if args.print_completion:
        print(script(args.print_completion, LIBRARY, [name for name in COMMANDS if name not in LIBRARY]), end="")
        return 0
    if args.command is None:
        parser.error("name a command")
    if args.command not in COMMANDS:
        raise UserError(f"diffup {args.command} needs a clone of DiffUp; run in it: {INSTALL}")
    return COMMANDS[args.command][0](args.arguments)


def console() -> int:
    """Entry point of the ``diffup`` command."""
    return command_line(main)


if __name__ == "__main__":
    sys.exit(console())
