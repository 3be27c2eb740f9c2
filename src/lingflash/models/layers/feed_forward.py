"""Feed-forward layers: one gated MLP, or routed experts beside a shared one."""

from __future__ import annotations

import torch
from torch import Tensor

from lingflash.kernels.moe_gemm import expert_mlp
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.quant_gemm import Rows
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import ForwardBatch, Trace
from lingflash.models.layers.weights import WeightSlots
from lingflash.quant.matrix import gated_linear, linear


class DenseMlp:
    """down(SiLU(gate(x)) * up(x))."""

    def __init__(self, prefix: str, hidden: int, width: int, weights: WeightSlots) -> None:
        self.w_gate_up = weights.stack(
            [prefix + "gate_proj.weight", prefix + "up_proj.weight"], [width, width], hidden
        )
        self.w_down = weights.take_matrix(prefix + "down_proj.weight", hidden, width)

    def forward(self, x: Tensor | Rows, batch: ForwardBatch, trace: Trace | None) -> Tensor:
        """[T_pad, D] to [T_pad, D]."""
        return gated_linear(linear(x, self.w_gate_up), self.w_down)


class MoeMlp:
    """The chosen experts' weighted sum, plus a shared expert that every token takes unscaled."""

    def __init__(self, config: ModelConfig, layer_idx: int, weights: WeightSlots) -> None:
        self.config = c = config
        self.layer_idx = layer_idx
        prefix = f"model.layers.{layer_idx}.mlp."
        width, hidden = c.moe_intermediate_size, c.hidden_size
        self.w_gate = weights.take(
            prefix + "gate.weight", c.num_experts, hidden, dtype=torch.float32
        )
        self.expert_bias: Tensor | None = None
        if c.moe_router_enable_expert_bias:
            self.expert_bias = weights.take(
                prefix + "gate.expert_bias", c.num_experts, dtype=torch.float32
            )
        self.rule = RoutingRule(
            num_groups=c.n_group,
            topk_groups=c.topk_group,
            topk=c.num_experts_per_tok,
            norm_topk_prob=c.norm_topk_prob,
            scaling_factor=c.routed_scaling_factor,
        )
        experts = [f"{prefix}experts.{e}." for e in range(c.num_experts)]
        self.w_gate_up = weights.experts(
            [[e + "gate_proj.weight", e + "up_proj.weight"] for e in experts],
            [width, width],
            hidden,
        )
        self.w_down = weights.experts([[e + "down_proj.weight"] for e in experts], [hidden], width)
        self.shared: DenseMlp | None = None
        if c.num_shared_experts:
            # Ports disagree on the formula for this width, so the tensor decides.
            shared = prefix + "shared_experts."
            self.shared = DenseMlp(
                shared, hidden, weights.width_of(shared + "gate_proj.weight"), weights
            )

    def forward(self, x: Tensor, batch: ForwardBatch, trace: Trace | None) -> Tensor:
        """[T_pad, D] to [T_pad, D]."""
        if trace is not None and self.layer_idx in trace.forced_routing:
            topk_ids, topk_weights = trace.forced_routing[self.layer_idx]
        else:
            topk_ids, topk_weights = route_tokens(x, self.w_gate, self.expert_bias, self.rule)
        if trace is not None:
            trace.record(f"layer{self.layer_idx}.topk_idx", topk_ids)
            trace.record(f"layer{self.layer_idx}.topk_w", topk_weights)
        rows = Rows(x)
        return expert_mlp(
            rows,
            self.w_gate_up,
            self.w_down,
            topk_ids,
            topk_weights,
            row_multiple=batch.row_multiple,
            shared=None if self.shared is None else self.shared.forward(rows, batch, trace),
        )
