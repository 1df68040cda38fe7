"""Runs grid scripts as jobs of a Ray cluster: submits them with this working copy, and follows them to their exit code.

    python -m cluster submit experiments/full_grid.py --results /shared/results/full
    python -m cluster logs ID | status ID | stop ID

The cluster is that of ``--address``, else of ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS``, else the dashboard on
http://127.0.0.1:8265 (on a remote head: through ``ssh -L 8265:127.0.0.1:8265 HEAD``). The working copy goes along
without what ``.rayignore`` names. With ``RAY_AUTH_MODE=token`` Ray's client reads the token from ``RAY_AUTH_TOKEN`` or
its file; it is sent in a header and never put into the job. Options come before the script, the script's own after it.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.execution.session import THREADS, check_address
from cluster.storage.sizes import format_size
from diffup.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = "http://127.0.0.1:8265"
LIMIT_BYTES = 100 * 2**20  # of a working directory, zipped or not: what Ray's head takes
FAILED, BAD_INPUT = 1, 2
NO_ANSWER = (OSError, RuntimeError, ValueError)  # beside RayError (a refused token), for a job server that is away
AGAIN, PATIENCE = 3.0, 20  # seconds between attempts to reach the head again, and attempts without a new line
REFUSED = re.compile(r"\b(401|403)\b|unauthorized|unauthenticated|authentication|forbidden", re.IGNORECASE)
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)


def excludes(root: Path) -> list[str]:
    """The patterns of ``.rayignore``, without comments."""
    path = root / ".rayignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def check_size(root: Path) -> int:
    """Bytes that the working directory sends.

    Raises:
        UserError: more than Ray takes; the largest files are named.
    """
    patterns = excludes(root)
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        at = Path(folder).relative_to(root).as_posix()
        folders[:] = [name for name in folders if not _excluded(at, name + "/", patterns)]
        for name in files:
            path = Path(folder, name)
            if not _excluded(at, name, patterns) and path.is_file():
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        raise UserError(
            f"{root} has {format_size(total)} to send, Ray takes {format_size(LIMIT_BYTES)}; the largest files are "
            f"{', '.join(f'{name} ({format_size(size)})' for name, size in largest)}: move them or name them in "
            ".rayignore"
        )
    return total


def _excluded(folder: str, name: str, patterns: Sequence[str]) -> bool:
    """Whether a file, or a folder (with a slash at its end), matches; an approximation of gitignore's rules."""
    path = name if folder == "." else f"{folder}/{name}"
    for pattern in patterns:
        only_folders = pattern.endswith("/")
        if only_folders and not name.endswith("/"):
            continue
        bare = pattern.strip("/")
        target = path.rstrip("/") if pattern.startswith("/") or "/" in bare else name.rstrip("/")
        if fnmatch.fnmatch(target, bare):
            return True
    return False


def connect(address: str) -> JobSubmissionClient:
    """The cluster's job server.

    Raises:
        UserError: it does not answer, or refuses the token.
    """
    check_address(address, "--address")
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (RayError, *NO_ANSWER) as error:
        raise UserError(_why(address, error)) from error


def _why(address: str, error: Exception) -> str:
    words = str(error)
    if REFUSED.search(words):
        return f"the cluster at {address} refused the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its own"
    first = words.strip().splitlines()[0] if words.strip() else type(error).__name__
    return f"no Ray cluster answers at {address} ({first[:200]}); name its dashboard with --address http://HOST:8265"


