"""Lightning attention for a few tokens of each sequence, drafts among them, on the GPU.

Two kernels, as for single tokens. One takes a sequence, one head and some of the value columns: q/k
norm, rotation, outputs of all tokens from one reading of state and tail, the fold, the values'
tail. The other norms and gates the outputs, and moves the keys' tail, which no program of the
first may write while others read it.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.lightning_attn.segments import SEQUENCE_WIDTH, SegmentTables
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

__all__ = ["MOST_VERIFIED", "MOST_VERIFIED_SEQUENCES", "lightning_verify_triton"]

# Query tokens of a sequence that one program takes, and sequences up to which this is faster than
# the kernels for prompts (docs/gpu-notes-attention.md).
MOST_VERIFIED, MOST_VERIFIED_SEQUENCES = 8, 2

_SEQUENCE_WIDTH = tl.constexpr(SEQUENCE_WIDTH)


@triton.jit
def _dot(a, b, total):
    """total + a b of float32 on the tensor cores, in three parts: as good as float32."""
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def _normed_and_rotated_rows(
    fused_ptr, norm_ptr, cos_ptr, sin_ptr, row, live, fused_stride, angle_stride, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr, SILU: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One head's q or k of some tokens [T, D]; fused_ptr is where the first token's begins."""
    channel = tl.arange(0, BLOCK_D)
    inside, turns = (channel < DIM)[None, :], (channel < 2 * HALF)[None, :]
    partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
    angle = tl.where(channel < HALF, channel, channel - HALF)[None, :]
    live = live[:, None]
    at = fused_ptr + row[:, None] * fused_stride
    x = tl.load(at + channel[None, :], mask=live & inside, other=0.0).to(tl.float32)
    other = tl.load(at + partner[None, :], mask=live & inside & turns, other=0.0).to(tl.float32)
    if SILU:
        x, other = x * tl.sigmoid(x), other * tl.sigmoid(other)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
        x *= scale * tl.load(norm_ptr + channel[None, :], mask=inside, other=0.0)
        other *= scale * tl.load(norm_ptr + partner[None, :], mask=inside & turns, other=0.0)
    at = row[:, None] * angle_stride + angle
    cos = tl.load(cos_ptr + at, mask=live & turns, other=1.0)
    sin = tl.load(sin_ptr + at, mask=live & turns, other=0.0)
    return x * cos + other * tl.where((channel < HALF)[None, :], -sin, sin)


@triton.jit
def _keep_rows(old, new, at, place, fold, num_tail, num_rows, inside, DIM: tl.constexpr):
    """Write what follows the fold to the tail that begins at `at`: old tokens, then new ones."""
    tl.debug_barrier()  # all is read before any of it is written over
    j = tl.arange(0, old.shape[0])
    moves = (j < num_tail) & (j >= fold) & (fold > 0)
    tl.store(at + (j - fold)[:, None] * DIM, old, mask=moves[:, None] & inside)
    kept = (place >= fold) & (place < num_tail + num_rows)
    tl.store(at + (place - fold)[:, None] * DIM, new, mask=kept[:, None] & inside)


