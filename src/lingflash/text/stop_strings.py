"""Finds stop strings in text that comes in pieces.

Text is held back only as long as it may still become a stop string, so a reader sees everything
else at once and never a part of a stop string. The first match to be completed wins; of several
completed by the same character, the longest. The result does not depend on how the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class StopStringMatcher:
    """Watches one sequence's text.

    Args:
        stop: the strings, none of them empty.
    """

    __slots__ = ("_firsts", "_held", "_max_held", "_stop")

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._max_held = max((len(s) for s in self._stop), default=1) - 1
        self._held = ""
        firsts = "".join(sorted({re.escape(s[0]) for s in self._stop}))
        self._firsts = re.compile(f"[{firsts}]") if firsts else None

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Take more text; return what may be shown and the stop string, if one was completed.

        Args:
            may_stop: False ignores matches that end in this text (the answer is still too short).

        Returns:
            The text before the match, or all text that cannot be the start of one, and the match or
            None. After a match nothing more may be pushed.
        """
        if self._firsts is None or not text:
            return text, None
        buffer = self._held + text
        if may_stop:
            best: tuple[int, int, str] | None = None
            for stop in self._stop:
                # A match that ends in held text was passed over while may_stop was False.
                start = buffer.find(stop, max(0, len(self._held) - len(stop) + 1))
                if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                    best = (start + len(stop), start, stop)
            if best is not None:
                self._held = ""
                return buffer[: best[1]], best[2]
        keep = self._prefix_start(buffer)
        self._held = buffer[keep:]
        return buffer[:keep], None

    def finish(self) -> str:
        """End the text; return what was held back."""
        held, self._held = self._held, ""
        return held

    def _prefix_start(self, buffer: str) -> int:
        """Where the longest end of the buffer begins that a stop string begins with."""
        assert self._firsts is not None
        for match in self._firsts.finditer(buffer, max(0, len(buffer) - self._max_held)):
            tail = buffer[match.start() :]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stop):
                return match.start()
        return len(buffer)
