"""The state file that an interrupted training resumes from, with the identity of the training and of the code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffup.code_version import training_hash
from diffup.errors import UserError
from diffup.files import write_in_full
from diffup.training.distributed import ProcessGroup
from diffup.training.sampler import EpisodeSampler

SHOWN = 10  # differences that a message names
Identity = dict[str, str]  # what is trained, by name


def identity(sampler: EpisodeSampler) -> Identity:
    """All that decides the weights a training ends in except the code, by name.

    The number of processes, the device and the number of threads are not part of it.
    """
    dataset, encoder = sampler.cues.dataset, sampler.features.encoder
    pools = repr(sorted(sampler.pools.items()))
    found: dict[str, object] = {
        "seed": sampler.seed,
        "fold": sampler.fold,
        "dataset": f"{dataset.name} {dataset.fingerprint}",
        "training images": hashlib.sha256(pools.encode()).hexdigest()[:12],
        "backbone": encoder.identity,
    }
    parts = {"TrainConfig": asdict(sampler.config), "ModelConfig": asdict(sampler.model)}
    parts["InputConfig"] = asdict(encoder.config) | asdict(sampler.cues.config)
    if parts["InputConfig"] | asdict(encoder.config) != parts["InputConfig"]:  # mostly the same
        parts["encoder.InputConfig"] = parts["InputConfig"] | asdict(encoder.config)
    for name, values in parts.items():
        found |= {f"{name}.{field}": value for field, value in values.items()}
    return {name: repr(value) for name, value in found.items()}


def resumable(
    path: Path, what: Identity, group: ProcessGroup, other_code: Callable[[str], None] | None = None
) -> dict[str, Any] | None:
    """The state to resume from, the same in all processes; None: begin at step 0. Only rank 0 reads the file.

    Raises:
        UserError: the state is damaged, of another training or of other code (see `other_code` of
            `diffup.training.trainer.train`); or a process trains something else than rank 0. All processes raise it,
            so that none waits for another.
        OSError: the file can't be read.
    """
    everyone = group.all_gather((what, training_hash()))
    for rank, (other, code) in enumerate(everyone):
        if (other, code) != everyone[0]:
            why = _differences(other, f"in process {rank}", everyone[0][0], "in process 0") or "their code differs"
            raise UserError(f"process {rank} does not train what process 0 does: {why}. Give all nodes the same files")
    state: dict[str, Any] | None = None
    problem: UserError | OSError | None = None
    if group.rank == 0:
        try:
            state = _checked(path, what, other_code)
        except (UserError, OSError) as error:
            problem = error
    state, problem = group.broadcast((state, problem))
    if problem is not None:
        raise problem
    return state


def _checked(path: Path, what: Identity, other_code: Callable[[str], None] | None) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known, code = dict(state.get("identity", {})), str(state.get("code", ""))
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise not_resumable(path, error) from error
    recorded = f"by other code ({code}, now {training_hash()})" if code else "by a version that did not record its code"
    if code != training_hash() and other_code is not None:
        other_code(f"the training started over: its state at step {state.get('step', '?')} was written {recorded}")
        return None
    if known and (why := _differences(what, "here", known, "in the state")):
        raise UserError(
            f"training state {path} is of another training: {why}. Restore these values to resume it, delete the file "
            "to start over, or train in another folder"
        )
    if code != training_hash():
        raise UserError(
            f"training state {path} was written {recorded}. Delete it to start over, or restore that code to resume it"
        )
    return state


def _differences(one: Identity, at_one: str, two: Identity, at_two: str) -> str:
    """At most `SHOWN` differences in words; ``""`` if there are none."""
    names = [name for name in dict.fromkeys((*one, *two)) if one.get(name) != two.get(name)]
    words = [f"{name} is {one.get(name, 'absent')} {at_one} and {two.get(name, 'absent')} {at_two}" for name in names]
    more = [f"{len(words)} differences in all"] if len(words) > SHOWN else []
    return "; ".join([*words[:SHOWN], *more])


def not_resumable(path: Path, error: Exception) -> UserError:
    """The error for a damaged state."""
    return UserError(f"training state {path} cannot be resumed: {error}. Delete it to start over")


def write_state(path: Path, what: Identity, state: Mapping[str, Any]) -> None:
    """Write a state with its identity. If an OSError is raised, the previous state stays."""
    buffer = io.BytesIO()
    torch.save({**state, "identity": what, "code": training_hash()}, buffer)
    write_in_full(path, buffer.getvalue())
