"""Sequences that may have made a step fail, and run alone until that is known.

What can be run again as it is, is run again at once, in halves (engine/recovery.py). A sequence
whose states the failed step may have folded cannot: it is computed anew, and must not take others
along when it comes to the same place. So steps of all others and steps of one suspect take turns.
"""

from __future__ import annotations

from collections.abc import Iterable

from lingflash.engine.schedule.sequence import Sequence


class Suspects:
    """The suspects of a scheduler; empty but for a while after a step has failed."""

    def __init__(self) -> None:
        self._until: dict[Sequence, int] = {}
        self._is_their_turn = False

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, sequence: Sequence, until: int) -> None:
        """Suspect a sequence until so many of its tokens are computed."""
        self._until[sequence] = max(until, self._until.get(sequence, 0))

    def discard(self, sequence: Sequence) -> None:
        """It has ended."""
        self._until.pop(sequence, None)

    def clear(self, sequence: Sequence) -> None:
        """Suspect it no more if it has got beyond the place."""
        if sequence.num_computed >= self._until.get(sequence, 0):
            self.discard(sequence)

    def turn(
        self, running: list[Sequence], waiting: Iterable[Sequence]
    ) -> tuple[list[Sequence], Iterable[Sequence]]:
        """Those who may be in the next step: one suspect, or all others.

        Nobody is admitted before a suspect that waits, so that it finds memory one day.
        """
        self._is_their_turn = not self._is_their_turn
        if self._is_their_turn:
            first = next(iter(self._until))
            return ([], [first]) if first.lease is None else ([first], [])
        others = [sequence for sequence in running if sequence not in self._until]
        does_wait = any(sequence.lease is None for sequence in self._until)
        return others, [] if does_wait else [s for s in waiting if s not in self._until]


def forget_attempt(sequence: Sequence) -> None:
    """Undo what a step that failed may have noted of a sequence besides its memory."""
    sequence.draft_tokens = []
    sequence.mtp_end = -1  # of the MTP layer's rows some may not be written
    if sequence.matcher is not None:
        sequence.matcher.restore(len(sequence.output_token_ids))
