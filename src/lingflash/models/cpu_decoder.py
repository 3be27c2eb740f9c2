"""The model's fast path for one token of one sequence on the CPU: two calls of C per layer.

The same weights, the same memory and, up to the order of sums, the same arithmetic as
BailingHybrid.forward, which remains the definition. What a call needs is written down once, as
addresses.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from lingflash.core.anchors import ANCHOR
from lingflash.kernels.cpu import (
    MAX_EXPERTS,
    MAX_TOPK,
    CpuKernels,
    FeedForwardStruct,
    LightningStruct,
    MlaStruct,
    address,
    load_kernels,
    matrix_address,
)
from lingflash.models.bailing_hybrid import BailingHybrid, DecoderLayer
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, lightning_chunk
from lingflash.models.layers.feed_forward import DenseMlp, MoeMlp
from lingflash.models.layers.lightning import LightningLayer
from lingflash.models.layers.mla import MlaLayer


@dataclass(slots=True)
class _LayerCall:
    attention: ctypes.Structure
    attention_at: int
    feed_forward: FeedForwardStruct
    feed_forward_at: int
    is_mla: bool


class CpuDecoder:
    """Prepared calls for a model and the memory it runs on.

    Args:
        model: float32 on the CPU.
        cache: float32 on the CPU; not to be reallocated while this lives.
        kernels: from load_kernels().
    """

    def __init__(self, model: BailingHybrid, cache: CacheTensors, kernels: CpuKernels) -> None:
        self._model, self._cache, self._kernels = model, cache, kernels
        self._alive: list[Tensor] = []
        self._layers = [self._prepare(layer) for layer in model.layers]
        self._head = None if model.config.tie_word_embeddings else matrix_address(model.w_head)

    @classmethod
    def create(cls, model: BailingHybrid, cache: CacheTensors) -> CpuDecoder | None:
        """A decoder if this model, machine and dtype allow one, else None."""
        if type(model) is not BailingHybrid:  # measurements put a stand-in here
            return None
        c = model.config
        fits = (
            model.device.type == "cpu"
            and model.dtype == torch.float32
            and not model.is_quantized  # it reads plain numbers
            and model.mesh.shard.size == 1  # and computes whole layers
            and max(c.num_experts, c.n_group) <= MAX_EXPERTS
            and c.num_experts_per_tok <= MAX_TOPK
        )
        kernels = load_kernels() if fits else None
        return None if kernels is None else cls(model, cache, kernels)

    def can_run(self, batch: ForwardBatch) -> bool:
        """Whether a batch is one token of one sequence in the fast mode."""
        return batch.lightning.decode_one is not None and not batch.batch_invariant

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """As BailingHybrid.forward: hidden states [1, D] after the final norm."""
        model = self._model
        place = batch.lightning.decode_one
        assert place is not None
        slot, offset = place
        x = model.w_embed.index_select(0, batch.token_ids)
        (cos, sin), (mla_cos, mla_sin) = model.rotary_at(batch.positions)
        at, linear = x.data_ptr(), (cos.data_ptr(), sin.data_ptr())
        mla, table = (mla_cos.data_ptr(), mla_sin.data_ptr()), batch.block_table
        assert table is not None
        blocks, length = table.ctypes.data, batch.mla_length
        kernels = self._kernels
        for call in self._layers:
            if call.is_mla:
                if kernels.mla(call.attention_at, at, *mla, blocks, length):
                    raise MemoryError(f"no memory for the scores of {length} tokens.")
            else:
                kernels.lightning(call.attention_at, at, *linear, slot, offset)
            kernels.feed_forward(call.feed_forward_at, at)
        return model.final_norm(x)

    @torch.inference_mode()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """As BailingHybrid.logits, for one row: [1, D] to float32 [1, V]."""
        if self._head is None:
            return self._model.logits(hidden_states)
        out = torch.empty(1, self._model.config.vocab_size)
        hidden = hidden_states.contiguous()
        self._kernels.matvec(
            out.data_ptr(), hidden.data_ptr(), self._head, hidden.shape[1], out.shape[1]
        )
        return out

    def _scratch(self, floats: int) -> int | None:
        self._alive.append(torch.empty(floats))
        return address(self._alive[-1])

    def _prepare(self, layer: DecoderLayer) -> _LayerCall:
        if isinstance(layer.attention, MlaLayer):
            attention: ctypes.Structure = self._mla(layer, layer.attention)
        else:
            attention = self._lightning(layer, layer.attention)
        feed_forward = self._feed_forward(layer)
        return _LayerCall(
            attention,
            ctypes.addressof(attention),
            feed_forward,
            ctypes.addressof(feed_forward),
            layer.is_mla,
        )

    def _lightning(self, layer: DecoderLayer, a: LightningLayer) -> LightningStruct:
        c, cache, i = self._model.config, self._cache, a.state_index
        inner = c.num_attention_heads * c.head_dim
        tables = a.tables(lightning_chunk(False), torch.device("cpu"))
        return LightningStruct(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            dim=c.head_dim,
            rotary_half=c.linear_rotary_dim // 2,
            groups=c.group_norm_size,
            tail=cache.tail_k.shape[3],
            linear_silu=c.linear_silu,
            eps=c.rms_norm_eps,
            w_norm=address(layer.w_input_norm),
            w_qkvg=matrix_address(a.w_qkvg),
            w_qk_norm=address(a.w_qk_norm),
            w_g_norm=address(a.w_g_norm),
            w_dense=matrix_address(a.w_dense),
            decode=address(tables.decode),
            decode_query=address(tables.decode_query),
            fold=address(tables.fold),
            carry=address(tables.carry),
            anchor=ANCHOR,
            chunk=lightning_chunk(False),
            states=address(cache.states[i]),
            tail_k=address(cache.tail_k[i]),
            tail_v=address(cache.tail_v[i]),
            scratch=self._scratch(c.hidden_size + 5 * inner + ANCHOR),
        )

    def _mla(self, layer: DecoderLayer, a: MlaLayer) -> MlaStruct:
        c = self._model.config
        latents = self._cache.latents[a.latent_index]
        return MlaStruct(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            nope=c.qk_nope_head_dim,
            rope=c.qk_rope_head_dim,
            value=c.v_head_dim,
            rank=c.kv_lora_rank,
            q_rank=c.q_lora_rank or 0,
            eps=c.rms_norm_eps,
            scale=c.softmax_scale,
            w_norm=address(layer.w_input_norm),
            w_in=matrix_address(a.w_in),
            w_q_norm=None if a.w_q_b is None else address(a.w_q_norm),
            w_q_b=None if a.w_q_b is None else matrix_address(a.w_q_b),
            w_kv_norm=address(a.w_kv_norm),
            w_kvb=address(a.w_kvb),
            w_dense=matrix_address(a.w_dense),
            latents=address(latents),
            block_size=latents.shape[1],
        )

    def _feed_forward(self, layer: DecoderLayer) -> FeedForwardStruct:
        c, mlp = self._model.config, layer.mlp
        dense = mlp if isinstance(mlp, DenseMlp) else mlp.shared
        shared_width = 0 if dense is None else dense.w_down.shape[1]
        width = c.moe_intermediate_size
        scratch = 2 * c.hidden_size + 3 * max(width, shared_width) + 3 * c.num_experts
        routed = mlp if isinstance(mlp, MoeMlp) else None
        return FeedForwardStruct(
            hidden=c.hidden_size,
            width=width,
            shared_width=shared_width,
            experts=c.num_experts if routed else 0,
            topk=c.num_experts_per_tok,
            groups=c.n_group,
            topk_groups=c.topk_group,
            normalise=c.norm_topk_prob,
            eps=c.rms_norm_eps,
            scaling=c.routed_scaling_factor,
            w_norm=address(layer.w_post_norm),
            w_gate=address(routed.w_gate) if routed else None,
            bias=address(routed.expert_bias) if routed else None,
            w_gate_up=matrix_address(routed.w_gate_up) if routed else None,
            w_down=matrix_address(routed.w_down) if routed else None,
            shared_gate_up=None if dense is None else matrix_address(dense.w_gate_up),
            shared_down=None if dense is None else matrix_address(dense.w_down),
            scratch=self._scratch(scratch + 2 * c.n_group),
        )
