"""A Slurm batch script for one study, from `cluster/deploy/slurm.sh`: ``diffup slurm STUDY [ARGUMENT …]``.

The partition, the account and what a node has are written into it, so that the file beside the results says how they
were made. Everything else is the template's.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from diffup.commands.options import page
from diffup.errors import UserError
from diffup.files import write_in_full

TEMPLATE = Path(__file__).parent / "deploy" / "slurm.sh"
STUDIES = Path(__file__).parents[1] / "experiments"
DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)=")
SAFE = re.compile(r"[\w.:,@+/=%\[\]-]+")
CHECK = re.compile(r'if \[ "\$#" -eq 0 \]; then\n.*?\nfi\n', re.DOTALL)


def script(command: Sequence[str], directives: dict[str, str]) -> str:
    """The batch script.

    Args:
        command: path of the study's script in the repository, and its arguments.
        directives: options of ``sbatch`` by their long name; they replace the template's.

    Raises:
        UserError: a directive's value has white space or a character that ``sbatch`` would read as something else.
    """
    for name, value in directives.items():
        if not SAFE.fullmatch(value):
            raise UserError(f"--{name} {value!r}: Slurm takes letters, digits and . : , @ + / = % [ ] - _ here")
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    given = [name for line in lines if (found := DIRECTIVE.match(line)) for name in [found[1]]]
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    made = []
    for i, line in enumerate(lines):
        found = DIRECTIVE.match(line)
        made.append(f"#SBATCH --{found[1]}={directives[found[1]]}" if found and found[1] in directives else line)
        if i == last:
            made += [f"#SBATCH --{name}={value}" for name, value in directives.items() if name not in given]
    text, changed = CHECK.subn(f"set -- {shlex.join(command)}\n", "\n".join(made) + "\n")
    assert changed == 1, f"{TEMPLATE} has no check of its arguments"
    return text


def main(argv: Sequence[str]) -> int:
    """Write the script to ``--out``, or print it."""
    parser = argparse.ArgumentParser(
        prog="diffup slurm", description=page(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in (
        ("partition", "of the cluster"),
        ("account", "that is charged"),
        ("nodes", "number of them (template: 3)"),
        ("gpus-per-node", "of each node (template: 4)"),
        ("cpus-per-task", "of each node (template: 16)"),
        ("time", "limit, as Slurm writes it (template: 24:00:00)"),
        ("mem", "of each node, such as 128G"),
        ("job-name", "(template: diffup)"),
        ("qos", "quality of service"),
    ):
        parser.add_argument(f"--{name}", metavar=name.upper(), help=what)
    parser.add_argument("--out", type=Path, metavar="FILE", help="of the script (default: printed)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="STUDY [ARGUMENT …]", help="name or script")
    asked = vars(parser.parse_args(argv))
    command, out = asked.pop("command"), asked.pop("out")
    if command and (STUDIES / f"{command[0]}.py").is_file():
        command[0] = f"{STUDIES.name}/{command[0]}.py"
    elif not command or not Path(command[0]).is_file():
        raise UserError(
            "name a study after the options, such as full_grid, or its script from the repository's root"
            + (f"; there is no study and no file {command[0]!r} here" if command else "")
        )
    text = script(command, {name.replace("_", "-"): value for name, value in asked.items() if value is not None})
    if out is None:
        sys.stdout.write(text)
        return 0
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or remove it")
    write_in_full(out, text.encode())
    print(f"{out} written; run: sbatch {shlex.quote(str(out))}")
    return 0
