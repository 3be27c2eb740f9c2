"""Multi-head latent attention layer: low-rank projections and a paged cache of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from lingflash.kernels.mla import MlaPlan, mla_attention
from lingflash.kernels.rmsnorm import rms_norm
from lingflash.kernels.rope import apply_rope_interleaved
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import CacheTensors, FinalRows, ForwardBatch
from lingflash.models.layers.weights import WeightSlots
from lingflash.quant.matrix import Matrix, linear


class MlaLayer:
    """Weights and forward pass of one MLA layer; `latent_index` is its place in the cache."""

    def __init__(
        self, config: ModelConfig, layer_idx: int, latent_index: int, weights: WeightSlots
    ) -> None:
        self.config = c = config
        self.latent_index = latent_index
        prefix = f"model.layers.{layer_idx}.attention."
        heads, hidden = c.num_attention_heads, c.hidden_size
        q_width = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
        self.w_q_b: Matrix | None = None
        if c.q_lora_rank is not None:
            names, rows = ["q_a_proj.weight"], [c.q_lora_rank]
            self.w_q_b = weights.take_matrix(prefix + "q_b_proj.weight", q_width, c.q_lora_rank)
            self.w_q_norm = weights.take(prefix + "q_a_layernorm.weight", c.q_lora_rank)
        else:
            names, rows = ["q_proj.weight"], [q_width]
        self.first_width = rows[0]
        self.w_in = weights.stack(
            [prefix + names[0], prefix + "kv_a_proj_with_mqa.weight"],
            [rows[0], c.latent_dim],
            hidden,
        )
        self.w_kv_norm = weights.take(prefix + "kv_a_layernorm.weight", c.kv_lora_rank)
        kv_width = c.qk_nope_head_dim + c.v_head_dim
        w_kvb = weights.take(prefix + "kv_b_proj.weight", heads * kv_width, c.kv_lora_rank)
        self.w_kvb = w_kvb.view(heads, kv_width, c.kv_lora_rank)
        self.w_dense = weights.take_matrix(prefix + "dense.weight", hidden, heads * c.v_head_dim)

    def forward(
        self,
        u: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        cache: CacheTensors,
        final: FinalRows | None = None,
    ) -> Tensor:
        """Normed input [T_pad, D] to attention output; writes all tokens' latents.

        Returns:
            [T_pad, D], or [R, D] of the rows of `final` if it is given.
        """
        c = self.config
        if final is None:
            first, kv = linear(u, self.w_in).split([self.first_width, c.latent_dim], -1)
        else:
            w_first, w_kv = self.w_in.split([self.first_width, c.latent_dim])
            first, kv = linear(u.index_select(0, final.rows), w_first), linear(u, w_kv)
        latent = rms_norm(kv[:, : c.kv_lora_rank], self.w_kv_norm, c.rms_norm_eps)
        k_rope = apply_rope_interleaved(kv[:, None, c.kv_lora_rank :], cos, sin)[:, 0]
        pool = cache.latents[self.latent_index]
        pool.view(-1, c.latent_dim).index_copy_(
            0, batch.slot_mapping, torch.cat([latent, k_rope], -1)[: batch.num_tokens]
        )
        if final is None:
            return self._attend(first, cos, sin, pool, batch.mla)
        rows = final.rows
        cos, sin = cos.index_select(0, rows), sin.index_select(0, rows)
        return self._attend(first, cos, sin, pool, final.mla)

    def _attend(
        self, first: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, plan: MlaPlan
    ) -> Tensor:
        """Queries' projection [T, first_width] to attention output [T, D]."""
        c, rows = self.config, first.shape[0]
        heads, nope = c.num_attention_heads, c.qk_nope_head_dim
        q = first
        if self.w_q_b is not None:
            q = linear(rms_norm(first, self.w_q_norm, c.rms_norm_eps), self.w_q_b)
        q = q.reshape(rows, heads, nope + c.qk_rope_head_dim)
        q_rope = apply_rope_interleaved(q[..., nope:], cos, sin)
        out = mla_attention(q[..., :nope], q_rope, pool, self.w_kvb, c.softmax_scale, plan)
        return linear(out.reshape(rows, heads * c.v_head_dim), self.w_dense)
