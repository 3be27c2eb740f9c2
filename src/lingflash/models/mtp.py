"""The multi-token-prediction layer: one more decoder layer, for the token after the next."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lingflash.kernels.rmsnorm import rms_norm
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import CacheTensors, FinalRows, ForwardBatch, Trace
from lingflash.models.layers.weights import WeightSlots
from lingflash.quant.matrix import linear

Rotary = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Block(Protocol):
    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        batch: ForwardBatch,
        cache: CacheTensors,
        trace: Trace | None,
        final: FinalRows | None = None,
    ) -> Tensor: ...


class MtpLayer:
    """y = [norm(next token's embedding), norm(hidden state)] W_eh^T, a decoder layer, a norm."""

    def __init__(
        self, config: ModelConfig, layer_idx: int, block: _Block, weights: WeightSlots
    ) -> None:
        prefix, hidden = f"model.layers.{layer_idx}.", config.hidden_size
        self.block, self.eps = block, config.rms_norm_eps
        self.w_enorm = weights.take(prefix + "enorm.weight", hidden)
        self.w_hnorm = weights.take(prefix + "hnorm.weight", hidden)
        self.w_eh = weights.take_matrix(prefix + "eh_proj.weight", hidden, 2 * hidden)
        self.w_final_norm = weights.take(prefix + "final_layernorm.weight", hidden)

    def forward(
        self,
        embedded: Tensor,
        hidden_states: Tensor,
        rotary: Rotary,
        batch: ForwardBatch,
        cache: CacheTensors,
        trace: Trace | None,
    ) -> Tensor:
        """Embedding of token j+1 and hidden state of token j, both [T_pad, D], to [T_pad, D].

        With batch.final only its rows are computed past their latents: [R, D].
        """
        both = [
            rms_norm(embedded, self.w_enorm, self.eps),
            rms_norm(hidden_states, self.w_hnorm, self.eps),
        ]
        x = linear(torch.cat(both, -1), self.w_eh)
        if trace is not None:
            trace.record("mtp.eh", x)
        x = self.block.forward(x, rotary, batch, cache, trace, batch.final)
        return rms_norm(x, self.w_final_norm, self.eps)
