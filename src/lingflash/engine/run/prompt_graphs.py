"""Short prompts on the GPU as CUDA graphs: pieces of the model for some numbers of rows.

A step of up to 512 tokens takes as long as reading the experts' weights does, some 25 ms for
Ling-2.6-flash in FP8, and its thousand launches take a host as long or longer. So its layers are
graphs (models/cuda_prompt.py), of the next larger number of rows; the rows beyond are padding.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lingflash.engine.memory.tensors import PROMPT_ROWS
from lingflash.engine.schedule.step import SchedulerOutput
from lingflash.kernels.graph_capture import capture_graph
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.models.cuda_prompt import PromptPieces
from lingflash.models.forward_batch import CacheTensors, ForwardBatch

log = logging.getLogger(__name__)

# Segments of lightning attention that graphs are made for: a prompt alone, and several or beside a
# decoding batch. Programs of those that a step has not end at once.
_SEGMENTS = (4, 72)
# Beyond one for each sequence, and one for what lies behind the fold of each prompt, a step may have
# some where a prompt is longer than a segment, or leaves its states on the way.
_MORE_SEGMENTS = 3


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
        self._pieces = PromptPieces(model, cache, PROMPT_ROWS[-1], _SEGMENTS[-1])
        # By rows and segments: a graph of each piece.
        self._graphs: dict[tuple[int, int], list[torch.cuda.CUDAGraph]] = {}
        self._pool: Any = None

    def capture_all(self, pool: Any) -> None:
        """Make the graphs of prompts alone, the largest first; the others are made when needed.

        Args:
            pool: memory of other graphs, none of whose results may still be wanted at a replay.
        """
        self._pool = pool
        if not self._use_graphs:
            return
        start = time.monotonic()
        for rows in reversed(PROMPT_ROWS):
            self._captured(rows, _SEGMENTS[0])
        log.info(
            "captured prompts of up to %d tokens in %d sizes in %.1f s", PROMPT_ROWS[-1],
            len(PROMPT_ROWS), time.monotonic() - start,
        )  # fmt: skip

    def can_run(self, output: SchedulerOutput) -> bool:
        """Whether a step has few enough tokens and segments, among them a prompt's."""
        scheduled = output.scheduled
        if not len(scheduled) < output.num_tokens <= PROMPT_ROWS[-1] or output.has_drafts:
            return False
        segments = sum(min(item.num_tokens, 2) for item in scheduled) + _MORE_SEGMENTS
        return segments <= _SEGMENTS[-1]

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """As BailingHybrid.forward of a step that can_run() found short enough."""
        tables = batch.lightning.segments
        assert tables is not None
        rows = next(n for n in PROMPT_ROWS if n >= batch.num_tokens)
        num_segments = next(n for n in _SEGMENTS if n >= tables.num_segments)
        run = self._piece(rows, num_segments)
        self._pieces.stage(batch, rows)
        for index in range(self._pieces.num_pieces):
            if index:
                self._pieces.attend(index - 1, batch)
            run(index)
        return self._pieces.finish(batch)

    def _piece(self, rows: int, num_segments: int) -> Any:
        """What runs a piece of these sizes, by its index."""
        if not self._use_graphs:
            return partial(self._pieces.run_piece, rows=rows, num_segments=num_segments)
        graphs = self._captured(rows, num_segments)
        return lambda index: graphs[index].replay()

    def _captured(self, rows: int, num_segments: int) -> list[torch.cuda.CUDAGraph]:
        """The graphs of these sizes, made if they are not there; what is staged is undone."""
        key = rows, num_segments
        if key not in self._graphs:
            self._pieces.stage_padding()
            self._graphs[key] = []
            for index in range(self._pieces.num_pieces):
                run = partial(self._pieces.run_piece, index, rows, num_segments)
                graph, _ = capture_graph(run, self._pool)
                self._pool = graph.pool()
                self._graphs[key].append(graph)
        return self._graphs[key]