def submit(args: argparse.Namespace) -> int:
    """Submit a script and follow it; returns its exit code.

    Raises:
        UserError: a user's mistake.
    """
    root = args.working_dir.resolve()
    script = Path(args.script)
    if script.is_absolute() or not (root / script).is_file():
        raise UserError(f"no script {args.script} in {root}; name it from the working directory")
    check_size(root)
    variables: dict[str, str] = {}  # thread limits are the session's: Ray takes no variable from both
    for pair in args.env:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--env {pair}: write NAME=VALUE")
        if name in THREADS:
            raise UserError(f"--env {name}: a launch sets it to 1 for its workers; leave it out")
        if SECRET.search(name) or re.search(r"://[^/@]*:[^/@]+@", value):
            raise UserError(
                f"--env {name}: Ray shows a job's environment to all who see its dashboard; give secrets to the nodes "
                "themselves (an instance role, a Kubernetes secret, the environment of ray start)"
            )
        variables[name] = value
    from ray.exceptions import RayError

    address = _address(args)
    client = connect(address)
    try:
        job = client.submit_job(
            entrypoint=shlex.join([args.python, args.script, *args.arguments]),
            submission_id=args.name or None,
            runtime_env={"working_dir": str(root), "excludes": excludes(root), "env_vars": variables},
        )
    except (RayError, *NO_ANSWER) as error:
        raise UserError(_why(address, error)) from error
    print(f"job {job} on {address}", file=sys.stderr, flush=True)
    return 0 if args.no_wait else follow(client, job)


def follow(client: JobSubmissionClient, job: str, *, wait: float = AGAIN) -> int:
    """Print a job's logs until it ends, through connections that break; returns the script's exit code.

    Raises:
        RuntimeError: there is no such job, or no answer at all.
    """
    printed, silent = 0, 0

    async def tail(known: int) -> None:
        nonlocal printed
        at = 0
        async for lines in client.tail_job_logs(job):  # from the log's first line, each time
            new = lines[max(0, known - at) :]
            at += len(lines)
            print(new, end="", flush=True)
            printed += len(new)

    info: Any = client.get_job_info(job)  # fails at once if there is no such job
    try:
        while True:
            before, broken = printed, "the log ended before the job"
            try:
                asyncio.run(tail(printed))
            except Exception as error:  # of Ray, aiohttp or the network
                broken = str(error) or type(error).__name__
            try:
                info = client.get_job_info(job)
                if info.status.is_terminal():
                    break
            except Exception as error:
                broken = str(error) or type(error).__name__
            silent = 0 if printed > before else silent + 1
            if silent > PATIENCE:
                why = broken.splitlines()[0][:200]
                print(f"warning: {why}; job {job} may go on: python -m cluster logs {job}", file=sys.stderr)
                return FAILED
            time.sleep(wait)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; end it with: python -m cluster stop {job}", file=sys.stderr)
        return FAILED
    status = str(info.status.value)
    print(f"job {job}: {status}", file=sys.stderr, flush=True)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if status == "SUCCEEDED" else FAILED


def _address(args: argparse.Namespace) -> str:
    named = args.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DASHBOARD
    return str(named)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True)
    for name in ("submit", "logs", "status", "stop"):
        command = commands.add_parser(name)
        command.add_argument("--address", default="", metavar="URL", help=f"of the dashboard (default {DASHBOARD})")
        if name != "submit":
            command.add_argument("job", metavar="ID")
            continue
        command.add_argument("--name", default="", metavar="ID", help="of the job (default: Ray makes one)")
        command.add_argument(
            "--env", action="append", default=[], metavar="NAME=VALUE", help="for the script; no secrets"
        )
        command.add_argument("--no-wait", action="store_true", help="do not follow its logs")
        command.add_argument(
            "--python", default="python", metavar="PATH", help="interpreter on the head (default: the one on its PATH)"
        )
        command.add_argument("--working-dir", type=Path, default=ROOT, metavar="DIR", help="default: this working copy")
        command.add_argument("script", metavar="SCRIPT")
        command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, show or stop a job; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.command == "submit":
            return submit(args)
        client = connect(_address(args))
        if args.command == "logs":
            return follow(client, args.job)
        if args.command == "stop":
            client.stop_job(args.job)
            print(f"job {args.job} is asked to stop")
            return 0
        info: Any = client.get_job_info(args.job)
        print(f"job {args.job}: {getattr(info.status, 'value', info.status)}, exit code {info.driver_exit_code}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        print(f"error: {_why(_address(args), error)}", file=sys.stderr)
        return BAD_INPUT
