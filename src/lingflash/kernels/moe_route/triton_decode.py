"""The router for few tokens on the GPU: its float32 product in parts, then the choice."""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.moe_route.triton_kernel import choose_for_token, choose_kernel
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

__all__ = ["ROUTER_PARTS", "route_decode"]

# The product's columns are cut into this many parts, which are summed where the choice is made.
ROUTER_PARTS = 8


@triton.jit
def _route_one_kernel(
    x_ptr, w_ptr, parts_ptr, counter_ptr, bias_ptr, ids_ptr, weights_ptr, factor, width,
    EXPERTS: tl.constexpr, PART_WIDTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_W: tl.constexpr,
    NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, TOPK_GROUPS: tl.constexpr,
    TOPK: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token: each program a few experts and columns; the last one to end makes the choice."""
    start_next(PDL)
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    part = tl.program_id(1)
    k = part * PART_WIDTH + tl.arange(0, BLOCK_W)
    end = tl.minimum((part + 1) * PART_WIDTH, width)
    is_expert = expert < EXPERTS
    w_at = w_ptr + expert[:, None] * width + k[None, :]
    w = tl.load(w_at, mask=is_expert[:, None] & (k < end)[None, :], other=0.0)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + k, mask=k < end, other=0.0).to(tl.float32)
    tl.store(parts_ptr + part * EXPERTS + expert, tl.sum(w * x[None, :], 1), mask=is_expert)
    # What all threads of this program stored is seen by whoever sees the count after it.
    tl.debug_barrier()
    programs = tl.num_programs(0) * tl.num_programs(1)
    if tl.atomic_add(counter_ptr, 1) == programs - 1:
        tl.store(counter_ptr, 0)
        # Past the first cache, which may hold what was there before.
        choose_for_token(
            0, parts_ptr, bias_ptr, ids_ptr, weights_ptr, factor, NUM_GROUPS, GROUP_SIZE,
            TOPK_GROUPS, TOPK, PARTS, HAS_BIAS, NORMALISE, BLOCK_G, BLOCK_S, BLOCK_K, ".cg",
        )  # fmt: skip


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


@cache
def _counter(device: torch.device) -> Tensor:
    """Counts programs that ended; the last one leaves it at 0."""
    return torch.zeros(1, dtype=torch.int32, device=device)


def route_decode(
    x: Tensor,
    w_gate: Tensor,
    expert_bias: Tensor | None,
    parts: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    num_groups: int,
    topk_groups: int,
    topk: int,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> None:
    """`route_tokens` in two launches, for one token in one.

    Args:
        x: float [T, D], contiguous rows.
        w_gate: float32 [E, D], contiguous.
        expert_bias: float32 [E] or None.
        parts: float32 [T, ROUTER_PARTS, E], scratch.
        topk_ids: int32 [T, topk], written.
        topk_weights: float32 [T, topk], written.
        num_groups, topk_groups, topk, norm_topk_prob, scaling_factor: as in `route_tokens`.

    Numerics: float32. Sync: none, graph-safe.
    """
    num_tokens, width = x.shape
    num_experts = w_gate.shape[0]
    if not num_tokens:
        return
    part_width = triton.cdiv(triton.cdiv(width, ROUTER_PARTS), 16) * 16
    size = num_experts // num_groups
    bias = parts if expert_bias is None else expert_bias
    choice = {
        "NUM_GROUPS": num_groups, "GROUP_SIZE": size, "TOPK_GROUPS": topk_groups, "TOPK": topk,
        "PARTS": ROUTER_PARTS, "HAS_BIAS": expert_bias is not None, "NORMALISE": norm_topk_prob,
        "BLOCK_G": triton.next_power_of_2(num_groups), "BLOCK_S": triton.next_power_of_2(size),
        "BLOCK_K": triton.next_power_of_2(topk),
    } | launch_options(x)  # fmt: skip
    if num_tokens == 1:
        _route_one_kernel[(triton.cdiv(num_experts, 4), ROUTER_PARTS)](
            x, w_gate, parts, _counter(x.device), bias, topk_ids, topk_weights, scaling_factor,
            width, EXPERTS=num_experts, PART_WIDTH=part_width, BLOCK_E=4,
            BLOCK_W=triton.next_power_of_2(part_width), num_warps=4, **choice,
        )  # fmt: skip
        return
    tiles = triton.cdiv(num_experts, 16), ROUTER_PARTS, triton.cdiv(num_tokens, 16)
    _logits_kernel[tiles](
        x, w_gate, parts, num_tokens, width, x.stride(0), EXPERTS=num_experts,
        PART_WIDTH=part_width, PARTS=ROUTER_PARTS, BLOCK_E=16, BLOCK_M=16, num_warps=4,
        **launch_options(x),
    )  # fmt: skip
    choose_kernel[(num_tokens,)](
        parts, bias, topk_ids, topk_weights, scaling_factor, num_warps=1, **choice
    )
