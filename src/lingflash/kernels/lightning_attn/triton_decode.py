"""Lightning decoding on the GPU: q/k norm, rotation, tail and state in one program per head.

A program takes one sequence, one head and some of the value columns. It reads the state once and
writes it only when the token completes an anchor distance; the token's own (k, v) stay in
registers, so programs of one head need not wait for each other.
"""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.core.anchors import ANCHOR
from lingflash.kernels.lightning_attn import DecayTables
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous


@triton.jit
def _normed_and_rotated(
    row, norm_ptr, cos_ptr, sin_ptr, channel, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One head's q or k [BLOCK]; the rotation's partner is read again instead of exchanged."""
    inside = channel < DIM
    partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
    turns = channel < 2 * HALF
    x = tl.load(row + channel, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row + partner, mask=inside & turns, other=0.0).to(tl.float32)
    if SILU:
        x, other = x * tl.sigmoid(x), other * tl.sigmoid(other)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
        x *= scale * tl.load(norm_ptr + channel, mask=inside, other=0.0)
        other *= scale * tl.load(norm_ptr + partner, mask=inside & turns, other=0.0)
    angle = tl.where(channel < HALF, channel, channel - HALF)
    cos = tl.load(cos_ptr + angle, mask=turns, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=turns, other=0.0)
    return x * cos + other * tl.where(channel < HALF, -sin, sin)


@triton.jit
def _decode_kernel(
    fused_ptr, norm_ptr, cos_ptr, sin_ptr, decode_ptr, decode_query_ptr, fold_ptr, carry_ptr,
    states_ptr, tail_k_ptr, tail_v_ptr, slot_ptr, offset_ptr, gate_ptr, squares_ptr, out_ptr,
    fused_stride, angle_stride, fold_stride, tail, eps,
    HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, ANCHOR_TOKENS: tl.constexpr,
    HAS_NORM: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    sequence, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK_D)
    column = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    place = tl.arange(0, ANCHOR_TOKENS)
    inside, shown = channel < DIM, column < DIM
    # What this layer kept is of an earlier step, which has ended: steps begin with a launch that
    # waits for everything (the embedding). So it is asked for before the wait.
    slot, offset = tl.load(slot_ptr + sequence), tl.load(offset_ptr + sequence)
    tail_row = (slot * HEADS + head) * tail
    earlier = place < offset
    key_at = tail_k_ptr + (tail_row + place)[:, None] * DIM + channel[None, :]
    value_at = tail_v_ptr + (tail_row + place)[:, None] * DIM + column[None, :]
    keys = tl.load(key_at, mask=earlier[:, None] & inside[None, :], other=0.0)
    values = tl.load(value_at, mask=earlier[:, None] & shown[None, :], other=0.0)
    state_at = states_ptr + ((slot * HEADS + head) * DIM + channel)[:, None] * DIM + column[None, :]
    whole = inside[:, None] & shown[None, :]
    state = tl.load(state_at, mask=whole, other=0.0)
    decay = tl.load(decode_ptr + (offset * HEADS + head) * ANCHOR_TOKENS + place)
    from_state = tl.load(decode_query_ptr + offset * HEADS + head)
    if GATED:
        gate_weight = tl.load(gate_ptr + head * DIM + column, mask=shown, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    row = fused_ptr + sequence * fused_stride + head * DIM
    cos, sin = cos_ptr + sequence * angle_stride, sin_ptr + sequence * angle_stride
    q = _normed_and_rotated(row, norm_ptr, cos, sin, channel, eps, DIM, HALF, HAS_NORM, SILU)
    k = _normed_and_rotated(
        row + HEADS * DIM, norm_ptr + DIM, cos, sin, channel, eps, DIM, HALF, HAS_NORM, SILU
    )
    v = tl.load(row + 2 * HEADS * DIM + column, mask=shown, other=0.0).to(tl.float32)
    if SILU:
        v *= tl.sigmoid(v)
    keys = tl.where((place == offset)[:, None], k[None, :], keys)
    values = tl.where((place == offset)[:, None], v[None, :], values)
    scores = tl.sum(keys * q[None, :], 1) * decay
    out = tl.sum(scores[:, None] * values, 0) + tl.sum((q * from_state)[:, None] * state, 0)
    if GATED:
        piece = (sequence * HEADS + head) * tl.num_programs(2) + tl.program_id(2)
        tl.store(squares_ptr + piece, tl.sum(tl.where(shown, out * out, 0.0), 0))
        gate = tl.load(row + 3 * HEADS * DIM + column, mask=shown, other=0.0).to(tl.float32)
        out *= gate_weight * tl.sigmoid(gate)
    at = out_ptr + (sequence * HEADS + head) * DIM + column
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=shown)
    # Each program writes its own columns; one of them the key.
    at = (tail_row + offset) * DIM
    tl.store(tail_v_ptr + at + column, v, mask=shown)
    tl.store(tail_k_ptr + at + channel, k, mask=inside & (tl.program_id(2) == 0))
    if offset == ANCHOR_TOKENS - 1:
        state *= tl.load(carry_ptr + head)
        # Read again one by one: kept in registers for a step in ANCHOR, they would cost each step.
        for j in range(ANCHOR_TOKENS - 1):
            weight = tl.load(fold_ptr + head * fold_stride + j)
            key = tl.load(tail_k_ptr + (tail_row + j) * DIM + channel, mask=inside, other=0.0)
            value = tl.load(tail_v_ptr + (tail_row + j) * DIM + column, mask=shown, other=0.0)
            state += (key * weight)[:, None] * value[None, :]
        weight = tl.load(fold_ptr + head * fold_stride + ANCHOR_TOKENS - 1)
        state += (k * weight)[:, None] * v[None, :]
        tl.store(state_at, state, mask=whole)


def lightning_decode_triton(
    fused: Tensor,
    w_qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    tables: DecayTables,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    slots: Tensor,
    offsets: Tensor,
    *,
    eps: float,
    silu: bool = False,
) -> Tensor:
    """One token per sequence from its projections to the attention's output; advances the memory.

    Args:
        fused: float [N, >= 3 H d], contiguous rows: q, k and v of all heads.
        w_qk_norm: float32 [2, 1, d], q's and k's norm weights, or None for no norm.
        cos, sin: float32 [N, 1, P/2], of each token's position.
        states: float32 [slots, H, d, d], contiguous; updated in place at full tails.
        tail_k, tail_v: float32 [slots, H, tail, d], contiguous; updated in place.
        slots, offsets: int64 [N], state slot and place in the tail of each token.
        silu: apply SiLU to q, k and v first.

    Returns:
        float32 [N, H d].

    Raises:
        ValueError: a shape, dtype or stride does not fit.

    Numerics: float32; within 2e-5 of reference.py relative to the largest output.
    Sync: none, graph-safe. States, tails, slots and offsets are read before the kernel launched
        just before this one has ended: it must not have written them.
    """
    memory, angles = (states, tail_k, tail_v), (cos, sin)
    out = torch.empty(
        fused.shape[0], states.shape[1] * states.shape[2], dtype=torch.float32, device=fused.device
    )
    _decode(fused, w_qk_norm, angles, tables, memory, slots, offsets, out, eps=eps, silu=silu)
    return out


def gated_lightning_decode_triton(
    fused: Tensor,
    w_qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    tables: DecayTables,
    states: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    slots: Tensor,
    offsets: Tensor,
    *,
    w_gate: Tensor,
    eps: float,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """`lightning_decode_triton` with all of the gated group norm after it but the norm's factor.

    Args:
        fused: float [N, >= 4 H d]: the gate's columns come after q, k and v.
        w_gate: float [H d], the group norm's weight.

    Returns:
        Output times weight times sigmoid(gate), of fused's dtype [N, H d]; and float32 [N, H, P],
        P partial sums of the squares of each head's output, without weight and gate.
    """
    num_seqs, (heads, dim) = fused.shape[0], states.shape[1:3]
    out = torch.empty(num_seqs, heads * dim, dtype=fused.dtype, device=fused.device)
    tiles = triton.cdiv(dim, _cut(num_seqs, dim)[0])
    squares = torch.empty(num_seqs, heads, tiles, dtype=torch.float32, device=fused.device)
    memory, angles, gate = (states, tail_k, tail_v), (cos, sin), (w_gate, squares)
    _decode(fused, w_qk_norm, angles, tables, memory, slots, offsets, out, gate, eps=eps, silu=silu)
    return out, squares


def _cut(num_seqs: int, dim: int) -> tuple[int, int]:
    """Value columns and warps of a program: all columns once sequences fill the device."""
    return min(triton.next_power_of_2(dim), 32 if num_seqs < 32 else 128), 4


def _decode(
    fused: Tensor,
    w_qk_norm: Tensor | None,
    angles: tuple[Tensor, Tensor],
    tables: DecayTables,
    memory: tuple[Tensor, Tensor, Tensor],
    slots: Tensor,
    offsets: Tensor,
    out: Tensor,
    gate: tuple[Tensor, Tensor] | None = None,
    *,
    eps: float,
    silu: bool,
) -> None:
    states, tail_k, tail_v = memory
    num_seqs, heads, dim = fused.shape[0], states.shape[1], states.shape[2]
    columns = (3 if gate is None else 4) * heads * dim
    if fused.shape[1] < columns or fused.stride(1) != 1:
        raise ValueError(f"fused is {tuple(fused.shape)}; {columns} columns are needed.")
    if any(x.dtype != torch.float32 or not x.is_contiguous() for x in memory):
        raise ValueError("states and tails must be contiguous and float32.")
    cos, sin = angles
    if cos.stride(-1) != 1 or cos.stride() != sin.stride():
        raise ValueError(f"cos and sin have strides {cos.stride()} and {sin.stride()}.")
    if not num_seqs:
        return
    w_gate, squares = (out, out) if gate is None else gate
    block_v, warps = _cut(num_seqs, dim)
    _decode_kernel[(num_seqs, heads, triton.cdiv(dim, block_v))](
        fused, cos if w_qk_norm is None else w_qk_norm, cos, sin,
        tables.decode, tables.decode_query, tables.fold[1],
        tables.carry[1], states, tail_k, tail_v, slots, offsets, w_gate, squares, out,
        fused.stride(0), cos.stride(0), tables.fold.stride(1), tail_k.shape[2], eps,
        HEADS=heads, DIM=dim, HALF=cos.shape[-1], ANCHOR_TOKENS=ANCHOR,
        HAS_NORM=w_qk_norm is not None, SILU=silu, GATED=gate is not None,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_V=block_v, num_warps=warps,
        **launch_options(fused),
    )  # fmt: skip
