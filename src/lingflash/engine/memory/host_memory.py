"""Blocks in host memory, filled behind the model's back.

On CUDA the memory is pinned and a stream of its own carries the copies; on the CPU a thread does.
Copies to the host end in the order they began. Reading waits for nothing: only what was reported
complete is ever read.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lingflash.cache.memory_ops import HostCopy

log = logging.getLogger(__name__)


class HostMemory:
    """Blocks of integers in host memory.

    Args:
        dtype: of integers as wide as the latents.
    """

    def __init__(
        self, num_blocks: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._pool = torch.empty(num_blocks, *shape, dtype=dtype)
        if on_gpu:
            _pin(self._pool)
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._thread = None if on_gpu else ThreadPoolExecutor(1, "host-tier")
        # Under way, oldest first: the copy, and a function that says whether it was made, None
        # while it is not done.
        self._pending: deque[tuple[HostCopy, Callable[[], bool | None]]] = deque()

    def store(self, content: Tensor, copy: HostCopy) -> None:
        """Begin to copy blocks [n, ...] of the device to their places; returns at once."""
        if self._stream is not None:
            done = self._store_on_gpu(content, copy.blocks)
        else:
            assert self._thread is not None
            done = _is_done(self._thread.submit(self.write, content, copy.blocks))
        self._pending.append((copy, done))

    def write(self, content: Tensor, places: Sequence[int]) -> None:
        """Copy blocks to their places, run by run of those that follow each other."""
        for start, end in _runs(places):
            first = places[start]
            target = self._pool[first : first + end - start]
            target.copy_(content[start:end], non_blocking=True)

    def load(self, places: Sequence[int]) -> Tensor:
        """Blocks [n, ...] on the device; on CUDA in the order of its current stream."""
        content = torch.empty(
            len(places), *self._pool.shape[1:], dtype=self._pool.dtype, device=self._device
        )
        for start, end in _runs(places):
            first = places[start]
            source = self._pool[first : first + end - start]
            content[start:end].copy_(source, non_blocking=True)
        return content

    def poll(self) -> list[tuple[HostCopy, bool]]:
        """Copies that ended since the last call, and whether they were made."""
        ended = []
        while self._pending:
            copy, done = self._pending[0]
            made = done()
            if made is None:
                break
            self._pending.popleft()
            ended.append((copy, made))
        return ended

    def drain(self) -> None:
        """Wait until nothing is under way, and forget what was."""
        if self._stream is not None:
            self._stream.synchronize()
        elif self._thread is not None:
            self._thread.submit(lambda: None).result()
        self._pending.clear()

    def _store_on_gpu(self, content: Tensor, places: Sequence[int]) -> Callable[[], bool | None]:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self.write(content, places)
            event = torch.cuda.Event()
            event.record(self._stream)
        content.record_stream(self._stream)  # it may be freed here while the copy still reads it
        return lambda: True if event.query() else None


def _pin(memory: Tensor) -> None:
    """Pin memory in place; torch's own pinned memory would be rounded up to a power of two."""
    cudart: Any = torch.cuda.cudart()
    result = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if result != cudart.cudaError.success:
        log.warning("the host tier cannot be pinned (%s); its copies will be slower", result)
        return
    weakref.finalize(memory, cudart.cudaHostUnregister, memory.data_ptr())


def _is_done(future: Future[None]) -> Callable[[], bool | None]:
    def done() -> bool | None:
        if not future.done():
            return None
        error = future.exception()
        if error is not None:
            log.error("a copy to the host tier failed: %s", error)
        return error is None

    return done


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of the stretches of consecutive places."""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1]
    edges = [0, *breaks, len(places)]
    return list(pairwise(edges))
