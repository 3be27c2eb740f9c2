"""The router for few tokens on the GPU: its float32 product in parts, then the choice."""

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

# The product's columns are cut into this many parts, which are summed where the choice is made.
ROUTER_PARTS = 8
# What tensor cores take at least; a part's columns come in as many.
_TILE = 16


@triton.jit
def _logits_kernel(
    x_ptr, w_ptr, parts_ptr, num_tokens, width, x_stride,
    EXPERTS: tl.constexpr, PART_WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    part = tl.program_id(1)
    begin = part * PART_WIDTH
    end = tl.minimum(begin + PART_WIDTH, width)
    is_expert = expert < EXPERTS
    w_row = w_ptr + expert[:, None] * width
    token = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = token < num_tokens
    step = tl.arange(0, 64)
    wait_for_previous(PDL)
    total = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in tl.range(0, PART_WIDTH, 64):
        at = begin + start + step
        x_at = x_ptr + token[:, None] * x_stride + at[None, :]
        rows = tl.load(x_at, mask=live[:, None] & (at < end)[None, :], other=0.0)
        inside = is_expert[:, None] & (at < end)[None, :]
        gate = tl.trans(tl.load(w_row + at[None, :], mask=inside, other=0.0))
        # Activations are exact in TF32, and weights in the three parts of it that are taken.
        total = tl.dot(rows.to(tl.float32), gate, total, input_precision="tf32x3")
    out = parts_ptr + (token[:, None] * PARTS + part) * EXPERTS + expert[None, :]
    tl.store(out, total, mask=live[:, None] & is_expert[None, :])


def _cut(num_tokens: int) -> tuple[int, int, int]:
    """Tokens, experts and warps of a program."""
    return (_TILE, _TILE, 1) if num_tokens <= 64 else (64, 32, 4)


def route_decode(
    x: Tensor,
    w_gate: Tensor,
    expert_bias: Tensor | None,
    parts: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    rule: RoutingRule,
) -> None:
    """`route_tokens` in two launches.

    Args:
        x: float [T, D], contiguous rows.
        w_gate: float32 [E, D], contiguous.
        expert_bias: float32 [E] or None.
        parts: float32 [T, ROUTER_PARTS, E], scratch.
        topk_ids: int32 [T, topk], written.
        topk_weights: float32 [T, topk], written.

    Numerics: float32. Sync: none, graph-safe.
    """
    num_tokens, width = x.shape
    num_experts = w_gate.shape[0]
    if not num_tokens:
        return
    part_width = triton.cdiv(triton.cdiv(width, ROUTER_PARTS), _TILE) * _TILE
    block_m, block_e, warps = _cut(num_tokens)
    tiles = triton.cdiv(num_experts, block_e), ROUTER_PARTS, triton.cdiv(num_tokens, block_m)
    _logits_kernel[tiles](
        x, w_gate, parts, num_tokens, width, x.stride(0), EXPERTS=num_experts,
        PART_WIDTH=part_width, PARTS=ROUTER_PARTS, BLOCK_E=block_e, BLOCK_M=block_m,
        num_warps=warps,
        **launch_options(x),
    )  # fmt: skip
    choose(parts, expert_bias, topk_ids, topk_weights, rule, ROUTER_PARTS)
