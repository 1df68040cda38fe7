"""Training one model in several processes: each computes the gradients of its share of every step's episodes.

A step is drawn whole by one process and scattered, so its content does not depend on the number of processes, and no
two processes draw the same one. `torch.distributed` must be initialised before (Ray Train does it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffup.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training as one of them sees it; by default a single one.

    Attributes:
        rank: of this process, from 0; rank 0 reads and writes files.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> ProcessGroup:
        """The group that `torch.distributed` was initialised with, else a single process."""
        if not (dist.is_available() and dist.is_initialized()):
            return ProcessGroup()
        return ProcessGroup(dist.get_rank(), dist.get_world_size())

    def shares(self, count: int) -> list[slice]:
        """`count` episodes as one contiguous share for each process, as even as can be.

        Raises:
            UserError: fewer episodes than processes.
        """
        if count < self.size:
            raise UserError(
                f"{self.size} processes can't share steps of {count} episodes; use at most {count}, or a larger "
                f"TrainConfig.batch_size"
            )
        ends = [count * (i + 1) // self.size for i in range(self.size)]
        return [slice(start, end) for start, end in zip([0, *ends], ends)]

    def scatter(self, parts: Sequence[T] | None, source: int) -> T:
        """This process's one of the `parts` (CPU tensors in any structure) of process `source`; others pass None."""
        if self.size == 1:
            assert parts is not None
            return parts[0]
        received: list[Any] = [None]
        dist.scatter_object_list(received, None if parts is None else list(parts), src=source)
        part: T = received[0]
        return part

    def broadcast(self, value: T) -> T:
        """The value of rank 0; the others' argument is not used."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def all_reduce(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its sum over all processes, in one exchange; None (in all processes) stays None."""
        if self.size == 1:
            return
        present = [tensor for tensor in tensors if tensor is not None]
        flat = torch.cat([tensor.flatten() for tensor in present])
        dist.all_reduce(flat)
        for tensor, total in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
            tensor.copy_(total.view_as(tensor))
