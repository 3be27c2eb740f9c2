"""The model's fast path for decoding on the GPU: one token of each sequence, no question to the
host, so that a step can be captured as a graph.

The same weights, the same memory and, up to rounding between products, the same arithmetic as
BailingHybrid.forward, which remains the definition. Several rows take about ten launches a layer:

    norm(+ what the layer before gave) -> qkvg -> lightning -> group norm, gate -> dense
    norm(+ attention) -> router -> choice -> gate, up -> down -> (summed by the next norm)

One row takes seven: every product norms what it reads, and adds what it gives to the stream.

    qkvg -> lightning, gate -> dense
    router -> choice -> gate, up -> down

Of a split model, what dense and down give is a part; the ranks' sum of it goes to the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lingflash.core.errors import UnsupportedModelError
from lingflash.kernels.lightning_attn import DecayTables
from lingflash.models.bailing_hybrid import BailingHybrid, DecoderLayer
from lingflash.models.forward_batch import CacheTensors, lightning_chunk
from lingflash.models.layers.feed_forward import DenseMlp, MoeMlp
from lingflash.models.layers.lightning import LightningLayer
from lingflash.models.layers.mla import MlaLayer
from lingflash.quant.matrix import Matrix, QuantizedExperts, QuantizedMatrix, StackedMatrix

if TYPE_CHECKING:
    from lingflash.kernels.moe_gemm.decode import DecodeExperts
    from lingflash.kernels.skinny_gemm.triton_one_row import GroupNorm

# Most sequences of a step: the plan of rows by expert is made by one program.
MAX_DECODE_SEQS = 256
# float16, in which quantized products take their activations, ends at 65,504; normed activations
# are at most the square root of their width times their weight.
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One decode step's input; rows may be padding, which points at memory of its own.

    Args:
        token_ids: int64 [N].
        positions: int64 [N].
        slot_mapping: int64 [N], place of each token's latent.
        state_slots: int64 [N].
        tail_offsets: int64 [N], position % ANCHOR.
        lengths: int64 [N], tokens of each with this one.
        block_tables: int64 [N, max blocks].
        max_length: no length is larger; a host number, which fixes grids.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    state_slots: Tensor
    tail_offsets: Tensor
    lengths: Tensor
    block_tables: Tensor
    max_length: int


@dataclass(slots=True)
class _Flow:
    """What travels between the layers of a step."""

    inputs: DecodeInputs
    rotary: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    residual: Tensor
    # What the next norm adds to the stream, [N, P, D]; of one row it has been added already.
    parts: Tensor | None = None

    @property
    def is_one_row(self) -> bool:
        return self.residual.shape[0] == 1


_Part = Callable[[_Flow], None]


class CudaDecoder:
    """Prepared launches for a model and the memory it runs on.

    Args:
        model: bfloat16 on a CUDA device.
        cache: its memory; not to be reallocated while this lives.
    """

    def __init__(self, model: BailingHybrid, cache: CacheTensors) -> None:
        # Triton is there where a GPU is, and only there.
        from lingflash.kernels.moe_gemm.decode import lane_order, pair_order

        self._model, self._cache = model, cache
        self._device = model.device
        # Products with quantized weights take float16, which holds those weights exactly.
        self._narrow = torch.float16 if model.is_quantized else torch.bfloat16
        hidden = model.config.hidden_size
        self._order = lane_order(hidden).to(model.device, torch.int32)
        self._pair_order = pair_order(hidden).to(model.device, torch.int32)
        self._layers = [
            (self._attention(layer), self._feed_forward(layer)) for layer in model.layers
        ]
        self._head = self._product(model.w_head)
        self._is_split = model.mesh.shard.size > 1
        # The experts that each MoE layer chose in the last step, int32 [N, k].
        self.topk_ids: list[Tensor] = []

    @classmethod
    def create(cls, model: BailingHybrid, cache: CacheTensors) -> CudaDecoder | None:
        """A decoder if this model, device and dtype allow one, else None."""
        if type(model) is not BailingHybrid:
            return None
        fits = (
            model.device.type == "cuda"
            and model.dtype == torch.bfloat16
            and all(_is_supported(layer) for layer in model.layers)
            and _has_product(model.w_head)
        )
        return cls(model, cache) if fits else None

    @torch.inference_mode()
    def forward(self, inputs: DecodeInputs) -> Tensor:
        """As BailingHybrid.forward: hidden states [N, D] after the final norm."""
        from lingflash.kernels.rmsnorm.triton_add_parts import add_parts_rms_norm

        model = self._model
        self.topk_ids = []
        residual = model.embed(inputs.token_ids)
        flow = _Flow(inputs, model.rotary_at(inputs.positions), residual)
        for attention, feed_forward in self._layers:
            attention(flow)
            feed_forward(flow)
        out = torch.empty_like(residual)
        return add_parts_rms_norm(
            flow.parts, residual, model.w_norm, model.config.rms_norm_eps, out
        )

    @torch.inference_mode()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """As BailingHybrid.logits: [N, D] to float32 [N, V]."""
        mesh = self._model.mesh
        words = self._model.config.vocab_size // mesh.shard.size
        out = self._empty(hidden_states.shape[0], words)
        return mesh.gather(self._head(hidden_states, out))

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=self._device)

    def _product(self, matrix: Matrix, *, scaled: bool = False) -> Callable[..., Tensor]:
        """x, out -> out = x W^T; for one row also norm and add as in one_row_product."""
        from lingflash.kernels.skinny_gemm.triton_few_rows import skinny_gemm_triton
        from lingflash.kernels.skinny_gemm.triton_one_row import one_row_product

        parts = _products(matrix)

        def run(x: Tensor, out: Tensor, **one_row: Any) -> Tensor:
            column = 0
            for values, scale in parts:
                piece = out[:, column : column + values.shape[0]]
                if x.shape[0] == 1:
                    one_row_product(x, values, scale, piece, **one_row)
                else:
                    skinny_gemm_triton(x, values, scale, piece, scaled=scaled)
                column += values.shape[0]
            return out

        return run

    def _normed_product(self, weight: Tensor, matrix: Matrix) -> Callable[[_Flow, int], Tensor]:
        """The stream, with what is pending, through a norm and a product: bfloat16 [N, width]."""
        from lingflash.kernels.skinny_gemm.triton_one_row import RowNorm

        norm, product = self._norm(weight), self._product(matrix)
        row_norm = RowNorm(weight, self._model.config.rms_norm_eps)

        def run(flow: _Flow, width: int) -> Tensor:
            out = self._empty(flow.residual.shape[0], width, dtype=torch.bfloat16)
            if flow.is_one_row:
                return product(flow.residual, out, norm=row_norm)
            return product(norm(flow)[0], out)

        return run

    def _product_to_stream(self, matrix: Matrix, *, scaled: bool = False) -> Callable[..., None]:
        """flow, x -> x W^T goes to the stream; of one row, x through a GroupNorm first."""
        product = self._product(matrix, scaled=scaled)

        def run(flow: _Flow, x: Tensor, norm: GroupNorm | None = None) -> None:
            if flow.is_one_row and not self._is_split:
                product(x, flow.residual, norm=norm, add=True)
                return
            out = self._empty(*flow.residual.shape)
            one_row = {"norm": norm} if flow.is_one_row else {}
            self._pend(flow, product(x, out, **one_row)[:, None])

        return run

    def _pend(self, flow: _Flow, parts: Tensor) -> None:
        """Have the next norm add parts [N, P, D] to the stream; of a split model, add them now."""
        if self._is_split:
            self._model.mesh.add_sum(parts, flow.residual)
        else:
            flow.parts = parts

    def _down_one_token(
        self, flow: _Flow, act: Tensor, w: DecodeExperts, ids: Tensor, weights: Tensor,
        shared: DecodeExperts | None = None,
    ) -> None:  # fmt: skip
        """As down_one_token, to the stream."""
        from lingflash.kernels.moe_gemm.decode import down_one_token

        if not self._is_split:
            down_one_token(act, w, ids, weights, flow.residual, shared=shared)
            return
        out = self._empty(*flow.residual.shape)
        down_one_token(act, w, ids, weights, out, add=False, shared=shared)
        self._pend(flow, out[:, None])

    def _norm(
        self, weight: Tensor, ordered: bool = False
    ) -> Callable[[_Flow], tuple[Tensor, Tensor]]:
        """Add the pending parts, norm: activations in their own order and as INT4 reads them."""
        from lingflash.kernels.rmsnorm.triton_add_parts import add_parts_rms_norm

        eps = self._model.config.rms_norm_eps
        # One row's INT4 products add four eightfold values of a row in float16: 16 times its norm.
        _check_norm(weight, _FLOAT16_MAX / 16 if ordered else _FLOAT16_MAX)

        def run(flow: _Flow) -> tuple[Tensor, Tensor]:
            shape = flow.residual.shape
            x = self._empty(*shape, dtype=self._narrow)
            other = self._empty(*shape, dtype=torch.bfloat16) if ordered else x
            add_parts_rms_norm(
                flow.parts, flow.residual, weight, eps, x,
                (other, self._order) if ordered else None,
            )  # fmt: skip
            return x, other

        return run

    def _attention(self, layer: DecoderLayer) -> _Part:
        if isinstance(layer.attention, MlaLayer):
            return self._mla(layer, layer.attention)
        return self._lightning(layer, layer.attention)

    def _lightning(self, layer: DecoderLayer, a: LightningLayer) -> _Part:
        from lingflash.kernels.lightning_attn.triton_decode import (
            gated_lightning_decode_triton,
            lightning_decode_triton,
        )
        from lingflash.kernels.rmsnorm.triton_rows import gated_group_rms_norm_triton
        from lingflash.kernels.skinny_gemm.triton_one_row import GroupNorm

        c, cache, i = self._model.config, self._cache, a.state_index
        inner, groups = c.num_attention_heads * c.head_dim, c.group_norm_size
        # The product takes the norm's factor of 128 columns at once.
        fuses = c.num_attention_heads % groups == 0 and inner // groups % 128 == 0
        tables: DecayTables = a.tables(lightning_chunk(False), self._device)
        memory = cache.states[i], cache.tail_k[i], cache.tail_v[i]
        into = self._normed_product(layer.w_input_norm, a.w_qkvg)
        back = self._product_to_stream(a.w_dense)
        options = {"eps": c.rms_norm_eps, "silu": c.linear_silu}

        def run(flow: _Flow) -> None:
            fused = into(flow, 4 * inner)
            slots = flow.inputs.state_slots, flow.inputs.tail_offsets
            given = fused, a.w_qk_norm, *flow.rotary[0], tables, *memory, *slots
            if flow.is_one_row and fuses:
                y, squares = gated_lightning_decode_triton(*given, w_gate=a.w_g_norm, **options)
                back(flow, y, GroupNorm(squares.view(groups, -1), c.rms_norm_eps))
                return
            out = lightning_decode_triton(*given, **options)
            gate = fused[:, 3 * inner :]
            y = gated_group_rms_norm_triton(out, gate, a.w_g_norm, groups, c.rms_norm_eps)
            back(flow, y)

        return run

    def _mla(self, layer: DecoderLayer, a: MlaLayer) -> _Part:
        from lingflash.kernels.mla.triton_absorb import (
            absorb_queries,
            unabsorb_values,
            write_latents,
        )
        from lingflash.kernels.mla.triton_decode import mla_decode_triton

        c = self._model.config
        latents = self._cache.latents[a.latent_index]
        heads, nope = c.num_attention_heads, c.qk_nope_head_dim
        q_width = heads * (nope + c.qk_rope_head_dim)
        into = self._normed_product(layer.w_input_norm, a.w_in)
        q_b = None if a.w_q_b is None else self._product(a.w_q_b)
        w_q_norm = None if a.w_q_b is None else a.w_q_norm
        back = self._product_to_stream(a.w_dense, scaled=True)

        def run(flow: _Flow) -> None:
            rows, inputs, (cos, sin) = flow.residual.shape[0], flow.inputs, flow.rotary[1]
            fused = into(flow, a.first_width + c.latent_dim)
            low = self._empty(rows, a.first_width, dtype=self._narrow)
            write_latents(
                fused, w_q_norm, a.w_kv_norm, cos, sin, inputs.slot_mapping, low,
                latents.view(-1, c.latent_dim), c.rms_norm_eps,
            )  # fmt: skip
            q = fused
            if q_b is not None:
                q = q_b(low, self._empty(rows, q_width, dtype=torch.bfloat16))
            query = self._empty(rows, heads, c.latent_dim, dtype=torch.bfloat16)
            absorb_queries(q, a.w_kvb, cos, sin, query, nope=nope)
            mixed = mla_decode_triton(
                query, latents, inputs.block_tables, inputs.lengths, c.softmax_scale,
                rank=c.kv_lora_rank, max_length=inputs.max_length,
            )  # fmt: skip
            out = self._empty(rows, heads * c.v_head_dim, dtype=torch.bfloat16)
            unabsorb_values(mixed, a.w_kvb, out, nope=nope)
            back(flow, out)

        return run

    def _feed_forward(self, layer: DecoderLayer) -> _Part:
        if isinstance(layer.mlp, DenseMlp):
            return self._dense(layer, layer.mlp)
        return self._experts(layer, layer.mlp)

    def _dense(self, layer: DecoderLayer, mlp: DenseMlp) -> _Part:
        """A dense MLP is one expert that every token takes."""
        from lingflash.kernels.moe_gemm.decode import (
            DecodeExperts,
            down_dense,
            gate_up_decode,
            gate_up_dense,
        )

        norm = self._norm(layer.w_post_norm)
        gate_up, down = (DecodeExperts(*_one_expert(m)) for m in (mlp.w_gate_up, mlp.w_down))
        hidden, width = down.values.shape[1:]
        only = torch.zeros(1, 1, dtype=torch.int32, device=self._device)
        weight = torch.ones(1, 1, device=self._device)

        def run(flow: _Flow) -> None:
            x, _ = norm(flow)
            if flow.is_one_row:
                act = self._empty(1, 1, width)
                gate_up_decode(x, gate_up, only, None, act)
                self._down_one_token(flow, act, down, only, weight)
                return
            act = self._empty(x.shape[0], width, dtype=torch.bfloat16)
            gate_up_dense(x, gate_up, act)
            parts = self._empty(x.shape[0], 1, hidden)
            down_dense(act, down, parts[:, 0])
            self._pend(flow, parts)

        return run

    def _experts(self, layer: DecoderLayer, mlp: MoeMlp) -> _Part:
        from lingflash.kernels.moe_gemm.decode import (
            DecodeExperts,
            block_rows,
            down_decode,
            down_dense,
            gate_up_decode,
            gate_up_dense,
            is_apart,
            plan_rows,
        )
        from lingflash.kernels.moe_route.triton_few_tokens import ROUTER_PARTS, route_decode
        from lingflash.kernels.moe_route.triton_one_token import norm_and_route_one

        c, w_norm = self._model.config, layer.w_post_norm
        gate_up = DecodeExperts(*_experts(mlp.w_gate_up))
        down = DecodeExperts(*_experts(mlp.w_down))
        norm = self._norm(w_norm, ordered=gate_up.is_int4)
        shared = shared_down = None
        if mlp.shared is not None:
            shared = DecodeExperts(*_one_expert(mlp.shared.w_gate_up))
            shared_down = DecodeExperts(*_one_expert(mlp.shared.w_down))
        choices = c.num_experts_per_tok + (shared is not None)

        def run(flow: _Flow) -> None:
            rows = flow.residual.shape[0]
            ids = self._empty(rows, c.num_experts_per_tok, dtype=torch.int32)
            weights = self._empty(rows, c.num_experts_per_tok)
            self.topk_ids.append(ids)
            if flow.is_one_row:
                logits = self._empty(1, c.num_experts)
                x = ordered = self._empty(1, c.hidden_size, dtype=self._narrow)
                if gate_up.is_int4:
                    ordered = torch.empty_like(x)
                norm_and_route_one(
                    flow.residual, w_norm, c.rms_norm_eps, mlp.w_gate, mlp.expert_bias, logits, x,
                    (ordered, self._pair_order) if gate_up.is_int4 else None, ids, weights,
                    mlp.rule,
                )  # fmt: skip
                act = self._empty(1, choices, c.moe_intermediate_size)
                gate_up_decode(
                    ordered, gate_up, ids, None, act, nibbles=down.is_int4, plain=x, shared=shared
                )
                self._down_one_token(flow, act, down, ids, weights, shared=shared_down)
                return
            x, ordered = norm(flow)
            act = self._empty(rows, choices, c.moe_intermediate_size, dtype=torch.bfloat16)
            parts = self._empty(rows, choices, c.hidden_size)
            among, among_down = shared, shared_down
            if shared is not None and shared_down is not None and is_apart(gate_up, rows):
                # One after the other: the routed experts' kernels divide L1 otherwise.
                gate_up_dense(x, shared, act[:, choices - 1])
                down_dense(act[:, choices - 1], shared_down, parts[:, choices - 1])
                among = among_down = None
            scores = self._empty(rows, ROUTER_PARTS, c.num_experts)
            route_decode(x, mlp.w_gate, mlp.expert_bias, scores, ids, weights, mlp.rule)
            plan = plan_rows(ids, c.num_experts, block_rows(gate_up, rows))
            gate_up_decode(
                ordered, gate_up, ids, plan, act, nibbles=down.is_int4, plain=x, shared=among
            )
            self._pend(flow, down_decode(act, down, ids, weights, plan, parts, shared=among_down))

        return run


def _products(matrix: Matrix) -> list[tuple[Tensor, Tensor | None]]:
    """Values and scales of the products that give x W^T, rows below each other."""
    if isinstance(matrix, Tensor):
        return [(matrix.contiguous(), None)]  # as it is on a GPU already
    if isinstance(matrix, StackedMatrix):
        return [product for part in matrix.matrices for product in _products(part)]
    rows = matrix.block[0]
    whole = all(count % rows == 0 for count in matrix.part_rows)
    parts = [matrix] if whole else matrix.parts()
    return [(part.values, part.scale.float()) for part in parts]


def _experts(matrices: Tensor | QuantizedExperts) -> tuple[Tensor, Tensor | None, int]:
    """Values, scales and INT4 group of a layer's experts."""
    if isinstance(matrices, Tensor):
        return matrices.contiguous(), None, 0
    if matrices.values.dtype == torch.int32:
        return matrices.values, matrices.scale, matrices.block[1]
    return matrices.values, matrices.scale.float(), 0


