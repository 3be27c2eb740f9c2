"""From the projection's output to q, k and v of lightning attention in one pass over the tokens."""

# Triton declares constexpr parameters as such, which plain numbers are not, and knows num_warps.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Heads of one program: as many rows of a tile.
_BLOCK_HEADS = 16


@triton.jit
def _prepare_kernel(
    fused_ptr, norm_ptr, cos_ptr, sin_ptr, out_ptr,
    fused_stride, angle_stride, out_stride, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    HAS_NORM: tl.constexpr, SILU: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Some heads of a token; rows 0 .. H-1 are q's, to 2H-1 k's, the rest (only for SiLU) v's."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    half, rest = tl.arange(0, BLOCK_HALF), 2 * HALF + tl.arange(0, BLOCK_REST)
    turns, stays = half < HALF, rest < DIM
    live = (head < (3 * HEADS if SILU else 2 * HEADS))[:, None]
    is_value = (head >= 2 * HEADS)[:, None]
    at = fused_ptr + token * fused_stride + head[:, None] * DIM
    x = tl.load(at + half[None, :], mask=live & turns[None, :], other=0.0).to(tl.float32)
    y = tl.load(at + HALF + half[None, :], mask=live & turns[None, :], other=0.0).to(tl.float32)
    z = tl.load(at + rest[None, :], mask=live & stays[None, :], other=0.0).to(tl.float32)
    if SILU:
        x, y, z = x * tl.sigmoid(x), y * tl.sigmoid(y), z * tl.sigmoid(z)
    if HAS_NORM:
        squares = tl.sum(x * x, 1) + tl.sum(y * y, 1) + tl.sum(z * z, 1)
        scale = tl.where(is_value, 1.0, tl.rsqrt(squares / DIM + eps)[:, None])
        is_normed = live & (head < 2 * HEADS)[:, None]
        weight = norm_ptr + tl.where(head < HEADS, 0, DIM)[:, None]
        x *= scale * tl.load(weight + half[None, :], mask=is_normed & turns[None, :], other=1.0)
        y *= scale * tl.load(
            weight + HALF + half[None, :], mask=is_normed & turns[None, :], other=1.0
        )
        z *= scale * tl.load(weight + rest[None, :], mask=is_normed & stays[None, :], other=1.0)
    cos = tl.load(cos_ptr + token * angle_stride + half, mask=turns, other=1.0)[None, :]
    sin = tl.load(sin_ptr + token * angle_stride + half, mask=turns, other=0.0)[None, :]
    if SILU:
        cos, sin = tl.where(is_value, 1.0, cos), tl.where(is_value, 0.0, sin)
    dtype = out_ptr.dtype.element_ty
    at = out_ptr + token * out_stride + head[:, None] * DIM
    tl.store(at + half[None, :], (x * cos - y * sin).to(dtype), mask=live & turns[None, :])
    tl.store(at + HALF + half[None, :], (y * cos + x * sin).to(dtype), mask=live & turns[None, :])
    tl.store(at + rest[None, :], z.to(dtype), mask=live & stays[None, :])


def prepare_qkv_triton(
    fused: Tensor,
    w_qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    head_dim: int,
    eps: float,
    silu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of q and k per head, then the rotation of their first P channels, half-split.

    Args:
        fused: float [T, >= 3 H d], contiguous rows: q, k and v of all heads.
        w_qk_norm: float32 [2, 1, d], q's and k's norm weights, contiguous, or None for no norm.
        cos, sin: float32 [T, 1, P/2], of each token's position; P <= d.
        num_heads: H.
        head_dim: d.
        silu: apply SiLU to q, k and v first.

    Returns:
        q, k, v: [T, H, d] in fused's dtype, rows strided; v is fused's own memory unless silu.

    Raises:
        ValueError: a shape or stride does not fit.

    Numerics: float32, rounded once. Sync: none, graph-safe.
    """
    rows, inner = fused.shape[0], num_heads * head_dim
    if fused.shape[1] < 3 * inner or (rows and fused.stride(1) != 1):
        raise ValueError(f"fused is {tuple(fused.shape)}; {3 * inner} columns are needed.")
    if cos.stride(-1) != 1 or cos.stride() != sin.stride() or 2 * cos.shape[-1] > head_dim:
        raise ValueError(f"cos and sin are {tuple(cos.shape)}, strides {cos.stride()}.")
    num_rows = (3 if silu else 2) * num_heads
    out = torch.empty(rows, num_rows * head_dim, dtype=fused.dtype, device=fused.device)
    half = cos.shape[-1]
    if rows:
        _prepare_kernel[(rows, triton.cdiv(num_rows, _BLOCK_HEADS))](
            fused, cos if w_qk_norm is None else w_qk_norm, cos, sin, out,
            fused.stride(0), cos.stride(0), out.stride(0), eps,
            HEADS=num_heads, DIM=head_dim, HALF=half,
            HAS_NORM=w_qk_norm is not None, SILU=silu, BLOCK_H=_BLOCK_HEADS,
            BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_REST=triton.next_power_of_2(max(head_dim - 2 * half, 1)), num_warps=4,
        )  # fmt: skip
    source = out if silu else fused
    q, k = out[:, :inner], out[:, inner : 2 * inner]
    v = source[:, 2 * inner : 3 * inner]
    return tuple(x.view(rows, num_heads, head_dim) for x in (q, k, v))  # type: ignore[return-value]
