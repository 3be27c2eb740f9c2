"""Server-sent events of streamed answers, encoded with little work per token.

All chunks of a stream share everything but a few characters of text. The shared bytes are made
once per choice; a plain text chunk then costs one JSON string and one concatenation. Any other
chunk (first, last, tool calls, logprobs, usage) is encoded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from lingflash.core.types import PromptProgress

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode
_MARK = "\x00text\x00"


def sse_event(value: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + _encode(value) + b"\n\n"


PROGRESS = "prompt_progress"


def progress_comment(progress: PromptProgress) -> bytes:
    """How far a prompt is computed, as a comment: clients that do not know it pass over it."""
    return f": {PROGRESS} ".encode() + _encode(progress) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """One event with its name and a JSON payload."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + _encode(value) + b"\n\n"


class ChunkEncoder:
    """Encodes the chunks of one streamed answer.

    Args:
        include_usage: chunks then carry `usage: null`, and the last one the numbers.
        usage_so_far: makes the numbers for every chunk; slower.
    """

    def __init__(
        self,
        kind: Literal["chat.completion.chunk", "text_completion"],
        *,
        answer_id: str,
        created: int,
        model: str,
        num_choices: int,
        include_usage: bool,
        usage_so_far: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._head = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._is_chat = kind == "chat.completion.chunk"
        self._include_usage = include_usage
        self._usage_so_far: Callable[[], dict[str, Any]] | None = None
        self._frames = [self._frame(index) for index in range(num_choices)]
        self._usage_so_far = usage_so_far

    def text(self, index: int, text: str) -> bytes:
        """A chunk that only adds text to a choice."""
        if self._usage_so_far is not None:
            return self.choice(self._text_choice(index, text))
        before, after = self._frames[index]
        return before + _encode(text) + after

    def choice(self, choice: dict[str, Any], extra: dict[str, Any] | None = None) -> bytes:
        """A chunk with any content."""
        chunk = {**self._head, "choices": [choice]}
        if self._usage_so_far is not None:
            chunk["usage"] = self._usage_so_far()
        elif self._include_usage:
            chunk["usage"] = None
        if extra:
            chunk.update(extra)
        return sse_event(chunk)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk before the end that tells the usage."""
        return sse_event({**self._head, "choices": [], "usage": usage})

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        before, after = self.choice(self._text_choice(index, _MARK)).split(_encode(_MARK))
        return before, after

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self._is_chat:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        return {**choice, "logprobs": None, "finish_reason": None}
