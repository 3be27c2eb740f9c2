"""The ranks that share a model, and the exchanges that its layers need."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from lingflash.parallel.shard import Shard

if TYPE_CHECKING:
    from lingflash.parallel.peers import Peers

log = logging.getLogger(__name__)


class Mesh:
    """A rank among its peers; alone by default, and then every exchange returns its input.

    Args:
        shard: the rank's place. Exchanges with others need connect() first.
    """

    def __init__(self, shard: Shard | None = None) -> None:
        self.shard = shard or Shard()
        # Small sums of GPUs that reach each other's memory need no library.
        self.peers: Peers | None = None

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in x's dtype; x is overwritten. Sync: none on a GPU."""
        if self.shard.size > 1:
            x = x.contiguous()
            if self.peers is not None and self.peers.can_sum(x):
                rows = x.view(-1, x.shape[-1])
                self.peers.sum(rows[:, None], rows, add=False)
            else:
                dist.all_reduce(x)
        return x

    def add_sum(self, parts: Tensor, stream: Tensor) -> None:
        """Add to a stream what all ranks have for it; nothing may depend on the rank but `parts`.

        Args:
            parts: float32 [T, P, D], contiguous, to be added on each rank and over the ranks.
            stream: [T, D], contiguous; updated, rounded once.

        Sync: none on a GPU, graph-safe.
        """
        if self.peers is not None and self.peers.can_sum(stream):
            self.peers.sum(parts, stream, add=True)
            return
        mine = parts.sum(1)
        if self.shard.size > 1:
            dist.all_reduce(mine)
        stream.copy_(mine.add_(stream))

    def gather(self, x: Tensor) -> Tensor:
        """Put the ranks' columns side by side: [T, C] of each to [T, N x C] on all."""
        size = self.shard.size
        if size == 1:
            return x
        if self.peers is not None and x.dtype == torch.float32:
            return self.peers.gather(x.contiguous())
        rows, width = x.shape
        parts = x.new_empty(size, rows, width)
        dist.all_gather(list(parts), x.contiguous())
        return parts.transpose(0, 1).reshape(rows, size * width)

    def connect(
        self, init_method: str, device: torch.device, timeout_s: float, peer_values: int = 0
    ) -> None:
        """Meet the other ranks; returns when all are there.

        Args:
            init_method: where they meet, such as "file:///tmp/x" (a file that does not exist yet).
            device: CPU ranks talk through gloo; GPU ranks, each on its current GPU, through NCCL.
            timeout_s: for the meeting and for each exchange.
            peer_values: values of the sums that GPUs make in each other's memory, at most; 0 leaves
                all to NCCL.
        """
        is_cuda = device.type == "cuda"
        if is_cuda:
            # Sums of several GPUs' memory made by the switch: not used, and on a shared host a
            # program that ends badly with it can keep others from their GPUs.
            os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
            os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
            device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            init_method=init_method,
            rank=self.shard.rank,
            world_size=self.shard.size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if is_cuda else None,
        )
        if is_cuda and peer_values:
            from lingflash.parallel.peers import Peers

            self.peers = Peers.open(self.shard, peer_values, device)

    def abandon(self) -> None:
        """End all waiting for ranks that are gone; what was waited for is of no use.

        For another thread than the one that waits. Nothing can be exchanged any more.
        """
        if self.peers is not None:
            self.peers.stop()
        leave()

    def close(self) -> None:
        """Leave the other ranks, who leave too. No graph may hold an exchange that NCCL makes."""
        leave()


def leave() -> None:
    """Leave the group of processes, whatever became of the others."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "nccl":
        # A farewell would wait for ranks that may have ended; this also ends what is under way.
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
