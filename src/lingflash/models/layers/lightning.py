"""Lightning attention layer: projections, q/k norm, rotation, recurrence, group norm, gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.lightning_attn import (
    DecayTables,
    LightningPlan,
    decay_tables,
    lightning_attention,
)
from lingflash.kernels.rmsnorm import group_rms_norm, rms_norm
from lingflash.kernels.rope import apply_rope_half_split
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, pad_rows
from lingflash.models.layers.weights import WeightSlots
from lingflash.quant.matrix import linear


def head_slopes(num_heads: int) -> list[float]:
    """Decay slope of each head, ALiBi's geometric series (arXiv 2108.12409, section 3).

    2^(-8 (h+1) / H) for a power of two; else the series of the power below, then every second one
    of the power above.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    if power < num_heads:
        slopes += head_slopes(2 * power)[0::2][: num_heads - power]
    return slopes


def layer_decay_rate(config: ModelConfig, layer_idx: int) -> Tensor:
    """-ln of each head's decay per token in a layer, float64 [H], of this rank's heads.

    The factor falls from 1 at the first to 1e-5 at the last layer, layers of both kinds counted
    from 0.
    """
    heads, shard = config.num_attention_heads, config.shard
    slopes = head_slopes(heads * shard.size)[shard.rank * heads : (shard.rank + 1) * heads]
    factor = 1.0 - layer_idx / max(config.num_hidden_layers - 1, 1) + 1e-5
    return torch.tensor(slopes, dtype=torch.float64) * factor


class LightningLayer:
    """Weights and forward pass of one lightning attention layer."""

    def __init__(self, config: ModelConfig, layer_idx: int, weights: WeightSlots) -> None:
        self.config = config
        self.state_index = config.lightning_layers.index(layer_idx)
        prefix = f"model.layers.{layer_idx}.attention."
        inner = config.num_attention_heads * config.head_dim
        self.w_qkvg = weights.stack(
            [prefix + "query_key_value.weight", prefix + "g_proj.weight"],
            [3 * inner, inner],
            config.hidden_size,
        )
        self.w_dense = weights.take_matrix(prefix + "dense.weight", config.hidden_size, inner)
        self.w_g_norm = weights.take(prefix + "g_norm.weight", inner)
        self.w_qk_norm: Tensor | None = None
        if config.use_qk_norm:
            self.w_qk_norm = weights.empty(2, 1, config.head_dim, dtype=torch.float32)
            weights.assign(prefix + "query_layernorm.weight", self.w_qk_norm[0, 0])
            weights.assign(prefix + "key_layernorm.weight", self.w_qk_norm[1, 0])
        self._decay_rate = layer_decay_rate(config, layer_idx)
        self._tables: dict[int, DecayTables] = {}

    def tables(self, chunk: int, device: torch.device) -> DecayTables:
        """Decay tables for a chunk size, made once."""
        if chunk not in self._tables:
            self._tables[chunk] = decay_tables(
                self._decay_rate, chunk, self.config.head_dim, device
            )
        return self._tables[chunk]

    def forward(
        self, u: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, cache: CacheTensors
    ) -> Tensor:
        """Normed input [T_pad, D] to attention output [T_pad, D]; advances the layer's states."""
        c, heads = self.config, self.config.num_attention_heads
        inner = heads * c.head_dim
        rows = u.shape[0]
        fused = linear(u, self.w_qkvg)
        if batch.lightning.for_gpu:
            live = slice(0, batch.num_tokens)
            y = self._attend_on_gpu(fused[live], cos[live], sin[live], batch.lightning, cache)
            return linear(pad_rows(y, rows), self.w_dense)
        qkv = fused[:, : 3 * inner].float()
        if c.linear_silu:
            qkv = F.silu(qkv)
        qk = qkv[:, : 2 * inner].view(rows, 2, heads, c.head_dim)
        v = qkv[:, 2 * inner :].view(rows, heads, c.head_dim)
        if self.w_qk_norm is not None:
            qk = rms_norm(qk, self.w_qk_norm, c.rms_norm_eps)
        qk = apply_rope_half_split(qk.reshape(rows, 2 * heads, c.head_dim), cos, sin)
        live = batch.num_tokens
        i = self.state_index
        out = lightning_attention(
            qk[:live, :heads],
            qk[:live, heads:],
            v[:live],
            self.tables(batch.lightning.chunk, u.device),
            cache.states[i],
            cache.tail_k[i],
            cache.tail_v[i],
            batch.lightning,
        )
        y = group_rms_norm(
            pad_rows(out.reshape(live, inner), rows),
            self.w_g_norm,
            c.group_norm_size,
            c.rms_norm_eps,
        )
        y = y.mul_(fused[:, 3 * inner :].float().sigmoid())
        return linear(y.to(u.dtype), self.w_dense)

    def _attend_on_gpu(
        self, fused: Tensor, cos: Tensor, sin: Tensor, plan: LightningPlan, cache: CacheTensors
    ) -> Tensor:
        """Projections [T, 4 H d] to gated output [T, H d] of the same dtype, by Triton kernels.

        In the BF16 model q, k and the output before its norm are rounded to BF16 when there are
        prompt tokens among the rows; state and tails stay float32.
        """
        # Not at the top: a machine without a GPU may be without Triton.
        from lingflash.kernels.lightning_attn.triton_decode import lightning_decode_triton
        from lingflash.kernels.lightning_attn.triton_prepare import prepare_qkv_triton
        from lingflash.kernels.lightning_attn.triton_verify import (
            MOST_VERIFIED,
            MOST_VERIFIED_SEQUENCES,
            lightning_verify_triton,
        )
        from lingflash.kernels.rmsnorm.triton_rows import gated_group_rms_norm_triton

        c, i = self.config, self.state_index
        tables = self.tables(plan.chunk, fused.device)
        memory = cache.states[i], cache.tail_k[i], cache.tail_v[i]
        norm = {"eps": c.rms_norm_eps, "silu": c.linear_silu}
        segments = plan.segments
        if (
            segments is not None
            and segments.longest <= MOST_VERIFIED
            and segments.num_sequences <= MOST_VERIFIED_SEQUENCES
        ):
            return lightning_verify_triton(
                fused, self.w_qk_norm, cos, sin, tables.log2_rate, *memory, segments,
                self.w_g_norm, num_groups=c.group_norm_size, **norm,
            )  # fmt: skip
        if plan.decode_slots is not None:
            assert plan.decode_offsets is not None
            out = lightning_decode_triton(
                fused, self.w_qk_norm, cos, sin, tables, *memory,
                plan.decode_slots, plan.decode_offsets, **norm,
            )  # fmt: skip
        else:
            q, k, v = prepare_qkv_triton(
                fused, self.w_qk_norm, cos, sin,
                num_heads=c.num_attention_heads, head_dim=c.head_dim, **norm,
            )  # fmt: skip
            out = lightning_attention(q, k, v, tables, *memory, plan).flatten(1)
        gate = fused[:, 3 * out.shape[1] :]
        return gated_group_rms_norm_triton(
            out, gate, self.w_g_norm, c.group_norm_size, c.rms_norm_eps
        )
