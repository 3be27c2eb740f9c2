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
        shard: the rank's place.
        group: process group; None for one rank, or for a model that is only counted.
    """

    def __init__(self, shard: Shard | None = None, group: dist.ProcessGroup | None = None) -> None:
        self.shard = shard or Shard()
        self._group = group

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in x's dtype; x is overwritten. Sync: as the backend (NCCL: none)."""
        if self.shard.size > 1:
            x = x.contiguous()
            dist.all_reduce(x, group=self._group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Put the ranks' columns side by side: [T, C] of each to [T, N x C] on all."""
        if self.shard.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.shard.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, -1)

    def close(self) -> None:
        """Leave the process group."""
        if self._group is not None:
            dist.destroy_process_group(self._group)


def join_mesh(shard: Shard, init_method: str, device: torch.device, timeout_s: float) -> Mesh:
    """Meet the other ranks; returns when all are there.

    Args:
        shard: this rank's place.
        init_method: where they meet, such as "file:///tmp/x" (a file that does not exist yet).
        device: CPU ranks talk through gloo, GPU ranks through NCCL.
        timeout_s: for the meeting and for each exchange.
    """
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=init_method,
        rank=shard.rank,
        world_size=shard.size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    return Mesh(shard, dist.group.WORLD)
