"""Decode graphs of a split model: rank 0 stages a step, all ranks run the graph of its size.

A step is told as the numbers that go to the device: 64 bytes for each row of the graph and the
places of new blocks, none of them read back from a GPU. All ranks draw the same tokens from the
same logits, so that a step may be launched before anybody knows the tokens that it takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.ranks import Ranks

# Steps that another rank's device may be behind its host: one for each buffer of numbers.
_MOST_UNDER_WAY = 2


class LeadGraphs(DecodeGraphs):
    """Rank 0's graphs; what it does with them, the others do.

    Args:
        ranks: the others.
        given, options: see DecodeGraphs.
    """

    def __init__(self, ranks: Ranks, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._ranks = ranks

    def capture_all(self) -> None:
        self._ranks.tell("make_graphs")
        with self._ranks.stay_together():
            super().capture_all()

    def _bring(self, staged: Tensor, places: list[int], blocks: list[int]) -> None:
        self._ranks.tell("decode", staged.numpy().tobytes(), places, blocks)
        with self._ranks.stay_together():
            super()._bring(staged, places, blocks)

    def _compute(self, rows: int) -> tuple[Tensor, Tensor]:
        with self._ranks.stay_together():
            return super()._compute(rows)


class FollowingGraphs(DecodeGraphs):
    """Another rank's graphs; arguments as DecodeGraphs."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._under_way: deque[torch.cuda.Event] = deque()

    @torch.inference_mode()
    def follow(self, numbers: bytes, places: Seq[int], blocks: Seq[int]) -> Tensor:
        """Run a step that rank 0 runs.

        Args:
            numbers: what it staged.
            places, blocks: of the block tables, as it wrote them.

        Returns:
            The tokens, on the device.
        """
        if len(self._under_way) == _MOST_UNDER_WAY:
            self._under_way.popleft().synchronize()
        self._buffers.reverse()
        given = np.frombuffer(numbers, dtype=np.int64)
        staged = self._buffers[0][0, : len(given)]
        staged.numpy()[:] = given
        self._bring(staged, list(places), list(blocks))
        _, tokens = self._compute(self.rows_of(staged))
        if self._device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            self._under_way.append(done)
        return tokens
