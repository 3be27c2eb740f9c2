"""BailingMoeV2_5ForCausalLM: the Ling-2.6 hybrid, seven lightning layers to one MLA layer.

    embedding -> [norm, attention, +; norm, feed-forward, +] x layers -> norm -> head

A class holds weights and says what it computes; memory and layout come in with each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.kernels.rmsnorm import add_rms_norm, rms_norm
from lingflash.kernels.rope import rope_inv_freq, rope_table, yarn_inv_freq
from lingflash.models.config import ModelConfig
from lingflash.models.forward_batch import (
    CacheTensors,
    FinalRows,
    ForwardBatch,
    Trace,
    pad_rows,
)
from lingflash.models.layers.feed_forward import DenseMlp, MoeMlp
from lingflash.models.layers.lightning import LightningLayer
from lingflash.models.layers.mla import MlaLayer
from lingflash.models.layers.weights import WeightSlots
from lingflash.models.mtp import MtpLayer, Rotary
from lingflash.parallel.mesh import Mesh
from lingflash.quant.matrix import Matrix, linear
from lingflash.quant.scheme import MatrixFormat


class RotaryTables:
    """Cosines and sines per position, one table for both kinds of attention if it fits both."""

    def __init__(self, config: ModelConfig, max_model_len: int, device: torch.device) -> None:
        def table(rotary_dim: int) -> Tensor:
            scaling = config.rope_scaling
            if scaling is None:
                return rope_table(
                    rope_inv_freq(rotary_dim, config.rope_theta), max_model_len, 1.0, device
                )
            inv_freq, scale = yarn_inv_freq(
                rotary_dim,
                config.rope_theta,
                factor=scaling.factor,
                original_length=scaling.original_max_position_embeddings,
                beta_fast=scaling.beta_fast,
                beta_slow=scaling.beta_slow,
            )
            return rope_table(inv_freq, max_model_len, scale, device)

        self.linear = table(config.linear_rotary_dim)
        same = config.qk_rope_head_dim == config.linear_rotary_dim
        self.mla = self.linear if same else table(config.qk_rope_head_dim)

    def at(self, positions: Tensor) -> Rotary:
        """(cos, sin) for lightning and for MLA, each float32 [T, 1, P/2]."""
        linear = _halves(self.linear.index_select(0, positions))
        if self.mla is self.linear:
            return linear, linear
        return linear, _halves(self.mla.index_select(0, positions))


def _halves(table: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = table[:, None].chunk(2, -1)
    return cos, sin


class DecoderLayer:
    """Pre-norm attention and feed-forward around the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        layer_idx: int,
        weights: WeightSlots,
        latent_index: int | None,
        mesh: Mesh,
    ) -> None:
        prefix = f"model.layers.{layer_idx}."
        self._mesh = mesh
        self.eps, self.layer_idx = config.rms_norm_eps, layer_idx
        self.is_mla = latent_index is not None
        self.w_input_norm = weights.take(prefix + "input_layernorm.weight", config.hidden_size)
        self.w_post_norm = weights.take(
            prefix + "post_attention_layernorm.weight", config.hidden_size
        )
        self.attention: MlaLayer | LightningLayer
        if latent_index is not None:
            self.attention = MlaLayer(config, layer_idx, latent_index, weights)
        else:
            self.attention = LightningLayer(config, layer_idx, weights)
        self.mlp: DenseMlp | MoeMlp
        if config.is_dense(layer_idx):
            self.mlp = DenseMlp(
                prefix + "mlp.", config.hidden_size, config.intermediate_size, weights
            )
        else:
            self.mlp = MoeMlp(config, layer_idx, weights)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        batch: ForwardBatch,
        cache: CacheTensors,
        trace: Trace | None,
        final: FinalRows | None = None,
    ) -> Tensor:
        """Residual stream [T_pad, D] in and out; out only [R, D] if `final` rows are given.

        On a GPU the stream that comes in is overwritten.

        Only an MLA layer can be asked for a part of its rows, and the last layer always is one.
        """
        u = rms_norm(x, self.w_input_norm, self.eps)
        if isinstance(self.attention, MlaLayer):
            attn_out = self.attention.forward(u, *rotary[1], batch, cache, final)
        else:
            attn_out = self.attention.forward(u, *rotary[0], batch, cache)
        attn_out = self._mesh.sum(attn_out)
        x = x if final is None else x.index_select(0, final.rows)
        if not x.shape[0]:
            return x  # the middle of a prompt: its latents are written, nothing else was wanted
        return self.feed_forward(x, attn_out, batch, trace)

    def feed_forward(
        self, x: Tensor, attn_out: Tensor, batch: ForwardBatch, trace: Trace | None = None
    ) -> Tensor:
        """What follows attention: the stream that came in and attention's output to the stream."""
        x, u = add_rms_norm(attn_out, x, self.w_post_norm, self.eps)
        mlp_out = self.mlp.forward(u, batch, trace)
        mlp_out = self._mesh.sum(mlp_out)
        x = x + mlp_out
        if trace is not None:
            trace.record(f"layer{self.layer_idx}.attn_out", attn_out)
            trace.record(f"layer{self.layer_idx}.mlp_out", mlp_out)
            trace.record(f"layer{self.layer_idx}.hidden", x)
        return x


