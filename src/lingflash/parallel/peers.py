"""GPUs of one host that write into each other's memory, for sums too small for NCCL."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
from torch import Tensor

from lingflash.kernels.all_reduce.triton_one_shot import (
    BLOCK,
    PeerBuffers,
    buffer_words,
    one_shot_gather,
    one_shot_sum,
)
from lingflash.parallel.shard import Shard

log = logging.getLogger(__name__)


class Peers:
    """This rank's memory that all others write to, and theirs.

    Args:
        buffers: see PeerBuffers.
        handle: of the shared allocation; it must live as long as the buffers.
    """

    def __init__(self, buffers: PeerBuffers, handle: object) -> None:
        self._buffers, self._handle = buffers, handle
        device = buffers.stop.device
        self._stop_stream = torch.cuda.Stream(device)
        self._stop_sign = torch.ones(1, dtype=torch.int32).pin_memory()

    @classmethod
    def open(cls, shard: Shard, num_values: int, device: torch.device) -> Peers | None:
        """Share memory with all ranks; None on all of them if it fails on one.

        Args:
            shard: this rank's place; every rank must call, in a process group of NCCL.
            num_values: the most values of a sum.
            device: this rank's GPU.
        """
        shape = buffer_words(shard.size, num_values)
        opened = None
        try:
            words = symm_mem.empty(shape, dtype=torch.int64, device=device)
            words.zero_()
            torch.cuda.synchronize(device)
            handle = symm_mem.rendezvous(words, dist.group.WORLD)  # pyright: ignore[reportArgumentType]  # set: we are connected
            opened = cls(
                PeerBuffers(
                    torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=device),
                    words,
                    torch.zeros(shape[2] // BLOCK, dtype=torch.int32, device=device),
                    torch.zeros(1, dtype=torch.int32, device=device),
                    shard.rank,
                ),
                handle,
            )
        except RuntimeError as error:
            log.warning("GPUs cannot reach each other's memory (%s); NCCL makes all sums", error)
        everywhere = torch.tensor([int(opened is not None)], device=device)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return opened if everywhere.item() else None

    def can_sum(self, x: Tensor) -> bool:
        """Whether a sum of x's size fits."""
        return x.numel() <= self._buffers.capacity

    def sum(self, parts: Tensor, out: Tensor, *, add: bool) -> None:
        one_shot_sum(parts, out, self._buffers, add=add)

    def gather(self, x: Tensor) -> Tensor:
        return one_shot_gather(x, self._buffers)

    def stop(self) -> None:
        """End all waiting, now and later; for another thread than the one that waits."""
        with torch.cuda.stream(self._stop_stream):
            # A copy, which no processor that waits has to make room for.
            self._buffers.stop.copy_(self._stop_sign, non_blocking=True)
