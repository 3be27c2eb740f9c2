"""A prompt's forward pass on the GPU in pieces of fixed shape, which can be captured as graphs.

The same modules, weights and memory as BailingHybrid.forward, which remains the definition, on rows
that are padded to a fixed number. What depends on how long a prefix is, attention over the cache,
is launched between the pieces, for the rows that are there; so is the last layer, of which a prompt
needs a row or two:

    piece 0    embedding, lightning layers, an MLA layer's queries and latents
    ...        attention to the cache
    piece 1    the rest of that layer, lightning layers, the next MLA layer's queries and latents
    ...        attention to the cache
    piece n    the rest of that layer, lightning layers
    ...        the last layer and the final norm

Padding is rows behind those of the step. They are the same token in each, belong to no sequence,
attend to nothing, and their latents go to a block of their own: no state, tail or block of a
sequence sees them, and they share their experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lingflash.kernels.lightning_attn import LightningPlan
from lingflash.kernels.lightning_attn.segments import SEQUENCE_WIDTH, SegmentTables
from lingflash.kernels.mla import MlaPlan
from lingflash.kernels.moe_gemm.formats import expert_format
from lingflash.kernels.rmsnorm import rms_norm
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.forward_batch import CacheTensors, ForwardBatch, lightning_chunk
from lingflash.models.layers.feed_forward import MoeMlp
from lingflash.models.layers.mla import MlaLayer


def can_capture_prompts(model: BailingHybrid) -> bool:
    """Whether a prompt's layers ask the host nothing, for a model that CudaDecoder takes."""
    experts = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoeMlp)]
    formats = [(expert_format(mlp.w_gate_up), expert_format(mlp.w_down)) for mlp in experts]
    return all(first is not None and first == second for first, second in formats)


class PromptPieces:
    """A model's pieces, and the memory that is passed between them.

    Args:
        cache: the memory they run on; its last slot and last block are for padding.
        most_rows: of a step, padding included.
        most_segments: of a step's lightning layers (kernels/lightning_attn/segments.py).
    """

    def __init__(
        self, model: BailingHybrid, cache: CacheTensors, most_rows: int, most_segments: int
    ) -> None:
        self._model, self._cache = model, cache
        device = model.device
        spare_slot, spare_block = cache.states.shape[1] - 1, cache.latents.shape[1] - 1
        self._spare_place = spare_block * cache.latents.shape[2]
        c = model.config
        # The number of each MLA layer, all but the last of which end a piece.
        self._ends = list(c.mla_layers)
        assert self._ends[-1] == c.num_hidden_layers - 1

        def rows(*shape: int, dtype: torch.dtype = model.dtype) -> Tensor:
            return torch.zeros(most_rows, *shape, dtype=dtype, device=device)

        heads, rope = c.num_attention_heads, c.qk_rope_head_dim
        self._token_ids, self._positions, self._places = (rows(dtype=torch.int64) for _ in range(3))
        self._stream = rows(c.hidden_size)
        self._query, self._query_rope = rows(heads, c.qk_nope_head_dim + rope), rows(heads, rope)
        self._attended = rows(heads, c.v_head_dim)
        # Segments that a step has not: without rows, each of a sequence of its own without any.
        number = torch.arange(most_segments, dtype=torch.int32, device=device)
        none = torch.zeros_like(number)
        self._no_segments = torch.stack([none, none, number], 1)
        columns = [none + spare_slot, none, none, number, number, number + 1]
        columns += [none] * (SEQUENCE_WIDTH - len(columns))
        self._no_sequences = torch.stack(columns, 1)
        self._segments, self._sequences = self._no_segments.clone(), self._no_sequences.clone()

    @property
    def num_pieces(self) -> int:
        """How many there are."""
        return len(self._ends)

    def stage(self, batch: ForwardBatch, rows: int) -> None:
        """Bring a step's numbers to where the pieces find them.

        Args:
            batch: at most most_segments segments.
            rows: that the pieces will have, at least as many as the step's tokens.
        """
        n, tables = batch.num_tokens, batch.lightning.segments
        assert tables is not None
        for mine, given, padding in (
            (self._token_ids, batch.token_ids, 0),
            (self._positions, batch.positions, 0),
            (self._places, batch.slot_mapping, self._spare_place),
        ):
            mine[:n].copy_(given)
            mine[n:rows].fill_(padding)
        self._attended[n:rows].zero_()
        for mine, given, rest in (
            (self._segments, tables.segments, self._no_segments),
            (self._sequences, tables.sequences, self._no_sequences),
        ):
            torch.cat([given, rest[len(given) :]], out=mine)

    def stage_padding(self) -> None:
        """Have nothing but padding in the next step."""
        self._token_ids.zero_()
        self._positions.zero_()
        self._places.fill_(self._spare_place)
        self._stream.zero_()
        self._attended.zero_()
        self._segments.copy_(self._no_segments)
        self._sequences.copy_(self._no_sequences)

    def run_piece(self, index: int, rows: int, num_segments: int) -> None:
        """Launch a piece on the first `rows` rows; every launch is the same for the same sizes."""
        model, cache = self._model, self._cache
        batch = self._batch(rows, num_segments)
        rotary = model.rotary_at(batch.positions)
        if index:
            layer = model.layers[self._ends[index - 1]]
            assert isinstance(layer.attention, MlaLayer)
            attention = layer.attention.output(self._attended[:rows])
            x = layer.feed_forward(self._stream[:rows], attention, batch)
            first = self._ends[index - 1] + 1
        else:
            x, first = model.embed(batch.token_ids), 0
        end = self._ends[index]
        for layer in model.layers[first:end]:
            x = layer.forward(x, rotary, batch, cache, None)
        self._stream[:rows].copy_(x)
        if index < self.num_pieces - 1:
            layer = model.layers[end]
            assert isinstance(layer.attention, MlaLayer)
            u = rms_norm(x, layer.w_input_norm, layer.eps)
            q, q_rope = layer.attention.project(u, *rotary[1], batch, cache)
            self._query[:rows].copy_(q)
            self._query_rope[:rows].copy_(q_rope)

    def attend(self, index: int, batch: ForwardBatch) -> None:
        """What comes between a piece and the next: attention to the cache."""
        attention, n = self._model.layers[self._ends[index]].attention, batch.num_tokens
        assert isinstance(attention, MlaLayer)
        q, q_rope = self._query[:n], self._query_rope[:n]
        self._attended[:n].copy_(attention.attend(q, q_rope, self._cache, batch.mla))

    def finish(self, batch: ForwardBatch) -> Tensor:
        """What comes after the last piece: hidden states, as BailingHybrid.forward."""
        model = self._model
        rotary = model.rotary_at(batch.positions)
        x = self._stream[: batch.num_tokens]
        x = model.layers[-1].forward(x, rotary, batch, self._cache, None, batch.final)
        return model.final_norm(x)

    def _batch(self, rows: int, num_segments: int) -> ForwardBatch:
        """The memory that a step is staged in, as a batch of `rows` tokens."""
        segments = SegmentTables(
            self._segments[:num_segments], self._sequences[:num_segments], rows, rows, has_gaps=True
        )
        return ForwardBatch(
            num_tokens=rows,
            token_ids=self._token_ids[:rows],
            positions=self._positions[:rows],
            slot_mapping=self._places[:rows],
            logits_indices=self._places[:0],
            lightning=LightningPlan(lightning_chunk(False), rows, for_gpu=True, segments=segments),
            # Attention is launched with the step's own plan.
            mla=MlaPlan(None, None, None, None, [], fixed_blocks=False),
            batch_invariant=False,
        )
