"""Splits an answer into thinking and the rest while it is being written.

Thinking is a `<think>` block at the very start. A `<tool_call>` before it is closed ends it, so
that a model that forgets the closing tag does not lose its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lingflash.text.tool_parser import OPEN_TAG

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
    """Watches one answer's text."""

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state: Literal["start", "opened", "thinking", "closed", "rest"] = "start"
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside the block."""
        return self._state in ("opened", "thinking")

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return the thinking and the rest that it completes."""
        if self._state == "rest":
            return "", text
        self._held += text
        thought = ""
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
            thought = self._think()
        if self._state == "closed":
            self._held = self._held.lstrip("\n")
            if self._held:
                return thought, self._give_rest()
        return thought, ""

    def finish(self) -> tuple[str, str]:
        """End the answer; return what was held back."""
        state, held = self._state, self._held
        self._state, self._held = "rest", ""
        if state == "thinking":
            return held.rstrip("\n"), ""
        return "", held if state == "start" else ""

    def _give_rest(self) -> str:
        rest, self._held, self._state = self._held, "", "rest"
        return rest

    def _think(self) -> str:
        held = self._held
        ends = [at for tag in (END_THINK_TAG, OPEN_TAG) if (at := held.find(tag)) >= 0]
        if ends:
            end = min(ends)
            is_tag = held.startswith(END_THINK_TAG, end)
            self._held = held[end + len(END_THINK_TAG) :] if is_tag else held[end:]
            self._state = "closed"
            return held[:end].rstrip("\n")
        keep = len(held)
        for tag in (END_THINK_TAG, OPEN_TAG):
            for size in range(min(len(tag) - 1, len(held)), 0, -1):
                if held.endswith(tag[:size]):
                    keep = min(keep, len(held) - size)
                    break
        keep = len(held[:keep].rstrip("\n"))
        self._held = held[keep:]
        return held[:keep]
