"""Carries out what the cache decided: zeroes, saves, loads, copies to and from the host tier."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lingflash.cache.memory_ops import (
    CopyState,
    HostCopy,
    LoadBlocks,
    LoadState,
    MemoryOp,
    SaveState,
    StoreBlocks,
    StoreState,
    ZeroBlocks,
    ZeroSlot,
)
from lingflash.engine.memory.host_memory import HostMemory
from lingflash.models.forward_batch import CacheTensors, upload

_AS_INTEGERS = {2: torch.int16, 4: torch.int32}


class CacheMemory:
    """The tensors behind a CacheManager.

    A checkpoint lies in blocks of latents: its numbers one after the other, as bits, then nothing
    up to the last block's end.

    Args:
        tensors: the device's memory; not to be reallocated while this lives.
    """

    def __init__(self, tensors: CacheTensors, num_host_blocks: int = 0) -> None:
        self._tensors = tensors
        # Integers are copied bit by bit, whatever number or NaN the bits would mean.
        self._blocks = tensors.latents.view(_AS_INTEGERS[tensors.latents.dtype.itemsize])
        # What a checkpoint holds: tensors, and which dimension counts the slots. At an anchor tails
        # are empty; where a sequence ends they come last.
        self._parts: list[tuple[Tensor, int]] = [(tensors.states, 1)]
        if tensors.anchor_hidden is not None:
            self._parts.append((tensors.anchor_hidden, 1))
        self._parts_and_tails = [*self._parts, (tensors.tail_k, 1), (tensors.tail_v, 1)]
        layers, _, *shape = self._blocks.shape
        self.host = None
        if num_host_blocks:
            self.host = HostMemory(
                num_host_blocks, [layers, *shape], self._blocks.dtype, tensors.latents.device
            )

    def run(self, ops: list[MemoryOp]) -> None:
        """Do all of these, in order."""
        for op in ops:
            match op:
                case ZeroBlocks(blocks):
                    self._tensors.forget_blocks(blocks)
                case ZeroSlot(slot):
                    self._tensors.forget_slots([slot])
                case CopyState(slot, target):
                    for part, dim in self._parts:
                        part.select(dim, target).copy_(part.select(dim, slot))
                case SaveState(slot, blocks, with_tail):
                    self._write(blocks, self._packed(slot, len(blocks), with_tail=with_tail))
                case LoadState(blocks, slot, from_host, with_tail):
                    content = self._read_host(blocks) if from_host else self._read(blocks)
                    self._unpack(content, slot, with_tail=with_tail)
                case StoreBlocks(blocks, copy):
                    assert self.host is not None
                    self.host.store(self._read(blocks), copy)
                case StoreState(slot, copy):
                    assert self.host is not None
                    self.host.store(self._packed(slot, len(copy.blocks)), copy)
                case LoadBlocks(host_blocks, blocks):
                    self._write(blocks, self._read_host(host_blocks))

    def poll(self) -> list[tuple[HostCopy, bool]]:
        """Copies to the host tier that ended since the last call, and whether they were made."""
        return [] if self.host is None else self.host.poll()

    def drain(self) -> None:
        """Wait for copies under way and forget them."""
        if self.host is not None:
            self.host.drain()

    def _index(self, numbers: list[int]) -> Tensor:
        return upload(numbers, self._blocks.device)

    def _read(self, blocks: list[int]) -> Tensor:
        """Integers [n, layers, block_size, R + P]."""
        found = self._blocks.index_select(1, self._index(blocks))
        return found.transpose(0, 1).contiguous()

    def _read_host(self, blocks: list[int]) -> Tensor:
        assert self.host is not None
        return self.host.load(blocks)

    def _write(self, blocks: list[int], content: Tensor) -> None:
        self._blocks.index_copy_(1, self._index(blocks), content.transpose(0, 1))

    def _packed(self, slot: int, num_blocks: int, *, with_tail: bool = False) -> Tensor:
        layers, _, *shape = self._blocks.shape
        content = self._blocks.new_zeros(num_blocks, layers, *shape)
        start, flat = 0, content.view(-1)
        for part, dim in self._parts_and_tails if with_tail else self._parts:
            integers = part.select(dim, slot).flatten().view(flat.dtype)
            flat[start : start + len(integers)] = integers
            start += len(integers)
        return content

    def _unpack(self, content: Tensor, slot: int, *, with_tail: bool) -> None:
        start, flat = 0, content.view(-1)
        for part, dim in self._parts_and_tails if with_tail else self._parts:
            place = part.select(dim, slot)
            size = place.numel() * place.itemsize // flat.itemsize
            place.copy_(flat[start : start + size].view(place.dtype).view(place.shape))
            start += size


def blocks_written(ops: Iterable[MemoryOp]) -> list[int]:
    """Blocks whose content these operations replace."""
    found: list[int] = []
    for op in ops:
        match op:
            case ZeroBlocks(blocks) | SaveState(_, blocks) | LoadBlocks(_, blocks):
                found += blocks
            case _:
                pass
    return found
