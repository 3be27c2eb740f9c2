"""The router for one token on the GPU: the norm before it and its product in one launch, then the
choice. The experts' input, the normed row, comes out of the same launch."""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.moe_route import RoutingRule
from lingflash.kernels.moe_route.triton_choose import choose
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

_BLOCK_E = 2


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
    rule: RoutingRule,
) -> None:
    """RMS norm of one row, and `route_tokens` of it, in two launches.

    Args:
        residual: any float dtype [1, D], contiguous.
        w_norm: float [D].
        w_gate: float32 [E, D], contiguous.
        expert_bias: float32 [E] or None.
        logits: float32 [1, E], written.
        x: any float dtype [1, D], the normed row, written.
        ordered: a float tensor shaped like x, written, and int32 [D]: where each column goes in it.
        topk_ids: int32 [1, topk], written.
        topk_weights: float32 [1, topk], written.

    Numerics: float32; the router's input is not rounded, x is, once. Sync: none, graph-safe.
    """
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
    choose(logits, expert_bias, topk_ids, topk_weights, rule)
