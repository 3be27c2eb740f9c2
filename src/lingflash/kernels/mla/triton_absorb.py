"""What surrounds MLA decoding on the GPU: norms and rotation of latents, W_kvb's two halves."""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_dot import dot
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

_BLOCK_M = 16


@triton.jit
def _rotate_pairs(at, out_at, cos_ptr, sin_ptr, pair, mask):
    """Rotate channels 2j and 2j + 1 of what lies at `at`."""
    even = tl.load(at + 2 * pair, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(at + 2 * pair + 1, mask=mask, other=0.0).to(tl.float32)
    cos, sin = tl.load(cos_ptr + pair, mask=mask), tl.load(sin_ptr + pair, mask=mask)
    dtype = out_at.dtype.element_ty
    tl.store(out_at + 2 * pair, (even * cos - odd * sin).to(dtype), mask=mask)
    tl.store(out_at + 2 * pair + 1, (odd * cos + even * sin).to(dtype), mask=mask)


@triton.jit
def _write_latents_kernel(
    fused_ptr, q_weight_ptr, kv_weight_ptr, cos_ptr, sin_ptr, slot_ptr, q_ptr, latents_ptr,
    fused_stride, angle_stride, eps,
    Q_WIDTH: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, NORM_Q: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    token = tl.program_id(0)
    row = fused_ptr + token * fused_stride
    wait_for_previous(PDL)
    if tl.program_id(1) == 0:
        r, pair = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
        inside = r < RANK
        x = tl.load(row + Q_WIDTH + r, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(kv_weight_ptr + r, mask=inside, other=0.0).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, 0) / RANK + eps) * weight
        out = latents_ptr + tl.load(slot_ptr + token) * (RANK + ROPE)
        tl.store(out + r, x.to(latents_ptr.dtype.element_ty), mask=inside)
        angles = token * angle_stride
        _rotate_pairs(
            row + Q_WIDTH + RANK, out + RANK, cos_ptr + angles, sin_ptr + angles, pair,
            pair < ROPE // 2,
        )  # fmt: skip
    elif NORM_Q:
        c = tl.arange(0, BLOCK_Q)
        q = tl.load(row + c, mask=c < Q_WIDTH, other=0.0).to(tl.float32)
        q_weight = tl.load(q_weight_ptr + c, mask=c < Q_WIDTH, other=0.0).to(tl.float32)
        q *= tl.rsqrt(tl.sum(q * q, 0) / Q_WIDTH + eps) * q_weight
        tl.store(q_ptr + token * Q_WIDTH + c, q.to(q_ptr.dtype.element_ty), mask=c < Q_WIDTH)


def write_latents(
    fused: Tensor,
    w_q_norm: Tensor | None,
    w_kv_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot_mapping: Tensor,
    q: Tensor,
    latents: Tensor,
    eps: float,
) -> None:
    """Norm the queries' low rank, and norm, rotate and store the latents.

    Args:
        fused: float [T, Q + R + P], contiguous rows: queries' part, latent, rotary key.
        w_q_norm: float [Q]; None leaves q alone.
        w_kv_norm: float [R].
        cos, sin: float32 [T, 1, P/2].
        slot_mapping: int64 [T], place of each token in latents.
        q: float [T, Q], written.
        latents: float [slots, R + P], contiguous; written.

    Numerics: float32. Sync: none, graph-safe.
    """
    num_tokens, rank = fused.shape[0], w_kv_norm.shape[0]
    rope = latents.shape[-1] - rank
    q_width = fused.shape[1] - rank - rope
    if num_tokens:
        _write_latents_kernel[(num_tokens, 2)](
            fused, w_kv_norm if w_q_norm is None else w_q_norm, w_kv_norm, cos, sin, slot_mapping,
            q, latents, fused.stride(0), cos.stride(0), eps, Q_WIDTH=q_width, RANK=rank, ROPE=rope,
            NORM_Q=w_q_norm is not None, BLOCK_Q=triton.next_power_of_2(q_width),
            BLOCK_R=triton.next_power_of_2(rank),
            BLOCK_P=max(triton.next_power_of_2(rope // 2), 2), **launch_options(fused),
        )  # fmt: skip


@triton.jit
def _absorb_kernel(
    q_ptr, w_ptr, cos_ptr, sin_ptr, out_ptr, num_tokens, q_stride, angle_stride,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    head, tile = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = token < num_tokens
    n, r = tl.arange(0, BLOCK_N), tile * BLOCK_R + tl.arange(0, BLOCK_R)
    w_at = w_ptr + (head * (NOPE + VALUE) + n)[:, None] * RANK + r[None, :]
    w = tl.load(w_at, mask=(n < NOPE)[:, None] & (r < RANK)[None, :], other=0.0)
    wait_for_previous(PDL)
    q_row = q_ptr + token * q_stride + head * (NOPE + ROPE)
    q = tl.load(q_row[:, None] + n[None, :], mask=live[:, None] & (n < NOPE)[None, :], other=0.0)
    out = dot(q.to(w.dtype), w, tl.zeros([BLOCK_M, BLOCK_R], tl.float32))
    out_row = out_ptr + (token * HEADS + head) * (RANK + ROPE)
    tl.store(
        out_row[:, None] + r[None, :], out.to(out_ptr.dtype.element_ty),
        mask=live[:, None] & (r < RANK)[None, :],
    )  # fmt: skip
    if tile == 0:
        pair = tl.arange(0, BLOCK_P)[None, :]
        angles = (token * angle_stride)[:, None]
        _rotate_pairs(
            q_row[:, None] + NOPE, out_row[:, None] + RANK, cos_ptr + angles, sin_ptr + angles,
            pair, live[:, None] & (pair < ROPE // 2),
        )  # fmt: skip


def absorb_queries(
    q: Tensor, w_kvb: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, nope: int
) -> Tensor:
    """Fold W_kvb's key half into the queries and rotate the rest.

    Args:
        q: float [T, H (N + P)], contiguous rows.
        w_kvb: bfloat16 or float32 [H, N + V, R], contiguous.
        cos, sin: float32 [T, 1, P/2].
        out: same dtype as w_kvb [T, H, R + P], contiguous; written.
        nope: N.

    Numerics: accumulates in float32. Sync: none, graph-safe.
    """
    num_tokens, (heads, both, rank) = q.shape[0], w_kvb.shape
    rope = out.shape[-1] - rank
    block_r = min(max(triton.next_power_of_2(rank), 16), 128)
    if num_tokens:
        _absorb_kernel[(triton.cdiv(num_tokens, _BLOCK_M), heads, triton.cdiv(rank, block_r))](
            q, w_kvb, cos, sin, out, num_tokens, q.stride(0), cos.stride(0), HEADS=heads,
            NOPE=nope, ROPE=rope, VALUE=both - nope, RANK=rank, BLOCK_M=_BLOCK_M,
            BLOCK_N=max(triton.next_power_of_2(nope), 16), BLOCK_R=block_r,
            BLOCK_P=max(triton.next_power_of_2(rope // 2), 2), **launch_options(q),
        )  # fmt: skip
    return out


@triton.jit
def _unabsorb_kernel(
    mixed_ptr, w_ptr, out_ptr, num_tokens,
    HEADS: tl.constexpr, NOPE: tl.constexpr, VALUE: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_R: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    head, tile = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = token < num_tokens
    v, r = tile * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_R)
    w_row = w_ptr + (head * (NOPE + VALUE) + NOPE + v)[:, None] * RANK
    wait_for_previous(PDL)
    row = mixed_ptr + ((token * HEADS + head) * RANK)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in tl.range(0, RANK, BLOCK_R):
        at = (start + r)[None, :]
        x = tl.load(row + at, mask=live[:, None] & (at < RANK), other=0.0)
        w = tl.load(w_row + at, mask=(v < VALUE)[:, None] & (at < RANK), other=0.0)
        total = dot(x.to(w.dtype), tl.trans(w), total)
    tl.store(
        out_ptr + ((token * HEADS + head) * VALUE)[:, None] + v[None, :],
        total.to(out_ptr.dtype.element_ty), mask=live[:, None] & (v < VALUE)[None, :],
    )  # fmt: skip


def unabsorb_values(mixed: Tensor, w_kvb: Tensor, out: Tensor, *, nope: int) -> Tensor:
    """Apply W_kvb's value half to mixed latents.

    Args:
        mixed: float [T, H, R], contiguous.
        w_kvb: bfloat16 or float32 [H, N + V, R], contiguous.
        out: float [T, H V], contiguous; written.
        nope: N.

    Numerics: accumulates in float32. Sync: none, graph-safe.
    """
    num_tokens, (heads, both, rank) = mixed.shape[0], w_kvb.shape
    value = both - nope
    block_v = min(max(triton.next_power_of_2(value), 16), 64)
    if num_tokens:
        _unabsorb_kernel[(triton.cdiv(num_tokens, _BLOCK_M), heads, triton.cdiv(value, block_v))](
            mixed, w_kvb, out, num_tokens, HEADS=heads, NOPE=nope, VALUE=value, RANK=rank,
            BLOCK_M=_BLOCK_M, BLOCK_V=block_v,
            BLOCK_R=min(max(triton.next_power_of_2(rank), 16), 128), **launch_options(mixed),
        )  # fmt: skip
    return out
