"""The ranks that share a model, and the two exchanges that its layers need."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lingflash.parallel.shard import Shard


class Mesh:
    """A rank among its peers; alone by default, and then every exchange returns its input.

    Args:
        shard: the rank's place. Exchanges with others need connect() first.
    """

    def __init__(self, shard: Shard | None = None) -> None:
        self.shard = shard or Shard()

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in x's dtype; x is overwritten. Sync: as the backend (NCCL: none)."""
        if self.shard.size > 1:
            x = x.contiguous()
            dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Put the ranks' columns side by side: [T, C] of each to [T, N x C] on all."""
        if self.shard.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.shard.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, -1)

    def connect(self, init_method: str, device: torch.device, timeout_s: float) -> None:
        """Meet the other ranks; returns when all are there.

        Args:
            init_method: where they meet, such as "file:///tmp/x" (a file that does not exist yet).
            device: CPU ranks talk through gloo, GPU ranks through NCCL.
            timeout_s: for the meeting and for each exchange.
        """
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            init_method=init_method,
            rank=self.shard.rank,
            world_size=self.shard.size,
            timeout=timedelta(seconds=timeout_s),
        )

    def close(self) -> None:
        """Leave the other ranks."""
        dist.destroy_process_group()
