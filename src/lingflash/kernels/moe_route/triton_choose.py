"""The router's choice on the GPU: sigmoid, bias, group limit, top-k and weights in one program."""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.moe_route import RoutingRule
from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous


@triton.jit
def _choose_kernel(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, factor,
    NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, TOPK_GROUPS: tl.constexpr,
    TOPK: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    token = tl.program_id(0)
    wait_for_previous(PDL)
    group, place = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S)
    expert = group[:, None] * GROUP_SIZE + place[None, :]
    inside = (group[:, None] < NUM_GROUPS) & (place[None, :] < GROUP_SIZE)
    row = logits_ptr + token * (PARTS * NUM_GROUPS * GROUP_SIZE)
    logits = tl.zeros([BLOCK_G, BLOCK_S], tl.float32)
    for part in tl.static_range(PARTS):
        at = row + part * (NUM_GROUPS * GROUP_SIZE) + expert
        logits += tl.load(at, mask=inside, other=0.0)
    # Places past a group's size bear the numbers of the next group's first experts.
    score = tl.where(inside, tl.sigmoid(logits), 0.0)
    biased = score
    if HAS_BIAS:
        biased += tl.load(bias_ptr + expert, mask=inside, other=0.0)
    biased = tl.where(inside, biased, float("-inf"))
    if TOPK_GROUPS < NUM_GROUPS:
        best = tl.max(biased, 1)
        value = best
        if GROUP_SIZE > 1:
            first = tl.argmax(biased, 1)
            rest = tl.where(place[None, :] == first[:, None], float("-inf"), biased)
            value += tl.max(rest, 1)
        value = tl.where(group < NUM_GROUPS, value, float("-inf"))
        keep = group < 0
        for _ in tl.static_range(TOPK_GROUPS):
            chosen = tl.argmax(value, 0)
            keep = keep | (group == chosen)
            value = tl.where(group == chosen, float("-inf"), value)
        biased = tl.where(keep[:, None], biased, float("-inf"))
    choice = tl.arange(0, BLOCK_K)
    ids = tl.zeros([BLOCK_K], tl.int64)
    weights = tl.zeros([BLOCK_K], tl.float32)
    # Score and expert as one number, so that each choice is one reduction: a float's bits compare
    # as it does once those of negative ones are turned, and of equal ones the first expert wins.
    bits = biased.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - expert).to(tl.int64)
    # Places past a group's size bear a number of the next group, and must never be found.
    key = tl.where(inside, key, -(1 << 63))
    for i in tl.static_range(TOPK):
        best_key = tl.max(tl.max(key, 1), 0)
        hit = key == best_key
        weight = tl.sum(tl.sum(tl.where(hit, score, 0.0), 1), 0)
        ids = tl.where(choice == i, 0x7FFFFFFF - (best_key & 0x7FFFFFFF), ids)
        weights = tl.where(choice == i, weight, weights)
        key = tl.where(hit, -(1 << 63), key)
    if NORMALISE:
        weights = weights / (tl.sum(weights, 0) + 1e-20)
    weights *= factor
    at = token * TOPK + choice
    tl.store(ids_ptr + at, ids.to(ids_ptr.dtype.element_ty), mask=choice < TOPK)
    tl.store(weights_ptr + at, weights, mask=choice < TOPK)


def choose_experts_triton(
    logits: Tensor,
    expert_bias: Tensor | None,
    rule: RoutingRule,
) -> tuple[Tensor, Tensor]:
    """`route_tokens` from the logits on.

    Args:
        logits: float32 [T, E], contiguous: the gate's product.
        expert_bias: float32 [E] or None.

    Returns:
        topk_ids int64 [T, topk], best biased score first, and topk_weights float32 [T, topk].

    Raises:
        ValueError: logits are not float32 and contiguous, or E is no multiple of num_groups.

    Numerics: float32. Sync: none, graph-safe.
    """
    num_tokens, num_experts = logits.shape
    if logits.dtype != torch.float32 or not logits.is_contiguous() or num_experts % rule.num_groups:
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}; contiguous float32 with a multiple "
            f"of {rule.num_groups} experts is needed."
        )
    ids = torch.empty(num_tokens, rule.topk, dtype=torch.int64, device=logits.device)
    weights = torch.empty(num_tokens, rule.topk, dtype=torch.float32, device=logits.device)
    choose(logits, expert_bias, ids, weights, rule)
    return ids, weights


def choose(
    logits: Tensor,
    expert_bias: Tensor | None,
    topk_ids: Tensor,
    topk_weights: Tensor,
    rule: RoutingRule,
    parts: int = 1,
) -> None:
    """The choice from logits, into given memory.

    Args:
        logits: float32 [T, E], or [T, parts, E] that are to be summed; contiguous.
        expert_bias: float32 [E] or None.
        topk_ids: int32 or int64 [T, topk], written.
        topk_weights: float32 [T, topk], written.
        parts: of the sum that a logit is.

    Numerics: float32. Sync: none, graph-safe.
    """
    groups, topk = rule.num_groups, rule.topk
    num_tokens, size = topk_ids.shape[0], logits.shape[-1] // groups
    if num_tokens:
        _choose_kernel[(num_tokens,)](
            logits, logits if expert_bias is None else expert_bias, topk_ids, topk_weights,
            rule.scaling_factor, NUM_GROUPS=groups, GROUP_SIZE=size, TOPK_GROUPS=rule.topk_groups,
            TOPK=topk, PARTS=parts, HAS_BIAS=expert_bias is not None, NORMALISE=rule.norm_topk_prob,
            BLOCK_G=triton.next_power_of_2(groups), BLOCK_S=triton.next_power_of_2(size),
            BLOCK_K=triton.next_power_of_2(topk), num_warps=1, **launch_options(logits),
        )  # fmt: skip