@triton.jit
def _verify_kernel(
    fused_ptr, norm_ptr, cos_ptr, sin_ptr, sequence_ptr, rate_ptr, states_ptr, tail_k_ptr,
    tail_v_ptr, out_ptr, fused_stride, angle_stride, tail, eps, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    SILU: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_TAIL: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    head = tl.program_id(1)
    i, j = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_TAIL)
    channel = tl.arange(0, BLOCK_D)
    column = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside, shown = channel < DIM, (column < DIM)[None, :]
    wait_for_previous(PDL)
    line = sequence_ptr + tl.program_id(0) * _SEQUENCE_WIDTH
    slot = tl.load(line).to(tl.int64) * HEADS + head
    num_tail, num_rows = tl.load(line + 1), tl.load(line + 8)
    fold = num_tail + tl.load(line + 7)
    rate = tl.load(rate_ptr + head)
    state_at = states_ptr + (slot * DIM + channel)[:, None] * DIM + column[None, :]
    state = tl.load(state_at, mask=inside[:, None] & shown, other=0.0)
    is_old = (j < num_tail)[:, None]
    key_at = tail_k_ptr + (slot * tail + j)[:, None] * DIM + channel[None, :]
    keys = tl.load(key_at, mask=is_old & inside[None, :], other=0.0)
    value_at = tail_v_ptr + slot * tail * DIM + column[None, :]
    values = tl.load(value_at + j[:, None] * DIM, mask=is_old & shown, other=0.0)
    live = i < num_rows
    row = (tl.load(line + 6) + tl.where(live, i, 0)).to(tl.int64)
    at = fused_ptr + head * DIM
    q = _normed_and_rotated_rows(
        at, norm_ptr, cos_ptr, sin_ptr, row, live, fused_stride, angle_stride, eps,
        DIM, HALF, HAS_NORM, SILU, BLOCK_D,
    )  # fmt: skip
    at += 2 * HEADS * DIM
    v = tl.load(
        at + row[:, None] * fused_stride + column[None, :], mask=live[:, None] & shown, other=0.0
    ).to(tl.float32)
    if SILU:
        v *= tl.sigmoid(v)
    # Places past the anchor: 0 .. num_tail - 1 are old, the tokens of this step follow.
    place = num_tail + i
    out = _dot(q * tl.exp2(-rate * (place + 1))[:, None], state, tl.zeros_like(v))
    decay = tl.exp2(-rate * tl.maximum(place[:, None] - j[None, :], 0))
    scores = _dot(q, tl.trans(keys), tl.zeros([BLOCK_Q, BLOCK_TAIL], tl.float32))
    out = _dot(scores * decay, values, out)
    k = _normed_and_rotated_rows(
        fused_ptr + (HEADS + head) * DIM, norm_ptr + DIM, cos_ptr, sin_ptr, row, live,
        fused_stride, angle_stride, eps, DIM, HALF, HAS_NORM, SILU, BLOCK_D,
    )  # fmt: skip
    gap = i[:, None] - i[None, :]
    decay = tl.where(gap >= 0, tl.exp2(-rate * tl.maximum(gap, 0)), 0.0)
    scores = _dot(q, tl.trans(k), tl.zeros([BLOCK_Q, BLOCK_Q], tl.float32))
    out = _dot(scores * decay, v, out)
    out_at = out_ptr + (row * HEADS + head)[:, None] * DIM + column[None, :]
    tl.store(out_at, out * scale, mask=live[:, None] & shown)
    if fold > 0:
        # Read again, and transposed: kept in registers for a step in ANCHOR, it would cost each.
        folded_at = states_ptr + (slot * DIM + channel)[None, :] * DIM + column[:, None]
        whole = inside[None, :] & (column < DIM)[:, None]
        folded = tl.load(folded_at, mask=whole, other=0.0) * tl.exp2(-rate * fold)
        weight = tl.where(j < fold, tl.exp2(-rate * tl.maximum(fold - 1 - j, 0)), 0.0)
        folded = _dot(tl.trans(values * weight[:, None]), keys, folded)
        weight = tl.where(place < fold, tl.exp2(-rate * tl.maximum(fold - 1 - place, 0)), 0.0)
        folded = _dot(tl.trans(v * weight[:, None]), k, folded)
        tl.store(folded_at, folded, mask=whole)
    _keep_rows(values, v, value_at, place, fold, num_tail, num_rows, shown, DIM)


@triton.jit
def _finish_kernel(
    fused_ptr, norm_ptr, cos_ptr, sin_ptr, sequence_ptr, tail_k_ptr, x_ptr, weight_ptr, out_ptr,
    fused_stride, angle_stride, tail, num_normed, group_width, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    SILU: tl.constexpr, GROUPS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Group norm and gate of one row and group, or the keys' tail of one sequence and head."""
    start_next(PDL)
    program = tl.program_id(0)
    wait_for_previous(PDL)
    if program < num_normed:
        row, group = (program // GROUPS).to(tl.int64), program % GROUPS
        place = tl.arange(0, BLOCK_GROUP)
        inside = place < group_width
        column = group * group_width + place
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * HEADS * DIM + column, mask=inside, other=0.0)
        gate_at = fused_ptr + row * fused_stride + 3 * HEADS * DIM + column
        gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, 0) / group_width + eps) * weight * tl.sigmoid(gate)
        out_at = out_ptr + row * HEADS * DIM + column
        tl.store(out_at, x.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        head = (program - num_normed) % HEADS
        line = sequence_ptr + (program - num_normed) // HEADS * _SEQUENCE_WIDTH
        slot = tl.load(line).to(tl.int64) * HEADS + head
        num_tail, num_rows = tl.load(line + 1), tl.load(line + 8)
        fold = num_tail + tl.load(line + 7)
        i, j = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_TAIL)
        channel = tl.arange(0, BLOCK_D)[None, :]
        live = i < num_rows
        token = (tl.load(line + 6) + tl.where(live, i, 0)).to(tl.int64)
        k = _normed_and_rotated_rows(
            fused_ptr + (HEADS + head) * DIM, norm_ptr + DIM, cos_ptr, sin_ptr, token, live,
            fused_stride, angle_stride, eps, DIM, HALF, HAS_NORM, SILU, BLOCK_D,
        )  # fmt: skip
        key_at = tail_k_ptr + slot * tail * DIM + channel
        moves = (j < num_tail) & (j >= fold) & (fold > 0)
        keys = tl.load(key_at + j[:, None] * DIM, mask=moves[:, None] & (channel < DIM), other=0.0)
        _keep_rows(keys, k, key_at, num_tail + i, fold, num_tail, num_rows, channel < DIM, DIM)


