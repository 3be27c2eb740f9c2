"""FP8 products on the GPU, and the roundings before them.

The weights and rows come by the copy engine (tensor descriptors), 128 columns at a time, which is
what a scale covers; each such piece is one product of the tensor cores, scaled into float32 sums.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lingflash.kernels.triton_dot import dot, to_fp8

GROUP = 128
# cuBLAS takes scales of rows whose number is a multiple of this.
ROWS_TOGETHER = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a product's programs.

    Args:
        rows, columns: of the result, per program.
        warps: per program.
        stages: pieces of the operands that are under way at a time.
        depth: columns of the operands per piece.
        pieces: 1 or 2 of a stage, dense FP8 only: with two, the first product is scaled while the
            second is computed.
    """

    rows: int = 128
    columns: int = 128
    warps: int = 8
    stages: int = 4
    depth: int = 128
    pieces: int = 1


# Rows of blocks whose programs follow each other, so that they share the weights in L2.
_ROW_BLOCKS_TOGETHER = 8


@triton.jit
def _store_group(values_ptr, scale_ptr, x, row, group, scale_stride, stride, live):
    """Round [rows, 128] float32 with one scale per row and store both."""
    largest = tl.max(tl.abs(x), 1)
    scale = tl.where(largest > 0, largest / 448.0, 1.0)
    # A quotient may exceed the largest number by a rounding.
    x = tl.minimum(tl.maximum(x / scale[:, None], -448.0), 448.0)
    at = row.to(tl.int64)[:, None] * stride + group * 128 + tl.arange(0, 128)[None, :]
    tl.store(values_ptr + at, to_fp8(x), mask=live[:, None])
    tl.store(scale_ptr + group.to(tl.int64) * scale_stride + row, scale, mask=live)


