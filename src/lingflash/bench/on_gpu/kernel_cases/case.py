"""What the modules of cases share: a case, and random BF16 inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Args:
        name: of the case.
        run: does it once, without waiting.
        num_bytes: that it must read and write, each once.
        flops: that it must compute.
    """

    name: str
    run: Callable[[], object]
    num_bytes: float
    flops: float


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers on the GPU."""
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_().mul_(scale)