def lightning_verify_triton(
    fused: Tensor,
    w_qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    log2_rate: Tensor,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    segments: SegmentTables,
    w_g_norm: Tensor,
    *,
    num_groups: int,
    eps: float,
    silu: bool = False,
) -> Tensor:
    """A few tokens per sequence from their projections to the gated output; advances the memory.

    Args:
        fused: float [T, 4 H d], contiguous rows: q, k, v and gate of all heads.
        w_qk_norm: float32 [2, 1, d], q's and k's norm weights, or None for no norm.
        cos, sin: float32 [T, 1, P/2], of each token's position.
        log2_rate: float32 [H], -log2 of the decay per token.
        states: float32 [slots, H, d, d], contiguous; updated in place at the anchors crossed.
        tail_k, tail_v: float32 [slots, H, tail, d], contiguous; updated in place. What a step's
            tail does not begin with again, unaccepted drafts, is written over.
        segments: layout of the batch, T rows, at most MOST_VERIFIED of each sequence.
        w_g_norm: float [H d], the group norm's weight.
        num_groups: of the group norm.
        silu: apply SiLU to q, k and v first.

    Returns:
        [T, H d] in fused's dtype.

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: float32 throughout, rounded once; within 2e-5 of reference.py relative to the largest
        output before the norm. Sync: none, graph-safe for one layout.
    """
    (rows, width), heads, dim = fused.shape, states.shape[1], states.shape[2]
    if width < 4 * heads * dim or (rows and fused.stride(1) != 1) or rows != segments.num_rows:
        raise ValueError(
            f"fused is {tuple(fused.shape)}; {4 * heads * dim} columns and "
            f"{segments.num_rows} contiguous rows are needed."
        )
    if segments.longest > MOST_VERIFIED:
        raise ValueError(f"a sequence has {segments.longest} tokens, more than {MOST_VERIFIED}.")
    memory = (states, tail_k, tail_v)
    if any(x.dtype != torch.float32 or not x.is_contiguous() for x in memory):
        raise ValueError("states and tails must be contiguous and float32.")
    if cos.stride(-1) != 1 or cos.stride() != sin.stride() or heads * dim % num_groups:
        raise ValueError(
            f"cos and sin have strides {cos.stride()} and {sin.stride()}, "
            f"{heads * dim} channels make {num_groups} groups."
        )
    out = torch.empty(rows, heads * dim, dtype=torch.float32, device=fused.device)
    gated = torch.empty(rows, heads * dim, dtype=fused.dtype, device=fused.device)
    if not rows:
        return gated
    tail = tail_k.shape[2]
    block_v = max(min(triton.next_power_of_2(dim), 32), 16)
    group_width = heads * dim // num_groups
    sources = fused, cos if w_qk_norm is None else w_qk_norm, cos, sin, segments.sequences
    shape = {
        "HEADS": heads, "DIM": dim, "HALF": cos.shape[-1], "HAS_NORM": w_qk_norm is not None,
        "SILU": silu, "BLOCK_Q": 16, "BLOCK_TAIL": max(triton.next_power_of_2(tail), 16),
        "BLOCK_D": max(triton.next_power_of_2(dim), 16), **launch_options(fused),
    }  # fmt: skip
    _verify_kernel[(segments.num_sequences, heads, triton.cdiv(dim, block_v))](
        *sources, log2_rate, states, tail_k, tail_v, out, fused.stride(0), cos.stride(0), tail,
        eps, dim**-0.5, BLOCK_V=block_v, num_warps=8, **shape,
    )  # fmt: skip
    num_normed = rows * num_groups
    _finish_kernel[(num_normed + segments.num_sequences * heads,)](
        *sources, tail_k, out, w_g_norm, gated, fused.stride(0), cos.stride(0), tail, num_normed,
        group_width, eps, GROUPS=num_groups, BLOCK_GROUP=triton.next_power_of_2(group_width),
        **shape,
    )  # fmt: skip
    return gated
