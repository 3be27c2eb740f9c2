"""x W^T for one row of x on the GPU, with what stands before and after it in a decode step.

Each thread multiplies what it loaded, and sums are made at the end. A norm before the product needs
no launch of its own: its factor, one number for all columns or one for each group of them, is taken
out of the sum, and every program works it out again from the row that it reads anyway. Nor does the
addition to the residual stream after it.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

# FP8 scales are per 128 x 128 weights.
SCALE_BLOCK = tl.constexpr(128)
# Rows of a matrix from which on its programs take it in steps, as a vocabulary's do.
_VOCABULARY = 32768


@triton.jit
def load_tile(w_row, row_ok, at, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """Columns at [C, n] of some rows of weights, each read once: [C, N, n], 0 outside.

    Rows are the middle axis, so that Triton spreads chunks over threads, not rows: what is done to
    x is then done once for all rows of a thread.
    """
    places = w_row[None, :, None] + at[:, None, :]
    if EVEN:
        w = tl.load(places, eviction_policy="evict_first")
    else:
        w = tl.load(places, mask=row_ok[None, :, None] & (at < WIDTH)[:, None, :], other=0.0)
    return w


@triton.jit
def row_sums(
    x_ptr, w_row, scale_row, row_ok,
    WIDTH: tl.constexpr, BLOCK_SCALE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row of x times BLOCK_N rows of weights that share their scales: float32 [BLOCK_N].

    Nothing is staged in shared memory and little is kept in registers: what hides the memory's
    latency is the number of threads that each ask for 16 bytes (docs/gpu-notes.md).
    """
    chunk, k = tl.arange(0, CHUNKS), tl.arange(0, 128)
    total = tl.zeros([BLOCK_N], tl.float32)
    for step in range((WIDTH + CHUNKS * 128 - 1) // (CHUNKS * 128)):
        here = step * CHUNKS + chunk
        at = here[:, None] * 128 + k[None, :]
        w = load_tile(w_row, row_ok, at, WIDTH, EVEN)
        x = tl.load(x_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        if BLOCK_SCALE:
            x *= tl.load(scale_row + here, mask=here * SCALE_BLOCK < WIDTH, other=0.0)[:, None]
        total += tl.sum(tl.sum(w.to(tl.float32) * x[:, None, :], 2), 0)
    return total


@triton.jit
def _many_rows_kernel(
    x_ptr, w_ptr, scale_ptr, out_ptr, num_rows, scale_stride,
    WIDTH: tl.constexpr, QUANT: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = row < num_rows
    w_row = w_ptr + row.to(tl.int64) * WIDTH
    scale_row = scale_ptr + (tl.program_id(0) * BLOCK_N // SCALE_BLOCK) * scale_stride
    wait_for_previous(PDL)
    out = row_sums(x_ptr, w_row, scale_row, row_ok, WIDTH, QUANT == "block", EVEN, BLOCK_N, CHUNKS)
    if QUANT == "channel":
        out *= tl.load(scale_ptr + row, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row_ok)


@triton.jit
def _one_row_kernel(
    x_ptr, norm_ptr, w_ptr, scale_ptr, out_ptr, num_rows, scale_stride, eps,
    WIDTH: tl.constexpr, QUANT: tl.constexpr, NORM: tl.constexpr, GROUP_WIDTH: tl.constexpr,
    PIECES: tl.constexpr, BLOCK_P: tl.constexpr, ADD: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = row < num_rows
    w_row = w_ptr + row.to(tl.int64) * WIDTH
    scale_row = scale_ptr + (tl.program_id(0) * BLOCK_N // SCALE_BLOCK) * scale_stride
    # All of the weights are asked for before the wait, while the kernel before still runs.
    chunk = tl.arange(0, CHUNKS)
    at = chunk[:, None] * 128 + tl.arange(0, 128)[None, :]
    w = load_tile(w_row, row_ok, at, WIDTH, EVEN)
    scale = tl.full([CHUNKS], 1.0, tl.float32)
    if QUANT == "block":
        scale = tl.load(scale_row + chunk, mask=chunk * SCALE_BLOCK < WIDTH, other=0.0)
    if NORM == "row":
        norm = tl.load(norm_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    factor = 1.0
    if NORM == "row":
        factor = tl.rsqrt(tl.sum(tl.sum(x * x, 1), 0) / WIDTH + eps)
        x *= norm
    elif NORM == "groups":
        piece = tl.arange(0, BLOCK_P)[None, :]
        group = (chunk * 128 // GROUP_WIDTH)[:, None]
        live = (chunk * 128 < WIDTH)[:, None] & (piece < PIECES)
        squares = tl.load(norm_ptr + group * PIECES + piece, mask=live, other=0.0)
        scale *= tl.rsqrt(tl.sum(squares, 1) / GROUP_WIDTH + eps)
    x *= scale[:, None]
    out = tl.sum(tl.sum(w.to(tl.float32) * x[:, None, :], 2), 0) * factor
    if QUANT == "channel":
        out *= tl.load(scale_ptr + row, mask=row_ok, other=0.0).to(tl.float32)
    if ADD:
        out += tl.load(out_ptr + row, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row_ok)


@dataclass(frozen=True, slots=True)
class RowNorm:
    """RMS norm of the whole row.

    Args:
        weight: float [K].
    """

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """RMS norm of equal groups of the row, of which the squares were summed by who wrote it.

    Args:
        squares: float32 [G, P], contiguous: P partial sums of each group's squares; a group's
            columns are a multiple of 128.

    The row has been multiplied by the norm's weight already, which the squares do not contain.
    """

    squares: Tensor
    eps: float


def check_product(x: Tensor, w: Tensor, scale: Tensor | None, out: Tensor) -> str:
    """How the weights of out = x W^T are scaled: "none", "block" or "channel".

    Raises:
        ValueError: a shape, dtype or stride does not fit.
    """
    (num_tokens, width), num_rows = x.shape, w.shape[0]
    if w.shape[1] != width or out.shape != (num_tokens, num_rows):
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}, out {tuple(out.shape)}.")
    if not w.is_contiguous() or (num_tokens and not x.stride(1) == out.stride(1) == 1):
        raise ValueError("w must be contiguous, x's and out's rows too.")
    if scale is None:
        return "none"
    grid = (-(-num_rows // 128), -(-width // 128))
    if scale.dtype != torch.float32 or scale.shape not in (grid, (num_rows, 1)):
        raise ValueError(f"scale is {scale.dtype} {tuple(scale.shape)}; float32 {grid}.")
    return "block" if scale.shape == grid else "channel"


def _cut(num_rows: int, row_bytes: int) -> tuple[int, int]:
    """Rows of a program and its warps.

    Where there are many rows, a program reads twice as much: what it does to x is then shared by
    more rows, and there still are programs enough.
    """
    num_bytes, warps = (32768, 4) if num_rows >= 8192 else (16384, 8)
    return max(1, min(num_bytes // row_bytes, 16)), warps


def one_row_product(
    x: Tensor,
    w: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    norm: RowNorm | GroupNorm | None = None,
    add: bool = False,
    block_n: int | None = None,
    warps: int | None = None,
) -> Tensor:
    """out = norm(x) W^T, or out += norm(x) W^T, for one row of x.

    Args:
        x: any float dtype [1, K], contiguous.
        w: [R, K], contiguous: bfloat16 or float8_e4m3fn.
        scale: of FP8 weights, float32 [ceil(R/128), ceil(K/128)] per block, or [R, 1] per row.
        out: any float dtype [1, R], contiguous; written.
        norm: what x goes through first.
        add: add to what is in out, in float32, rounded once.
        block_n: rows of w per program, a power of two up to 128; by the shape if None.
        warps: of a program; by the shape if None.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: float32 throughout; a normed x is not rounded. Sync: none, graph-safe.
    """
    num_rows, width = w.shape
    if x.shape[0] != 1:
        raise ValueError(f"x is {tuple(x.shape)}; one row is needed.")
    quant = check_product(x, w, scale, out)
    scales = w if scale is None else scale
    chunks = triton.next_power_of_2(triton.cdiv(width, 128))
    plain_vocabulary = norm is None and not add and num_rows > _VOCABULARY
    best = (16, 4) if plain_vocabulary else _cut(num_rows, chunks * 128 * w.element_size())
    block_n = block_n or best[0]
    options = {"WIDTH": width, "QUANT": quant, "num_warps": warps or best[1]} | launch_options(x)
    if plain_vocabulary:
        chunks = min(chunks, 8)
        _many_rows_kernel[(triton.cdiv(num_rows, block_n),)](
            x, w, scales, out, num_rows, scales.stride(0), BLOCK_N=block_n, CHUNKS=chunks,
            EVEN=num_rows % block_n == 0 and width % (chunks * 128) == 0, **options,
        )  # fmt: skip
        return out
    kind, given, eps, pieces, group_width = "none", x, 0.0, 1, width
    if isinstance(norm, RowNorm):
        kind, given, eps = "row", norm.weight, norm.eps
        if given.shape != (width,):
            raise ValueError(f"the norm's weight is {tuple(given.shape)}, x {tuple(x.shape)}.")
    elif norm is not None:
        kind, given, eps = "groups", norm.squares, norm.eps
        groups, pieces = given.shape
        group_width = width // groups
        if width % (groups * 128) or given.dtype != torch.float32 or not given.is_contiguous():
            raise ValueError(f"squares are {given.dtype} {tuple(given.shape)} for {width} columns.")
    _one_row_kernel[(triton.cdiv(num_rows, block_n),)](
        x, given, w, scales, out, num_rows, scales.stride(0), eps, NORM=kind,
        GROUP_WIDTH=group_width, PIECES=pieces, BLOCK_P=triton.next_power_of_2(pieces), ADD=add,
        EVEN=num_rows % block_n == 0 and width == chunks * 128, BLOCK_N=block_n, CHUNKS=chunks,
        **options,
    )  # fmt: skip
    return out
