"""Expert choice: sigmoid scores, a bias for the choice alone, a limit on groups, the top k.

tokens                      kernel
any, on a CPU               reference.py, which is the definition
any, on a GPU               triton_logits.py (BF16 rows), triton_choose.py
up to 256, a decode step    triton_few_tokens.py, triton_choose.py
one, a decode step          triton_one_token.py, triton_choose.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.moe_route.reference import RoutingRule, route_tokens_reference

__all__ = ["RoutingRule", "route_tokens", "route_tokens_reference"]


def route_tokens(
    x: Tensor,
    w_gate: Tensor,
    expert_bias: Tensor | None,
    rule: RoutingRule,
) -> tuple[Tensor, Tensor]:
    """Choose some experts for each token, by the rule of reference.py.

    Args:
        x: any float dtype [T, D].
        w_gate: float32 [E, D].
        expert_bias: float32 [E] or None.

    Returns:
        topk_ids int64 [T, topk], best biased score first, and topk_weights float32 [T, topk].

    Numerics: float32 throughout; near ties flip in anything coarser. Sync: none, graph-safe.
    """
    if x.is_cuda:
        from lingflash.kernels.moe_route.triton_choose import choose_experts_triton
        from lingflash.kernels.moe_route.triton_logits import gate_logits

        exact = x.dtype == torch.bfloat16
        logits = gate_logits(x, w_gate) if exact else F.linear(x.float(), w_gate)
        return choose_experts_triton(logits, expert_bias, rule)
    return route_tokens_reference(x, w_gate, expert_bias, rule)
