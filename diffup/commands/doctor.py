"""What this installation can do: versions, devices, folders and their room, and whether the hub can be reached.

    diffup doctor
    diffup doctor --offline --json

Nothing is changed or downloaded. Exit code: 0, or 1 if something is missing without which nothing runs.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffup import __version__, home
from diffup.backbones.hub import offline, unreachable
from diffup.commands.options import option, parse
from diffup.errors import UserError
from diffup.models.card import versions

BROKEN = 1  # exit code
PACKAGES = (
    "torch", "torchvision", "timm", "open_clip_torch", "huggingface_hub", "safetensors", "numpy", "pillow", "ray",
    "mlflow", "gradio",
)  # fmt: skip
NEEDED = ("torch", "timm", "safetensors", "numpy", "pillow")
GIB = 1 << 30
LITTLE_ROOM = 2 * GIB


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 60:
        raise UserError(f"must be above 0 and at most 60 seconds, not {text}")
    return value


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Options of ``diffup doctor``."""

    offline: bool = False
    """do not ask the hub"""
    timeout: Annotated[float, *option("SECONDS", _seconds)] = 3.0
    """for the hub's answer"""
    json: Annotated[bool, tyro.conf.arg()] = False
    """print a JSON document"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    asked = parse(Doctor, argv, prog="diffup doctor", description=__doc__)
    found = examine(asked)
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(_lines(found)))
    return BROKEN if found["problems"] else 0


def examine(asked: Doctor) -> dict[str, Any]:
    """What there is, by topic, and ``problems``, sentences on what is missing."""
    from diffup.backbones.embedded import EMBEDDED, weights_path
    from diffup.models.checkpoint import BASE, CONFIG, SHIPPED, WEIGHTS

    packages = versions(PACKAGES)
    problems = [f"{name} is not installed; run: pip install diffup" for name in NEEDED if name not in packages]
    problems += [
        f"the weights of {name} are missing; install diffup again"
        for name in EMBEDDED
        if not weights_path(name).is_file()
    ]
    folders = {
        "home (data and results)": home.home(),
        "cache (indexes)": home.cache(),
        "hub (checkpoints, backbones)": _hub_cache(),
    }
    places = {name: _place(folder) for name, folder in folders.items()}
    problems += [
        f"{place['path']} can't be written to; set {_variable(name)}"
        for name, place in places.items()
        if not place["writable"]
    ]
    return {
        "diffup": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": {name: version for name, version in packages.items() if name != "python"},
        "devices": _devices(),
        "folders": places,
        "checkpoint base": all((SHIPPED / BASE / name).is_file() for name in (CONFIG, WEIGHTS)),
        "hub": "not asked" if asked.offline else _hub(asked.timeout),
        "problems": problems,
    }


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _variable(name: str) -> str:
    return {"home": "DIFFUP_HOME", "cache": "DIFFUP_CACHE"}.get(name.split()[0], "HF_HOME")


def _place(folder: Path) -> dict[str, Any]:
    """A folder, whether it exists and can be written to, and the room on its disk in bytes."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    return {
        "path": str(folder),
        "exists": folder.is_dir(),
        "writable": there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(there).free,
    }


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    found = [f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} processors"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(index).total_memory / GIB
        found.append(f"cuda:{index}, {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    return found


def _hub(timeout: float) -> str:
    """Whether the hub answers, in words."""
    from huggingface_hub import constants

    if offline():
        return "not asked (HF_HUB_OFFLINE is set)"
    reason = unreachable(timeout)
    told = f"does not answer ({reason}): weights come from --weights-dir alone" if reason else "answers"
    return f"{constants.ENDPOINT} {told}"


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"diffup {found['diffup']}, Python {found['python']}"]
    lines.append("packages    " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    lines += [f"device      {device}" for device in found["devices"]]
    for name, place in found["folders"].items():
        room = f"{place['free_bytes'] / GIB:.1f} GiB free"
        notes = [room + (", which is little" if place["free_bytes"] < LITTLE_ROOM else "")]
        notes += [] if place["exists"] else ["not there yet"]
        notes += [] if place["writable"] else ["can't be written to"]
        lines.append(f"{name.split()[0]:12}{place['path']} ({', '.join(notes)})")
    lines.append(f"checkpoint  base is {'there' if found['checkpoint base'] else 'not part of this installation'}")
    lines.append(f"hub         {found['hub']}")
    return (
        lines
        + [f"problem     {problem}" for problem in found["problems"]]
        + ([] if found["problems"] else ["no problem found"])
    )
