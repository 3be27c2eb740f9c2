"""Splits an answer into thinking and the rest while it is being written.

Thinking is a `<think>` block at the very start. A tool call before it is closed ends it, so that a
model that forgets the closing tag does not lose what it says after its calls; if the tag does come,
later, it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

THINK_TAG = "<think>"
END_THINK_TAG = "</think>"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thinking.

    Args:
        text: without the newlines that the template writes around it.
    """

    text: str


class ReasoningSplitter:
    """Watches one answer's text; its tool calls have been taken out."""

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state: Literal["start", "opened", "thinking", "called", "closed", "rest"] = "start"
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside the block."""
        return self._state in ("opened", "thinking")

    @property
    def is_done(self) -> bool:
        """Whether all further text is the rest."""
        return self._state == "rest"

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return the thinking and the rest that it completes."""
        if self._state == "rest":
            return "", text
        self._held += text
        thought = rest = ""
        if self._state == "start":
            stripped = self._held.lstrip()
            if stripped.startswith(THINK_TAG):
                self._state, self._held = "opened", stripped[len(THINK_TAG) :]
            elif THINK_TAG.startswith(stripped):
                return "", ""
            else:
                return "", self._give_rest()
        if self._state == "opened":
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = "thinking"
        if self._state == "thinking":
            thought = self._until_end("\n")
        elif self._state == "called":
            rest = self._until_end(None)
        if self._state == "closed":
            self._held = self._held.lstrip("\n")
            if self._held:
                rest += self._give_rest()
        return thought, rest

    def take_call(self) -> tuple[str, str]:
        """A tool call comes here; return what was held back before it."""
        was_thinking, state = self.is_thinking, self._state
        said = self.finish()
        if was_thinking or state == "called":
            self._state = "called"
        return said

    def finish(self) -> tuple[str, str]:
        """End the answer; return what was held back."""
        state, held = self._state, self._held
        self._state, self._held = "rest", ""
        if state == "thinking":
            return held.rstrip("\n"), ""
        return "", held if state in ("start", "called") else ""

    def _give_rest(self) -> str:
        rest, self._held, self._state = self._held, "", "rest"
        return rest

    def _until_end(self, blanks: str | None) -> str:
        """Text before the closing tag, or what cannot become one.

        Args:
            blanks: characters directly before the tag that belong to it; None for all white space.
        """
        held = self._held
        end = held.find(END_THINK_TAG)
        if end >= 0:
            self._held = held[end + len(END_THINK_TAG) :]
            self._state = "closed"
            return held[:end].rstrip(blanks)
        keep = len(held)
        for size in range(min(len(END_THINK_TAG) - 1, len(held)), 0, -1):
            if held.endswith(END_THINK_TAG[:size]):
                keep -= size
                break
        keep = len(held[:keep].rstrip(blanks))
        self._held = held[keep:]
        return held[:keep]
