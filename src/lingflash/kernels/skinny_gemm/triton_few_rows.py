"""x W^T for few rows of x on the GPU: every weight is read once, at the memory's rate.

16 rows or more are given to the tensor cores, most of them empty at small batches, which costs
nothing as long as the weights come from memory. One row has a form of its own (triton_one_row.py).
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.skinny_gemm.triton_one_row import SCALE_BLOCK, check_product, one_row_product
from lingflash.kernels.triton_dot import dot
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous


@triton.jit
def load_rows(at, row_ok, k_ok, EVEN: tl.constexpr):
    """A tile of weights; what lies outside is 0."""
    if EVEN:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=row_ok[:, None] & k_ok[None, :], other=0.0)


@triton.jit
def narrow(x, SCALED: tl.constexpr):
    """Activations [M, K] as float16 for products with FP8 weights, and their row's factor.

    FP8 weights are exact in float16. Normed activations fit as they are; others are scaled by
    their row's largest magnitude in this tile, since float16 ends at 65,504.
    """
    if SCALED:
        top = tl.max(tl.abs(x.to(tl.float32)), 1)
        factor = tl.maximum(top, 1e-30) * (1.0 / 1024.0)
        return (x.to(tl.float32) / factor[:, None]).to(tl.float16), factor
    return x.to(tl.float16), tl.full([x.shape[0]], 1.0, tl.float32)


@triton.jit
def _rows_kernel(
    x_ptr, w_ptr, scale_ptr, out_ptr, num_tokens, num_rows, width,
    x_stride, out_stride, scale_stride,
    QUANT: tl.constexpr, SCALED: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PIECES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    live = token < num_tokens
    w_row = w_ptr + row.to(tl.int64)[:, None] * width
    wait_for_previous(PDL)
    x_row = x_ptr + token[:, None] * x_stride
    scale_row = scale_ptr + (tl.program_id(1) * BLOCK_N // SCALE_BLOCK) * scale_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, width, BLOCK_K * PIECES):
        for piece in tl.static_range(PIECES):
            at = start + piece * BLOCK_K + k
            x = tl.load(x_row + at[None, :], mask=live[:, None] & (at < width)[None, :], other=0.0)
            w = load_rows(w_row + at[None, :], row < num_rows, at < width, EVEN)
            if QUANT == "none":
                total = dot(x.to(w_ptr.dtype.element_ty), tl.trans(w), total)
            else:
                x, factor = narrow(x, SCALED)
                if QUANT == "block":
                    block = start // SCALE_BLOCK + piece
                    is_block = block * SCALE_BLOCK < width
                    factor *= tl.load(scale_row + block, mask=is_block, other=0.0)
                none = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                part = dot(x, tl.trans(w.to(tl.float16)), none)
                total += part * factor[:, None]
    if QUANT == "channel":
        total *= tl.load(scale_ptr + row, mask=row < num_rows, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + token[:, None] * out_stride + row[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=live[:, None] & (row < num_rows)[None, :],
    )


@dataclass(frozen=True, slots=True)
class SkinnyTiles:
    """How a product of several rows is cut."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def skinny_tiles(num_tokens: int, num_rows: int, itemsize: int) -> SkinnyTiles:
    """Tiles for a product [num_tokens, K] x [num_rows, K]^T."""
    if num_tokens > 64:
        # Fewer reads of weights from the L2 cache, as long as there are programs for all of it.
        if num_rows >= 8192:
            return SkinnyTiles(128, 128, 128, 8, 3)
        if itemsize == 2:
            return SkinnyTiles(64, 128, 128, 4, 4)
        return SkinnyTiles(128, 32 if num_tokens <= 128 else 64, 128, 4, 4)
    block_m = max(16, triton.next_power_of_2(num_tokens))
    return SkinnyTiles(block_m, 64, 128, 4, 6 if itemsize == 1 else 4)


def skinny_gemm_triton(
    x: Tensor,
    w: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    scaled: bool = False,
    tiles: SkinnyTiles | None = None,
) -> Tensor:
    """out = x W^T for few rows of x.

    Args:
        x: float16 or bfloat16 [T, K], contiguous rows.
        w: [R, K], contiguous: bfloat16 or float8_e4m3fn.
        scale: of FP8 weights, float32 [ceil(R/128), ceil(K/128)] per block, or [R, 1] per row.
        out: any float dtype [T, R], contiguous rows; written.
        scaled: x is not normed, and may not fit float16.
        tiles: how to cut; by the shape if None, one row then in its own form.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: accumulates in float32. One row is not rounded. Of more, FP8 weights are taken
        exactly as float16, x rounded to float16; BF16 weights with x rounded to bfloat16.
        Sync: none, graph-safe.
    """
    (num_tokens, width), num_rows = x.shape, w.shape[0]
    if num_tokens == 1 and tiles is None:
        return one_row_product(x, w, scale, out)
    quant = check_product(x, w, scale, out)
    if not num_tokens:
        return out
    t = tiles or skinny_tiles(num_tokens, num_rows, w.element_size())
    scales = w if scale is None else scale
    scale_stride = scales.stride(0)
    even = num_rows % t.block_n == 0 and width % t.block_k == 0
    pieces = t.block_k // 128 if quant == "block" else 1  # each has scales of its own
    options = launch_options(x)
    _rows_kernel[(triton.cdiv(num_tokens, t.block_m), triton.cdiv(num_rows, t.block_n))](
        x, w, scales, out, num_tokens, num_rows, width,
        x.stride(0), out.stride(0), scale_stride,
        QUANT=quant, SCALED=scaled, EVEN=even, BLOCK_M=t.block_m, BLOCK_N=t.block_n,
        BLOCK_K=t.block_k // pieces, PIECES=pieces, num_warps=t.warps, num_stages=t.stages,
        **options,
    )  # fmt: skip
    return out
