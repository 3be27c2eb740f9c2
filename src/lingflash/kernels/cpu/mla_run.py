"""Absorbed MLA attention of a run of query tokens on AMX tiles, where the processor has them."""

from __future__ import annotations

import ctypes
from ctypes import Structure
from functools import lru_cache

from torch import Tensor

from lingflash.kernels.cpu import is_plain, struct_fields
from lingflash.kernels.cpu.build import load_library

# A second thread is started for so many scores; starting one takes as long as some 50,000.
_SCORES_PER_THREAD = 400_000
# Query rows of one call: what they sum up stays in the second-level cache.
_ROWS = 2048


class _MlaRunStruct(Structure):
    """Mirrors MlaRun of mla_run.c."""

    _fields_ = struct_fields(
        "rows heads rank width block_size length threads", pointers="query latents blocks mixed"
    )


def has_tiles() -> bool:
    """Whether the processor, the system and the compiler have AMX tiles."""
    return _library() is not None


def _library() -> ctypes.CDLL | None:
    library = load_library()
    return library if library is not None and _may_use_tiles(library) else None


@lru_cache(maxsize=4)
def _may_use_tiles(library: ctypes.CDLL) -> bool:
    return bool(library.ling_has_tiles())  # asks the system for them


def can_attend_on_tiles(latents: Tensor, rank: int) -> bool:
    """Whether attend_on_tiles can be called on this machine, with its `latents` and `rank`."""
    return (
        is_plain(latents)
        and rank % 32 == 0
        and latents.shape[-1] % 16 == 0
        and _library() is not None
    )


def attend_on_tiles(
    query: Tensor, latents: Tensor, blocks: Tensor, length: int, rank: int, num_threads: int
) -> Tensor:
    """Mix the latents of one sequence by the attention of its last tokens to them.

    Args:
        query: float32 [m, H, R + P], absorbed, with the scores' scale and log2(e) in it.
        latents: float32 [num_blocks, block_size, R + P], contiguous.
        blocks: int64 [B] on the CPU, the sequence's blocks in order.
        length: tokens of the sequence, the query's own included.
        rank: R.

    Returns:
        float32 [m, H, R].

    Raises:
        MemoryError: no memory for the work.

    Numerics: scores from operands rounded to 24 bits of the largest number of their row, without
        products below 2^-24 of the largest, summed exactly; statistics in float32; probabilities
        and latents are mixed with 16 bits each, an error of 2^-16 of a latent at most, at random.
        Sync: returns when done.
    """
    library = _library()
    assert library is not None
    num_tokens, heads, width = query.shape
    query, blocks = query.contiguous(), blocks.contiguous()
    mixed = query.new_empty(num_tokens, heads, rank)
    step = max(_ROWS // heads, 1)
    for lo in range(0, num_tokens, step):
        hi = min(lo + step, num_tokens)
        seen, rows = length - num_tokens + hi, (hi - lo) * heads
        call = _MlaRunStruct(
            rows=rows,
            heads=heads,
            rank=rank,
            width=width,
            block_size=latents.shape[1],
            length=seen,
            threads=min(num_threads, 1 + rows * seen // _SCORES_PER_THREAD),
            query=query[lo].data_ptr(),
            latents=latents.data_ptr(),
            blocks=blocks.data_ptr(),
            mixed=mixed[lo].data_ptr(),
        )
        if library.ling_mla_run(ctypes.byref(call)):
            raise MemoryError(f"no memory for the attention of {hi - lo} tokens to {seen}.")
    return mixed
