"""Threads of torch, for commands that run a model in their own process."""

from __future__ import annotations

import os


def use_threads(count: int | None) -> None:
    """Say how torch's threads wait and how many there are; called before torch is loaded, which reads the former.

    By default OpenMP's threads spin while they wait for each other. Where other programs want the cores, too, the one
    that is waited for then gets none: on two cores with two other busy processes a picture of 320 × 213 took 3 s of
    processor time in place of 0.4, and 6 to 50 s of the clock in place of 0.5 to 1.5. One thread took as much as two
    that sleep.

    Args:
        count: of threads; None: as many as torch takes by itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if count is not None:
        import torch

        torch.set_num_threads(count)
