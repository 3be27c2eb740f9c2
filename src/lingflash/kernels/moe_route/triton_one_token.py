"""The router for one token on the GPU, in two launches.

The first norms the row, which is the experts' input too, and multiplies it; the second chooses, and
since that keeps one warp busy and the memory idle, a shared expert's gate and up go with it.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.moe_gemm.triton_decode import (
    DecodeExperts,
    OneTokenTiles,
    one_token_options,
)
from lingflash.kernels.moe_gemm.triton_one_token import gate_up_columns
from lingflash.kernels.moe_route.triton_kernel import choice_options, choose, choose_token
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

__all__ = ["norm_and_route_one"]

# Experts of a program of the first launch.
_BLOCK_E = 2
# One warp each, as the choice is made by one.
_SHARED_TILES = OneTokenTiles(1, 1)


@triton.jit
def _normed_logits_kernel(
    residual_ptr, norm_ptr, w_ptr, logits_ptr, x_ptr, ordered_ptr, order_ptr, eps,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, ORDERED: tl.constexpr, SHARE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_W: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    is_expert = expert < EXPERTS
    k = tl.arange(0, BLOCK_W)
    inside = k < WIDTH
    w_at = w_ptr + expert[:, None] * WIDTH + k[None, :]
    w = tl.load(w_at, mask=is_expert[:, None] & inside[None, :], other=0.0)
    norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    # Each program writes its share of the normed row.
    column = tl.program_id(0) * SHARE + tl.arange(0, BLOCK_S)
    own = (tl.arange(0, BLOCK_S) < SHARE) & (column < WIDTH)
    own_norm = tl.load(norm_ptr + column, mask=own, other=0.0).to(tl.float32)
    if ORDERED:
        place = tl.load(order_ptr + column, mask=own, other=0)
    wait_for_previous(PDL)
    x = tl.load(residual_ptr + k, mask=inside, other=0.0).to(tl.float32)
    own_x = tl.load(residual_ptr + column, mask=own, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    logits = tl.sum(w * (x * norm)[None, :], 1) * factor
    tl.store(logits_ptr + expert, logits, mask=is_expert)
    out = own_x * factor * own_norm
    tl.store(x_ptr + column, out.to(x_ptr.dtype.element_ty), mask=own)
    if ORDERED:
        tl.store(ordered_ptr + place, out.to(ordered_ptr.dtype.element_ty), mask=own)


@triton.jit
def _choose_and_share_kernel(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, factor, x_ptr, w_ptr, scale_ptr, act_ptr,
    scale_stride,
    NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, TOPK_GROUPS: tl.constexpr,
    TOPK: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, INT4: tl.constexpr, SCALES: tl.constexpr,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    if tl.program_id(0) == 0:
        wait_for_previous(PDL)
        choose_token(
            logits_ptr, bias_ptr, ids_ptr, weights_ptr, factor, 0, NUM_GROUPS, GROUP_SIZE,
            TOPK_GROUPS, TOPK, 1, HAS_BIAS, NORMALISE, BLOCK_G, BLOCK_S, BLOCK_K,
        )  # fmt: skip
    else:
        gate_up_columns(
            x_ptr, w_ptr, scale_ptr, act_ptr, tl.program_id(0) - 1, scale_stride, INT4, SCALES,
            GROUP, False, WIDTH, HIDDEN, BLOCK_N, CHUNKS, PDL,
        )  # fmt: skip


def norm_and_route_one(
    residual: Tensor,
    w_norm: Tensor,
    eps: float,
    w_gate: Tensor,
    expert_bias: Tensor | None,
    logits: Tensor,
    x: Tensor,
    ordered: tuple[Tensor, Tensor] | None,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    shared: DecodeExperts | None = None,
    shared_act: Tensor | None = None,
    num_groups: int,
    topk_groups: int,
    topk: int,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> None:
    """RMS norm of one row, and `route_tokens` of it, in two launches.

    Args:
        residual: any float dtype [1, D], contiguous.
        w_norm: float [D].
        eps: added to the mean square.
        w_gate: float32 [E, D], contiguous.
        expert_bias: float32 [E] or None.
        logits: float32 [1, E], written.
        x: any float dtype [1, D], the normed row, written.
        ordered: a float tensor shaped like x, written, and int32 [D]: where each column goes in it.
        topk_ids: int32 [1, topk], written.
        topk_weights: float32 [1, topk], written.
        shared: [1, 2I, D], bfloat16 or FP8: gate and up of an expert that every token takes.
        shared_act: float32 [I], its place in what gate_up_decode fills; written.
        num_groups, topk_groups, topk, norm_topk_prob, scaling_factor: as in `route_tokens`.

    Raises:
        ValueError: a shared expert in INT4, or one without a place for its activations.

    Numerics: float32; the router's input is not rounded, x is, once. Sync: none, graph-safe.
    """
    if shared is not None and (shared.is_int4 or shared_act is None):
        raise ValueError("a shared expert is bfloat16 or FP8, and shared_act goes with it.")
    num_experts, width = w_gate.shape
    programs = triton.cdiv(num_experts, _BLOCK_E)
    share = triton.cdiv(width, programs)
    other, order = (x, x) if ordered is None else ordered
    _normed_logits_kernel[(programs,)](
        residual, w_norm, w_gate, logits, x, other, order, eps, EXPERTS=num_experts, WIDTH=width,
        ORDERED=ordered is not None, SHARE=share, BLOCK_S=triton.next_power_of_2(share),
        BLOCK_E=_BLOCK_E, BLOCK_W=triton.next_power_of_2(width), num_warps=8,
        **launch_options(residual),
    )  # fmt: skip
    if shared is None or shared_act is None:
        choose(
            logits, expert_bias, topk_ids, topk_weights, num_groups=num_groups,
            topk_groups=topk_groups, topk=topk, norm_topk_prob=norm_topk_prob,
            scaling_factor=scaling_factor,
        )  # fmt: skip
        return
    options = one_token_options(shared, _SHARED_TILES, width)
    options |= choice_options(logits, expert_bias, num_groups, topk_groups, topk, norm_topk_prob)
    inner = shared_act.shape[0]
    _choose_and_share_kernel[(1 + triton.cdiv(inner, _SHARED_TILES.block_n),)](
        logits, logits if expert_bias is None else expert_bias, topk_ids, topk_weights,
        scaling_factor, x, shared.values, shared.scales(), shared_act, shared.scales().stride(1),
        WIDTH=inner, HIDDEN=width, **options, **launch_options(residual),
    )  # fmt: skip
