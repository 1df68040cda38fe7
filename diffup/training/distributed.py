"""Several processes train one model: each computes the gradients of its share of every step's episodes.

A step is drawn whole, by one process, and dealt out: so what a step is does not depend on how many share it, and no two
processes draw the same one. Needs `torch.distributed` to be set up (Ray Train does, in `cluster.execution.multi_gpu`).
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
class Team:
    """The processes of a training, as one of them sees it; by default it is alone.

    Attributes:
        rank: of this process, from 0; rank 0 reads and writes files.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def here() -> Team:
        """The team that `torch.distributed` has been set up for, else a team of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return Team()
        return Team(dist.get_rank(), dist.get_world_size())

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

    def deal(self, parts: Sequence[T] | None, dealer: int) -> T:
        """This process's one of the `parts` (CPU tensors in any structure) that `dealer` has; others pass None."""
        if self.size == 1:
            assert parts is not None
            return parts[0]
        received: list[Any] = [None]
        dist.scatter_object_list(received, None if parts is None else list(parts), src=dealer)
        part: T = received[0]
        return part

    def tell(self, what: T) -> T:
        """What rank 0 passes; the others' argument is not used."""
        if self.size == 1:
            return what
        box: list[Any] = [what]
        dist.broadcast_object_list(box, src=0)
        told: T = box[0]
        return told

    def gather(self, what: T) -> list[T]:
        """What each process passes, by rank; all get the same list."""
        if self.size == 1:
            return [what]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, what)
        return found

    def add_up(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its sum over all processes, in one exchange; None stays None (for all alike)."""
        if self.size == 1:
            return
        present = [tensor for tensor in tensors if tensor is not None]
        flat = torch.cat([tensor.flatten() for tensor in present])
        dist.all_reduce(flat)
        for tensor, total in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
            tensor.copy_(total.view_as(tensor))