def _one_expert(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """A dense matrix as the only one of its kind."""
    ((values, scale),) = _products(matrix)
    return values[None], None if scale is None else scale[None]


def _has_product(matrix: Matrix) -> bool:
    """Whether few rows can be multiplied with a matrix as it is stored."""
    if isinstance(matrix, StackedMatrix):
        return all(map(_has_product, matrix.matrices))
    if isinstance(matrix, QuantizedMatrix):
        return matrix.values.dtype != torch.int32 and matrix.block in ((128, 128), (1, 0))
    return True


def _has_expert_product(matrices: Tensor | QuantizedExperts | Matrix) -> bool:
    """Whether the experts' kernels read these matrices."""
    if isinstance(matrices, Tensor):
        return True
    if isinstance(matrices, StackedMatrix):
        return False
    if matrices.values.dtype == torch.int32:
        return isinstance(matrices, QuantizedExperts) and matrices.shape[-1] % 128 == 0
    if matrices.block == (1, 0):
        return True
    return matrices.block == (128, 128) and all(n % 128 == 0 for n in matrices.part_rows)


def _is_supported(layer: DecoderLayer) -> bool:
    """Whether every product of a layer has a kernel for its format and shape."""
    a, mlp = layer.attention, layer.mlp
    if isinstance(a, MlaLayer):
        products = [a.w_in, a.w_dense, *([] if a.w_q_b is None else [a.w_q_b])]
    else:
        products = [a.w_qkvg, a.w_dense]
    dense = mlp if isinstance(mlp, DenseMlp) else mlp.shared
    experts = [] if dense is None else [dense.w_gate_up, dense.w_down]
    if isinstance(mlp, MoeMlp):
        if dense is not None and dense.w_down.shape[1] != mlp.config.moe_intermediate_size:
            return False
        experts += [mlp.w_gate_up, mlp.w_down]
    return all(map(_has_product, products)) and all(map(_has_expert_product, experts))


def _check_norm(weight: Tensor, most: float) -> None:
    """Refuse a norm whose output could be larger than `most` in length."""
    largest = weight.float().abs().max().item() * weight.shape[0] ** 0.5
    if largest > most:
        raise UnsupportedModelError(
            f"a norm's weights reach {largest / weight.shape[0] ** 0.5:g}, so that its output may "
            "pass float16's range, which quantized products take."
        )
