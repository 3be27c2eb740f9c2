"""Absorbed MLA attention of one query token of each of several sequences, in C."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double

from torch import Tensor

from lingflash.kernels.cpu import is_plain, struct_fields
from lingflash.kernels.cpu.build import load_library


class _MlaRowsStruct(Structure):
    """Mirrors MlaRows of decode.c."""

    _fields_ = [
        *struct_fields("count heads rank row block_size table_width"),
        ("scale", c_double),
        *struct_fields(pointers="query latents tables firsts lasts mixed"),
    ]


def can_attend_rows(latents: Tensor) -> bool:
    """Whether attend_rows can be called for these latents, [num_blocks, block_size, R + P]."""
    return is_plain(latents) and load_library() is not None


def attend_rows(
    query: Tensor,
    latents: Tensor,
    tables: Tensor,
    firsts: Tensor,
    lasts: Tensor,
    rank: int,
    scale: float,
) -> Tensor:
    """Mix each sequence's latents by the attention of one token to them.

    Args:
        query: float32 [N, H, R + P], absorbed.
        latents: float32 [num_blocks, block_size, R + P], contiguous.
        tables: int64 [N, B] on the CPU, the sequences' blocks in order.
        firsts, lasts: int64 [N] on the CPU, the first key that each attends to and the one after
            the last, counted from the table's first block.
        rank: R.

    Returns:
        float32 [N, H, R].

    Raises:
        MemoryError: no memory for the scores of a few keys.

    Numerics: float32; a sequence's result does not depend on the others. Sync: returns when done.
    """
    library = load_library()
    assert library is not None
    count, heads, row = query.shape
    query, tables = query.contiguous(), tables.contiguous()
    mixed = query.new_empty(count, heads, rank)
    call = _MlaRowsStruct(
        count=count,
        heads=heads,
        rank=rank,
        row=row,
        block_size=latents.shape[1],
        table_width=tables.shape[1],
        scale=scale,
        query=query.data_ptr(),
        latents=latents.data_ptr(),
        tables=tables.data_ptr(),
        firsts=firsts.data_ptr(),
        lasts=lasts.data_ptr(),
        mixed=mixed.data_ptr(),
    )
    if library.ling_mla_rows(ctypes.byref(call)):
        raise MemoryError("no memory for the scores of a few keys.")
    return mixed
