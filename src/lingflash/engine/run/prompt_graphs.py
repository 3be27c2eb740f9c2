"""Prompts on the GPU as CUDA graphs: pieces of the model for some numbers of rows.

A step of a few hundred tokens takes as long as reading the experts' weights does, 25 ms for
Ling-2.6-flash in FP8, and its thousand launches take a host as long or three times as long. So its
layers are graphs (models/cuda_prompt.py), of the next larger number of rows; the rows beyond are
padding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lingflash.engine.memory.tensors import (
    MOST_PROMPT_ROWS,
    MOST_PROMPT_SEGMENTS,
    PROMPT_ROWS,
)
from lingflash.engine.schedule.step import SchedulerOutput
from lingflash.kernels.graph_capture import capture_graph
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cuda_prompt import PromptPieces
from lingflash.models.forward_batch import CacheTensors, ForwardBatch

log = logging.getLogger(__name__)

# Beyond one segment for each sequence, and one for what lies behind the fold of each prompt, a step
# may have some where its prompts are longer than a segment, or leave their states on the way.
_MORE_SEGMENTS = 5


class PromptGraphs:
    """Runs steps of few enough tokens and sequences; see ways/prompt_graph.py.

    Args:
        cache: the memory they run on; its last slot and last block are for padding.
        use_graphs: False launches one by one, which is how this is tested without a GPU.
    """

    def __init__(
        self, model: BailingHybrid, cache: CacheTensors, *, use_graphs: bool = True
    ) -> None:
        self._use_graphs = use_graphs
        self._pieces = PromptPieces(model, cache, MOST_PROMPT_ROWS, MOST_PROMPT_SEGMENTS)
        # By segments and rows: a graph of each piece.
        self._graphs: dict[tuple[int, int], list[torch.cuda.CUDAGraph]] = {}

    def capture_all(self, pool: Any) -> None:
        """Make every graph, the largest first, so that the others use its memory.

        Args:
            pool: memory of other graphs, none of whose results may still be wanted at a replay.
        """
        if not self._use_graphs:
            return
        start = time.monotonic()
        sizes = [(segments, n) for segments, all_rows in PROMPT_ROWS.items() for n in all_rows]
        for segments, rows in sorted(sizes, reverse=True):
            self._pieces.stage_padding()
            for index in range(self._pieces.num_pieces):
                run = partial(self._pieces.run_piece, index, rows, segments)
                graph, _ = capture_graph(run, pool)
                pool = graph.pool()
                self._graphs.setdefault((segments, rows), []).append(graph)
        log.info(
            "captured prompts of up to %d tokens in %d sizes in %.1f s", MOST_PROMPT_ROWS,
            len(sizes), time.monotonic() - start,
        )  # fmt: skip

    def can_run(self, output: SchedulerOutput) -> bool:
        """Whether a step has few enough tokens and segments, among them a prompt's."""
        scheduled = output.scheduled
        if not len(scheduled) < output.num_tokens <= MOST_PROMPT_ROWS or output.has_drafts:
            return False
        segments = sum(min(item.num_tokens, 2) for item in scheduled) + _MORE_SEGMENTS
        return segments <= MOST_PROMPT_SEGMENTS

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """As BailingHybrid.forward of a step that can_run() found short enough."""
        tables = batch.lightning.segments
        assert tables is not None
        segments = next(n for n in PROMPT_ROWS if n >= tables.num_segments)
        rows = next(n for n in PROMPT_ROWS[segments] if n >= batch.num_tokens)
        run = self._piece(rows, segments)
        self._pieces.stage(batch, rows)
        for index in range(self._pieces.num_pieces):
            if index:
                self._pieces.attend(index - 1, batch)
            run(index)
        return self._pieces.finish(batch)

    def _piece(self, rows: int, segments: int) -> Callable[[int], None]:
        """What runs a piece of these sizes, by its index."""
        if not self._use_graphs:
            return partial(self._pieces.run_piece, rows=rows, num_segments=segments)
        graphs = self._graphs[segments, rows]
        return lambda index: graphs[index].replay()