class BailingHybrid:
    """The whole model. Weights are uninitialised until the loader has filled `weight_slots`.

    Args:
        config: its shape; that of the rank's share (ModelConfig.share) if there are several.
        shapes: of the checkpoint's tensors, by name.
        dtype: of activations and of weights that are not quantized.
        max_model_len: length of the rotary tables.
        with_mtp: whether the checkpoint has the MTP layer.
        formats: how the quantized matrices are stored, by name.
        mesh: the ranks that share the model; None for one.
    """

    def __init__(
        self,
        config: ModelConfig,
        shapes: Mapping[str, Sequence[int]],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        with_mtp: bool,
        formats: Mapping[str, MatrixFormat] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.max_model_len = max_model_len
        self.mesh = mesh = mesh or Mesh()
        weights = WeightSlots(shapes, dtype, device, formats or {}, mesh.shard)
        vocab = mesh.shard.share(config.vocab_size, "vocab_size")
        hidden = config.hidden_size
        self.w_embed = weights.take("model.word_embeddings.weight", vocab, hidden)
        latent_of = {layer: i for i, layer in enumerate(config.mla_layers)}
        self.layers = [
            DecoderLayer(config, i, weights, latent_of.get(i), mesh)
            for i in range(config.num_hidden_layers)
        ]
        self.w_norm = weights.take("model.norm.weight", hidden)
        self.w_head: Matrix = self.w_embed
        if not config.tie_word_embeddings:
            self.w_head = weights.take_matrix("lm_head.weight", vocab, hidden)
        self.mtp: MtpLayer | None = None
        if with_mtp:
            index = config.num_hidden_layers
            block = DecoderLayer(config, index, weights, len(config.mla_layers), mesh)
            self.mtp = MtpLayer(config, index, block, weights)
        self.weight_slots = weights.slots
        self.is_quantized = weights.has_quantized
        self.num_weight_bytes = weights.num_bytes
        self._rotary = RotaryTables(config, max_model_len, device)

    @property
    def num_latent_layers(self) -> int:
        """Layers with a latent cache, the MTP layer's included."""
        return len(self.config.mla_layers) + (self.mtp is not None)

    def rotary_at(self, positions: Tensor) -> Rotary:
        """(cos, sin) for lightning and for MLA at these positions, each float32 [T, 1, P/2]."""
        return self._rotary.at(positions)

    def final_norm(self, x: Tensor) -> Tensor:
        """Residual stream [T, D] to hidden states [T, D]."""
        return rms_norm(x, self.w_norm, self.config.rms_norm_eps)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings of int64 [T] token ids, [T, D]."""
        shard = self.mesh.shard
        if shard.size == 1:
            return F.embedding(token_ids, self.w_embed)
        rows = self.w_embed.shape[0]
        local = token_ids - shard.rank * rows
        is_mine = (local >= 0) & (local < rows)
        found = F.embedding(local.where(is_mine, 0), self.w_embed)
        return self.mesh.sum(found.where(is_mine[:, None], 0))

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, cache: CacheTensors, trace: Trace | None = None
    ) -> Tensor:
        """Run the layers and the final norm.

        Returns:
            Hidden states [T_pad, D], model dtype; [R, D] of batch.final's rows if it is set.
        """
        x = self.embed(batch.token_ids)
        if trace is not None:
            trace.record("embed", x)
        rotary = self.rotary_at(batch.positions)
        for layer in self.layers[:-1]:
            x = layer.forward(x, rotary, batch, cache, trace)
        x = self.layers[-1].forward(x, rotary, batch, cache, trace, batch.final)
        x = self.final_norm(x)
        if trace is not None:
            trace.record("final_norm", x)
        return x

    @torch.inference_mode()
    def logits(self, hidden_states: Tensor, row_multiple: int = 1) -> Tensor:
        """Scores of the vocabulary: rows [R, D] of forward()'s result to float32 [R, V]."""
        rows = hidden_states.shape[0]
        padded = pad_rows(hidden_states, -(-rows // row_multiple) * row_multiple)
        return self.mesh.gather(linear(padded, self.w_head)[:rows].float())

    @torch.inference_mode()
    def mtp_forward(
        self,
        hidden_states: Tensor,
        next_token_ids: Tensor,
        batch: ForwardBatch,
        cache: CacheTensors,
        trace: Trace | None = None,
    ) -> Tensor:
        """Run the multi-token-prediction layer: row j predicts token j + 2.

        Args:
            hidden_states: [T_pad, D], after the final norm (or this layer's own result, for more
                drafts).
            next_token_ids: int64 [T_pad], the token after each row's.
            batch: positions and blocks of the rows.

        Returns:
            [T_pad, D], to be given to logits(); [R, D] of batch.final's rows if it is set.

        Raises:
            ValueError: the checkpoint has no MTP layer.
        """
        if self.mtp is None:
            raise ValueError("this checkpoint has no MTP layer.")
        embedded = self.embed(next_token_ids)
        rotary = self.rotary_at(batch.positions)
        return self.mtp.forward(embedded, hidden_states, rotary, batch, cache, trace)
