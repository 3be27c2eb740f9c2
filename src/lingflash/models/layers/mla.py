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
        if final is None:
            q, q_rope = self.project(u, cos, sin, batch, cache)
            return self.output(self.attend(q, q_rope, cache, batch.mla))
        c, rows = self.config, final.rows
        w_first, w_kv = self.w_in.split([self.first_width, c.latent_dim])
        first = linear(u.index_select(0, rows), w_first)
        self._write(linear(u, w_kv), cos, sin, batch, cache)
        q, q_rope = self._queries(first, cos.index_select(0, rows), sin.index_select(0, rows))
        return self.output(self.attend(q, q_rope, cache, final.mla))

    def project(
        self, u: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, cache: CacheTensors
    ) -> tuple[Tensor, Tensor]:
        """Write all tokens' latents; the queries of attend(). Of the batch only slots are read."""
        first, kv = linear(u, self.w_in).split([self.first_width, self.config.latent_dim], -1)
        self._write(kv, cos, sin, batch, cache)
        return self._queries(first, cos, sin)

    def attend(self, q: Tensor, q_rope: Tensor, cache: CacheTensors, plan: MlaPlan) -> Tensor:
        """Queries [T, H, N + P] and their rotated part [T, H, P] to [T, H, V]."""
        c, pool = self.config, cache.latents[self.latent_index]
        q_nope = q[..., : c.qk_nope_head_dim]
        return mla_attention(q_nope, q_rope, pool, self.w_kvb, c.softmax_scale, plan)

    def output(self, out: Tensor) -> Tensor:
        """What was attended to [T, H, V] to attention output [T, D]."""
        return linear(out.flatten(1), self.w_dense)

    def _write(
        self, kv: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, cache: CacheTensors
    ) -> None:
        """Put the latents of [T_pad, R + P] where the batch's tokens have their slots."""
        c = self.config
        latent = rms_norm(kv[:, : c.kv_lora_rank], self.w_kv_norm, c.rms_norm_eps)
        k_rope = apply_rope_interleaved(kv[:, None, c.kv_lora_rank :], cos, sin)[:, 0]
        pool = cache.latents[self.latent_index]
        pool.view(-1, c.latent_dim).index_copy_(
            0, batch.slot_mapping, torch.cat([latent, k_rope], -1)[: batch.num_tokens]
        )

    def _queries(self, first: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries' projection [T, first_width] to queries and their rotated part."""
        c, rows = self.config, first.shape[0]
        q = first
        if self.w_q_b is not None:
            q = linear(rms_norm(first, self.w_q_norm, c.rms_norm_eps), self.w_q_b)
        q = q.reshape(rows, c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim)
        return q, apply_rope_interleaved(q[..., c.qk_nope_head_dim :], cos, sin)
