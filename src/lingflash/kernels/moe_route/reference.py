"""The choice of experts as it is defined, in float32.

Scores are sigmoid(x W^T). The choice is made on score + bias: of the groups of consecutive
experts the `topk_groups` with the largest sum of their two best stay, the others count as -inf
(not 0: a biased score can be negative). Weights are the scores without bias, normalised if
asked, times the factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How a router chooses from its scores.

    Args:
        num_groups: groups of E / num_groups consecutive experts.
        topk_groups: groups that stay.
        topk: experts per token.
        norm_topk_prob: divide the weights by their sum + 1e-20.
        scaling_factor: multiplies the weights.
    """

    num_groups: int
    topk_groups: int
    topk: int
    norm_topk_prob: bool
    scaling_factor: float


def route_tokens_reference(
    x: Tensor, w_gate: Tensor, expert_bias: Tensor | None, rule: RoutingRule
) -> tuple[Tensor, Tensor]:
    """See route_tokens."""
    scores = F.linear(x.float(), w_gate).sigmoid()
    biased = scores if expert_bias is None else scores + expert_bias
    if rule.num_groups > rule.topk_groups:
        grouped = biased.view(x.shape[0], rule.num_groups, -1)
        best_of_group = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        keep = best_of_group.topk(rule.topk_groups, -1, sorted=False).indices
        dropped = torch.ones_like(best_of_group, dtype=torch.bool).scatter_(1, keep, False)
        biased = grouped.masked_fill(dropped[..., None], float("-inf")).view_as(scores)
    topk_ids = biased.topk(rule.topk, -1).indices
    weights = scores.gather(1, topk_ids)
    if rule.norm_topk_prob:
        weights = weights.div_(weights.sum(-1, keepdim=True).add_(1e-20))
    return topk_ids, weights.mul_(rule.scaling_factor)
