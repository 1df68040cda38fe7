"""The platform's commands beside the grid scripts: ``python -m cluster COMMAND …``.

submit SCRIPT [ARGUMENT …]            run a grid script as a job of a Ray cluster; status|logs|stop ID
sync pull s3://bucket/results DIR     download results, for diffup paper
sync push DIR s3://bucket/results     upload them
cache list|clean|check DIR            the feature cache
slurm STUDY [ARGUMENT …]              write a Slurm batch script: --partition P --account A …
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from cluster import job, slurm
from cluster.storage import commands
from diffup.errors import UserError, command_line


def _job(name: str, rest: Sequence[str]) -> int:
    return job.main([name, *rest])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "sync": commands.sync,
    "cache": commands.cache,
    "slurm": slurm.main,
    **{name: partial(_job, name) for name in ("submit", "status", "logs", "stop")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, 2 for a user's mistake."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}; choose from {', '.join(COMMANDS)}, or see --help", file=sys.stderr)
        return 2
    try:
        return COMMANDS[name](rest)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(command_line(main))
