"""Tells an engine that hangs from one that has much to do, by its answers to pings."""

from __future__ import annotations

PING_EVERY_S = 1.0


class Pulse:
    """For how long an engine has not got anywhere; asked about once in PING_EVERY_S.

    The engine's reading thread answers even while a step hangs, with the time that step has taken.
    A stopped process, or native code that keeps the interpreter's lock, does not answer at all.
    """

    def __init__(self) -> None:
        self._number = 0
        self._is_answered = True
        self._busy_s = self._silent_s = 0.0
        self._last_s: float | None = None

    def beat(self, now_s: float) -> int | None:
        """Number of a ping to send now, None if one is under way."""
        if self._last_s is not None and not self._is_answered:
            # Time in which this process itself stood still says nothing about the engine.
            self._silent_s += min(now_s - self._last_s, 2 * PING_EVERY_S)
        self._last_s = now_s
        if not self._is_answered:
            return None
        self._silent_s, self._is_answered = 0.0, False
        self._number += 1
        return self._number

    def answered(self, number: int, busy_s: float) -> None:
        """Take an answer in."""
        if number == self._number:
            self._is_answered, self._silent_s, self._busy_s = True, 0.0, busy_s

    def complaint(self, limit_s: float) -> str | None:
        """What is wrong, to go on after "The engine process"; None if nothing is."""
        if self._busy_s > limit_s:
            return f"hangs: it has been at one step for {self._busy_s:.0f} s"
        if self._silent_s > limit_s:
            return f"hangs: it has not answered for {self._silent_s:.0f} s"
        return None
