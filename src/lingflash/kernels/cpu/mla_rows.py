"""Absorbed MLA attention of one query token of each of several sequences, in C."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from lingflash.kernels.cpu.build import load_library


class _MlaRowsStruct(Structure):
    """Mirrors MlaRows of decode.c."""

    _fields_ = [
        ("count", c_int64),
        ("heads", c_int64),
        ("rank", c_int64),
        ("row", c_int64),
        ("block_size", c_int64),
        ("table_width", c_int64),
        ("scale", c_double),
        ("query", c_void_p),
        ("latents", c_void_p),
        ("tables", c_void_p),
        ("firsts", c_void_p),
        ("lasts", c_void_p),
        ("mixed", c_void_p),
    ]


def can_attend_rows(latents: Tensor) -> bool:
    """Whether attend_rows can be called for these latents, [num_blocks, block_size, R + P]."""
    return (
        latents.device.type == "cpu"
        and latents.dtype == torch.float32
        and latents.is_contiguous()
        and load_library() is not None
    )


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
        scale: factor of the scores.

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
