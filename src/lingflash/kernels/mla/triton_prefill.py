"""MLA over many query tokens on the GPU: keys and values expanded, softmax on the fly.

One program takes a tile of one sequence's queries and one head, and walks the keys that the tile
sees. Keys before the tile's first query need no mask; only the last few blocks are masked.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and knows num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.mla.gpu_plan import TILE_ROWS
from lingflash.kernels.triton_dot import dot


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How the kernel is cut; for tuning.

    Args:
        block_m: queries of a program, a divisor of TILE_ROWS.
        block_n: keys of a step.
    """

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 3


_BF16 = PrefillConfig()
# Without tensor cores: products are made of registers.
_FLOAT32 = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1)


@triton.jit
def _load(at, live, inside, IS_LIVE: tl.constexpr, IS_WHOLE: tl.constexpr):
    """A tile [rows, channels]; masks only where they matter."""
    if IS_LIVE and IS_WHOLE:
        return tl.load(at)
    if IS_LIVE:
        return tl.load(at, mask=inside[None, :], other=0.0)
    if IS_WHOLE:
        return tl.load(at, mask=live[:, None], other=0.0)
    return tl.load(at, mask=live[:, None] & inside[None, :], other=0.0)


@triton.jit
def _walk(
    q_n, q_r, mixed, total, top, expanded_at, rope_at, begin, end, first_position, num_keys,
    expanded_stride, rope_stride, scale,
    NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr, BLOCK_VALUE: tl.constexpr, ALL_SEEN: tl.constexpr,
):  # fmt: skip
    """Take keys begin .. end - 1 into the running softmax; a step's end may lie past `end`."""
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    c, p, w = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_ROPE), tl.arange(0, BLOCK_VALUE)
    for start in range(begin, end, BLOCK_N):
        key = start + n
        live = key < num_keys
        at = expanded_at + key.to(tl.int64)[:, None] * expanded_stride
        shared = rope_at + key.to(tl.int64)[:, None] * rope_stride
        k_n = _load(at + c[None, :], live, c < NOPE, ALL_SEEN, NOPE == BLOCK_NOPE)
        k_r = _load(shared + p[None, :], live, p < ROPE, ALL_SEEN, ROPE == BLOCK_ROPE)
        scores = dot(q_n, tl.trans(k_n), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        scores = dot(q_r, tl.trans(k_r), scores)
        if not ALL_SEEN:
            seen = key[None, :] <= first_position + m[:, None]
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weight = tl.exp2(scores * scale - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weight, 1)
        v = _load(at + NOPE + w[None, :], live, w < VALUE, ALL_SEEN, VALUE == BLOCK_VALUE)
        mixed = dot(weight.to(v.dtype), v, mixed * keep[:, None])
        top = new_top
    return mixed, total, top


@triton.jit
def _prefill_kernel(
    q_nope_ptr, q_rope_ptr, expanded_ptr, rope_ptr, tile_ptr, out_ptr,
    q_nope_stride, q_nope_head, q_rope_stride, q_rope_head, expanded_stride, rope_stride, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_NOPE: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    line = tile_ptr + tl.program_id(0) // SPLIT * 4
    skipped = tl.program_id(0) % SPLIT * BLOCK_M
    head = tl.program_id(1)
    num_rows = tl.load(line + 1) - skipped
    if num_rows <= 0:
        return
    row = (tl.load(line) + skipped).to(tl.int64)
    first_key = tl.load(line + 2).to(tl.int64)
    first_position = tl.load(line + 3) + skipped
    m = tl.arange(0, BLOCK_M)
    c, p, w = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_ROPE), tl.arange(0, BLOCK_VALUE)
    live = m < num_rows
    at = q_nope_ptr + row * q_nope_stride + head * q_nope_head
    q_n = _load(at + m[:, None] * q_nope_stride + c[None, :], live, c < NOPE, False, False)
    at = q_rope_ptr + row * q_rope_stride + head * q_rope_head
    q_r = _load(at + m[:, None] * q_rope_stride + p[None, :], live, p < ROPE, False, False)
    expanded_at = expanded_ptr + first_key * expanded_stride + head * (NOPE + VALUE)
    rope_at = rope_ptr + first_key * rope_stride
    mixed = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # Every query of the tile sees the keys up to the first one's own.
    all_see = (first_position + 1) // BLOCK_N * BLOCK_N
    num_keys = first_position + tl.minimum(num_rows, BLOCK_M)
    mixed, total, top = _walk(
        q_n, q_r, mixed, total, top, expanded_at, rope_at, 0, all_see, first_position, num_keys,
        expanded_stride, rope_stride, scale, NOPE, ROPE, VALUE,
        BLOCK_M, BLOCK_N, BLOCK_NOPE, BLOCK_ROPE, BLOCK_VALUE, True,
    )  # fmt: skip
    mixed, total, top = _walk(
        q_n, q_r, mixed, total, top, expanded_at, rope_at, all_see, num_keys, first_position,
        num_keys, expanded_stride, rope_stride, scale, NOPE, ROPE, VALUE,
        BLOCK_M, BLOCK_N, BLOCK_NOPE, BLOCK_ROPE, BLOCK_VALUE, False,
    )  # fmt: skip
    out = (mixed / total[:, None]).to(out_ptr.dtype.element_ty)
    at = out_ptr + ((row + m)[:, None] * HEADS + head) * VALUE + w[None, :]
    tl.store(at, out, mask=live[:, None] & (w < VALUE)[None, :])


def mla_prefill_triton(
    q_nope: Tensor,
    q_rope: Tensor,
    expanded: Tensor,
    k_rope: Tensor,
    tiles: Tensor,
    scale: float,
    out: Tensor,
    *,
    config: PrefillConfig | None = None,
) -> None:
    """Attend from runs of query tokens, each the last of its keys, causally.

    Args:
        q_nope: float [T, H, N], channels contiguous.
        q_rope: same dtype [T, H, P], rotated, channels contiguous.
        expanded: same dtype [L, H, N + V], contiguous: each key's nope part and value, the keys of
            one run after the other.
        k_rope: same dtype [L, P], rotated, shared by all heads; rows may be strided.
        tiles: int32 [n, 4], per tile of at most TILE_ROWS queries of one run: first row of q, rows,
            row of the run's first key, position of the first query in its run's keys. Those with
            the most keys should come first.
        scale: factor of the scores, positive.
        out: same dtype [T, H, V], contiguous; rows of tiles are written, others left.
        config: how the work is cut; a good one by dtype if None.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: scores, softmax and sums in float32; in bfloat16 the weights are rounded to it before
        they meet the values. Within 1e-5 of the reference in float32. Sync: none.
    """
    heads, nope, rope = q_nope.shape[1], q_nope.shape[2], q_rope.shape[2]
    value = out.shape[2]
    if expanded.shape[1:] != (heads, nope + value) or k_rope.shape != (len(expanded), rope):
        raise ValueError(
            f"expanded is {tuple(expanded.shape)}, k_rope {tuple(k_rope.shape)}; queries of "
            f"{heads} heads, {nope} + {rope}, values {value} wide."
        )
    if any(x.dtype != q_nope.dtype for x in (q_rope, expanded, k_rope, out)):
        raise ValueError("q_nope, q_rope, expanded, k_rope and out differ in dtype.")
    if not (expanded.is_contiguous() and out.is_contiguous() and tiles.is_contiguous()):
        raise ValueError("expanded, out and tiles must be contiguous.")
    if any(x.stride(-1) != 1 for x in (q_nope, q_rope, k_rope)):
        raise ValueError("channels of q_nope, q_rope and k_rope must be contiguous.")
    if not len(tiles):
        return
    c = config or (_FLOAT32 if q_nope.dtype == torch.float32 else _BF16)
    split = TILE_ROWS // c.block_m
    # All tiles of one head before the next head's: they share keys and values, which then stay in
    # the cache.
    _prefill_kernel[(len(tiles) * split, heads)](
        q_nope, q_rope, expanded, k_rope, tiles, out,
        q_nope.stride(0), q_nope.stride(1), q_rope.stride(0), q_rope.stride(1),
        expanded.stride(0), k_rope.stride(0), scale / math.log(2),
        HEADS=heads, NOPE=nope, ROPE=rope, VALUE=value, SPLIT=split,
        BLOCK_M=c.block_m, BLOCK_N=c.block_n,
        BLOCK_NOPE=max(triton.next_power_of_2(nope), 16),
        BLOCK_ROPE=max(triton.next_power_of_2(rope), 16),
        BLOCK_VALUE=max(triton.next_power_of_2(value), 16),
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
