"""Products with packed INT4 and FP8 weights on the CPU, in C, without a matrix of numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import Structure
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from lingflash.kernels.cpu import is_plain, struct_fields
from lingflash.kernels.cpu.build import load_library

# A second thread is started for so many multiplications; starting one takes as long as some 2M.
_WORK_PER_THREAD = 20_000_000
_SCALE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_COLUMNS_AT_ONCE = 128  # PANEL of packed.c
# 8-bit digits of an activation that is multiplied with INT4. One is off by 0.7 % of a product's
# norm, two by 3e-5.
DIGITS = 2


class _ProductStruct(Structure):
    """Mirrors Product of packed.c."""

    _fields_ = struct_fields(
        "rows columns outputs block_rows block_columns digits "
        "x_row out_row values_step scale_row scale_step is_packed scale_kind",
        pointers="x values scale out",
    )


class StoredMatrix(Protocol):
    """A weight [R, C] as it is stored; quant.matrix.QuantizedMatrix says what the fields are."""

    @property
    def values(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def part_rows(self) -> tuple[int, ...]: ...


@lru_cache(maxsize=4)
def _lanes(library: ctypes.CDLL) -> int:
    return library.ling_lanes() if library.ling_has_products() else 0


def lanes() -> int:
    """Rows of a weight that are computed with at once; 0 if there are no such kernels."""
    library = load_library()
    return 0 if library is None else _lanes(library)


def takes_format(
    is_packed: bool, block: tuple[int, int], part_rows: Sequence[int], columns: int
) -> bool:
    """Whether multiply_packed knows weights of this format and size, if they lie transposed."""
    step = lanes()
    if not step or any(rows % step for rows in part_rows):
        return False
    block_rows, block_columns = block
    if is_packed:
        return block_rows == 1 and block_columns in (32, 128) and columns % block_columns == 0
    if block_rows != 1 and block_rows % step:
        return False
    return block_columns % _COLUMNS_AT_ONCE == 0  # 0 columns are a whole row


def can_multiply(x: Tensor, w: StoredMatrix) -> bool:
    """Whether multiply_packed can be called: float32 rows, and a weight that lies transposed."""
    is_packed = w.values.dtype == torch.int32
    columns = w.values.shape[1] * (8 if is_packed else 1)
    return (
        x.dim() == 2
        and is_plain(x)
        and w.values.stride(0) == 1
        and (w.scale.stride(0) == 1 or not is_packed)
        and w.scale.dtype in _SCALE_KINDS
        and takes_format(is_packed, w.block, w.part_rows, columns)
    )


def multiply_packed(
    products: Sequence[tuple[Tensor, StoredMatrix]],
    num_threads: int | None = None,
    digits: int = DIGITS,
) -> list[Tensor]:
    """x W^T of each, all at once: a thread takes a part of every weight.

    Args:
        products: rows float32 [T, C] and the weight [R, C] that they are multiplied with, for
            which can_multiply holds.
        num_threads: torch's by default.
        digits: of 8 bits, that an activation for INT4 is rounded to, 1 or 2.

    Returns:
        float32 [T, R] of each.

    Raises:
        MemoryError: no memory for the work.

    Numerics: activations for INT4 are rounded to 8 bits a digit of the largest of their group of
        columns, for FP8 not; sums are exact within a group and float32 between them, in the order
        of the columns, so that a row's bits do not depend on the other rows. Sync: returns when
        done.
    """
    library = load_library()
    assert library is not None
    outs = [x.new_empty(x.shape[0], w.values.shape[0]) for x, w in products]
    calls = [
        call
        for (x, w), out in zip(products, outs, strict=True)
        for call in _calls(x, w, out, digits)
    ]
    work = sum(call.rows * call.columns * call.outputs for call in calls)
    array = (_ProductStruct * len(calls))(*calls)
    most = torch.get_num_threads() if num_threads is None else num_threads
    threads = min(most, 1 + work // _WORK_PER_THREAD)
    if library.ling_products(array, ctypes.c_int64(len(calls)), ctypes.c_int64(threads)):
        raise MemoryError(f"no memory for {len(calls)} products with packed weights.")
    return outs


def _calls(x: Tensor, w: StoredMatrix, out: Tensor, digits: int) -> Iterator[_ProductStruct]:
    """One for each grid of scales: one for all of INT4, whose parts' scales lie side by side."""
    is_packed = w.values.dtype == torch.int32
    parts = (w.values.shape[0],) if is_packed or w.block[0] == 1 else w.part_rows
    row = grid = 0
    for rows in parts:
        yield _ProductStruct(
            rows=x.shape[0],
            columns=x.shape[1],
            outputs=rows,
            block_rows=w.block[0],
            block_columns=w.block[1] or x.shape[1],
            digits=digits,
            x_row=x.stride(0),
            out_row=out.stride(0),
            values_step=w.values.stride(1),
            scale_row=w.scale.stride(0),
            scale_step=w.scale.stride(1),
            is_packed=is_packed,
            scale_kind=_SCALE_KINDS[w.scale.dtype],
            x=x.data_ptr(),
            values=w.values[row:].data_ptr(),
            scale=w.scale[grid:].data_ptr(),
            out=out[:, row:].data_ptr(),
        )
        row += rows
        grid += -(-rows // w.block[0])
