"""A Slurm batch script for one study, from `cluster/deploy/slurm.sh`: ``diffup slurm STUDY [ARGUMENT …]``.

The partition, the account and what a node has are written into it, so that the file beside the results says how they
were made. Everything else is the template's. Relative paths among the arguments are of the folder that it is submitted
in.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diffup.commands.options import page
from diffup.errors import UserError
from diffup.files import write_in_full

TEMPLATE = Path(__file__).parent / "deploy" / "slurm.sh"
CHECKOUT = Path(__file__).parents[1]
STUDIES = CHECKOUT / "experiments"
DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)=(\S*)")
SAFE = re.compile(r"[\w.:,@+/=%\[\]-]+")
COUNT, TIME = r"[1-9]\d*", r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?"
FORMATS = {  # of values that Slurm would refuse, what it takes, and whether it is that
    "nodes": ("a number", COUNT),
    "gpus-per-node": ("a number, or TYPE:NUMBER", rf"(?:[\w.-]+:)?{COUNT}"),
    "cpus-per-task": ("a number", COUNT),
    "mem": ("a number with K, M, G or T", r"\d+[KMGTkmgt]?"),
    "time": ("MINUTES, H:M:S or D-H:M:S", TIME),
}
CHECK = re.compile(r'if \[ "\$#" -eq 0 \]; then\n.*?\nfi\n', re.DOTALL)
USED = "#     sbatch cluster/deploy/slurm.sh experiments/full_grid.py --results /shared/results/full"
HERE = '"${SLURM_SUBMIT_DIR:-.}/cluster/deploy/common.sh"'
OPTIONS = "import sys; from importlib import import_module as module; module(sys.argv[1]).STUDY.parse(sys.argv[2:])"


def script(command: Sequence[str], directives: dict[str, str]) -> str:
    """The batch script.

    Args:
        command: path of the study's script in the repository, and its arguments.
        directives: options of ``sbatch`` by their long name; they replace the template's.

    Raises:
        UserError: a directive's value has white space or a character that ``sbatch`` would read as something else, or
            is of another form than Slurm takes.
    """
    for name, value in directives.items():
        if not SAFE.fullmatch(value):
            raise UserError(f"--{name} {value!r}: Slurm takes letters, digits and . : , @ + / = % [ ] - _ here")
        form, pattern = FORMATS.get(name, ("", ".*"))
        if not re.fullmatch(pattern, value):
            raise UserError(f"--{name} {value!r}: Slurm takes {form} here")
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
    assert changed == 1 and USED in text and HERE in text, f"{TEMPLATE} is not as expected"
    common = shlex.quote(str(TEMPLATE.parent / "common.sh"))
    return text.replace(USED, f"#     sbatch FILE    ({shlex.join(command)})").replace(HERE, common)


def asked_for(text: str) -> str:
    """What a script asks Slurm for, at most, in words."""
    asked = {found[1]: found[2] for line in text.splitlines() if (found := DIRECTIVE.match(line))}
    nodes, gpus = int(asked["nodes"]), int(asked["gpus-per-node"].rpartition(":")[2])
    found = re.fullmatch(TIME, asked["time"])
    assert found is not None
    days, *parts = (int(part) if part else 0 for part in found.group("d", "a", "b", "c"))
    if found["d"] or found["c"]:
        hours = parts[0] + parts[1] / 60 + parts[2] / 3600
    else:  # minutes, and seconds
        hours = parts[0] / 60 + parts[1] / 3600
    return f"{nodes} × {gpus} GPUs for {asked['time']}, {nodes * gpus * (24 * days + hours):,.0f} GPU-hours at most"


def check_options(study: str, arguments: Sequence[str]) -> None:
    """Read a study's options as the study does.

    Raises:
        UserError: it takes no such options.
    """
    words = [sys.executable, "-c", OPTIONS, f"{STUDIES.name}.{study}", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd=CHECKOUT)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it can't be imported"])[-1].removeprefix("error: ")
        raise UserError(f"{study}: {why}")


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
    study = STUDIES / f"{Path(command[0]).stem}.py" if command else STUDIES
    ours = study.is_file() and (command[0] == study.stem or (CHECKOUT / command[0]).resolve() == study)
    if ours:
        check_options(study.stem, command[1:])
        command[0] = str(study)
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
    print(f"{out} written: {asked_for(text)}; run: sbatch {shlex.quote(str(out))}")
    if ours:
        print(f"what the study takes: {shlex.join(['diffup', 'run', study.stem, *command[1:], '--dry-run'])}")
    return 0