# num_rows differs from step to step: a kernel is compiled once for all of them.
@triton.jit(do_not_specialize=["num_rows", "scale_stride"])
def _quantize_kernel(
    x_ptr, values_ptr, scale_ptr, num_rows, scale_stride, x_stride, columns, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    live = row < num_rows
    at = row.to(tl.int64)[:, None] * x_stride + group * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(x_ptr + at, mask=live[:, None], other=0.0).to(tl.float32)
    _store_group(values_ptr, scale_ptr, x, row, group, scale_stride, columns, live)


@triton.jit(do_not_specialize=["num_rows", "scale_stride"])
def _silu_fp8_kernel(
    x_ptr, values_ptr, scale_ptr, num_rows, scale_stride, x_stride, width, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    live = row < num_rows
    at = row.to(tl.int64)[:, None] * x_stride + group * 128 + tl.arange(0, 128)[None, :]
    gate = tl.load(x_ptr + at, mask=live[:, None], other=0.0).to(tl.float32)
    up = tl.load(x_ptr + width + at, mask=live[:, None], other=0.0).to(tl.float32)
    x = gate * tl.sigmoid(gate) * up
    _store_group(values_ptr, scale_ptr, x, row, group, scale_stride, width, live)


@triton.jit
def _silu_kernel(x_ptr, out_ptr, x_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = column < width
    at = x_ptr + row * x_stride + column
    gate = tl.load(at, mask=kept, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=kept, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["num_rows", "x_scale_stride"])
def _fp8_gemm_kernel(
    x_desc, w_desc, x_scale_ptr, w_scale_ptr, out_ptr, num_rows, num_columns, x_scale_stride,
    DEPTH: tl.constexpr, PER_CHANNEL: tl.constexpr, TOGETHER: tl.constexpr, PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row_blocks = tl.cdiv(num_rows, BLOCK_M)
    column_blocks = tl.cdiv(num_columns, BLOCK_N)
    per_band = TOGETHER * column_blocks
    first = program // per_band * TOGETHER
    size = tl.minimum(row_blocks - first, TOGETHER)
    inside = program % per_band
    row_at = (first + inside % size) * BLOCK_M
    column_at = inside // size * BLOCK_N
    row = row_at + tl.arange(0, BLOCK_M)
    column = column_at + tl.arange(0, BLOCK_N)
    live = row < num_rows
    x_scale_at = x_scale_ptr + row
    w_scale_at = w_scale_ptr + column_at // 128 * (DEPTH // 128)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, DEPTH, PIECES * BLOCK_K):
        x = x_desc.load([row_at, start])
        w = w_desc.load([column_at, start])
        # All loads come before the products, so that one wait covers them.
        if PIECES == 2:
            x_next = x_desc.load([row_at, start + BLOCK_K])
            w_next = w_desc.load([column_at, start + BLOCK_K])
        scale = tl.load(x_scale_at, mask=live, other=0.0)
        if not PER_CHANNEL:
            scale = scale * tl.load(w_scale_at + start // 128).to(tl.float32)
        x_scale_at += x_scale_stride
        if PIECES == 2:
            scale_next = tl.load(x_scale_at, mask=live, other=0.0)
            if not PER_CHANNEL:
                scale_next = scale_next * tl.load(w_scale_at + start // 128 + 1).to(tl.float32)
            x_scale_at += x_scale_stride
        total += dot(x, w.T, zeros) * scale[:, None]
        if PIECES == 2:
            total += dot(x_next, w_next.T, zeros) * scale_next[:, None]
    kept = column < num_columns
    if PER_CHANNEL:
        total *= tl.load(w_scale_ptr + column, mask=kept, other=0.0).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * num_columns + column[None, :]
    tl.store(out_ptr + at, total.to(tl.bfloat16), mask=live[:, None] & kept[None, :])


def quantize_rows_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """quantize_rows_fp8 on the GPU: bfloat16 [T, K] to FP8 [T, K] and float32 [K/128, T]."""
    num_rows, columns = x.shape
    values, scale = _empty_rows(num_rows, columns, x.device)
    if num_rows:
        grid = (triton.cdiv(num_rows, 32), columns // GROUP)
        _quantize_kernel[grid](
            x, values, scale, num_rows, scale.stride(0), x.stride(0), columns, BLOCK=32, num_warps=4
        )
    return values, scale


def silu_and_mul_fp8_triton(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """silu_and_mul_fp8 on the GPU: bfloat16 [T, 2I] to FP8 [T, I] and float32 [I/128, T]."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    values, scale = _empty_rows(num_rows, width, gate_up.device)
    if num_rows:
        grid = (triton.cdiv(num_rows, 32), width // GROUP)
        _silu_fp8_kernel[grid](
            gate_up, values, scale, num_rows, scale.stride(0), gate_up.stride(0), width, BLOCK=32,
            num_warps=4,
        )  # fmt: skip
    return values, scale


def _empty_rows(num_rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for FP8 rows and their scales, with room for a multiple of ROWS_TOGETHER behind."""
    room = -(-num_rows // ROWS_TOGETHER) * ROWS_TOGETHER
    values = torch.empty(room, columns, dtype=torch.float8_e4m3fn, device=device)
    scale = torch.empty(columns // GROUP, room, dtype=torch.float32, device=device)
    return values[:num_rows], scale[:, :num_rows]


def silu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """SiLU of the first half times the second: a float dtype [T, 2I] to [T, I], the same dtype.

    Numerics: float32, rounded once. Sync: none, graph-safe.
    """
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    block = min(triton.next_power_of_2(width), 1024)
    if num_rows:
        _silu_kernel[(num_rows, triton.cdiv(width, block))](
            gate_up, out, gate_up.stride(0), width, BLOCK=block, num_warps=4
        )
    return out


def fp8_gemm_triton(
    x8: Tensor, x_scale: Tensor, w8: Tensor, w_scale: Tensor, tile: Tile | None = None
) -> Tensor:
    """fp8_gemm on the GPU; checked arguments as there.

    Args:
        x8: float8_e4m3fn [T, K], contiguous.
        x_scale: float32 [K/128, T], columns contiguous.
        w8: float8_e4m3fn [N, K], contiguous.
        w_scale: a float dtype, [ceil(N/128), K/128] or [N, 1], contiguous.
        tile: sizes of a program; columns at most 128, depth 128.

    Returns:
        bfloat16 [T, N].
    """
    tile = tile or Tile()
    num_rows, depth = x8.shape
    num_columns = w8.shape[0]
    out = torch.empty(num_rows, num_columns, dtype=torch.bfloat16, device=x8.device)
    grid = (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns),)
    _fp8_gemm_kernel[grid](
        TensorDescriptor.from_tensor(x8, [tile.rows, GROUP]),
        TensorDescriptor.from_tensor(w8, [tile.columns, GROUP]),
        x_scale, w_scale.contiguous(), out, num_rows, num_columns,
        x_scale.stride(0), DEPTH=depth, PER_CHANNEL=w_scale.shape == (num_columns, 1),
        PIECES=tile.pieces if depth // GROUP % tile.pieces == 0 else 1,
        TOGETHER=_ROW_BLOCKS_TOGETHER, BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=GROUP,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
