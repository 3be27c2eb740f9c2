"""out_t = sum_j w_tj W_down,e (SiLU(W_gate,e x_t) * W_up,e x_t), e = topk_ids_tj, as written."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def expert_mlp_reference(
    x: Tensor, w_gate_up: Tensor, w_down: Tensor, topk_ids: Tensor, topk_weights: Tensor
) -> Tensor:
    """Float32 result of expert_mlp, one token and expert at a time; shapes as there."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for t in range(x.shape[0]):
        for expert, weight in zip(topk_ids[t].tolist(), topk_weights[t], strict=True):
            gate, up = (w_gate_up[expert].float() @ x[t].float()).chunk(2)
            out[t] += weight * (w_down[expert].float() @ (F.silu(gate) * up))
    return out
