"""What the answers of OpenAI's two completions endpoints have in common."""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from typing import Any, Literal, assert_never

from lingflash.api.answer.generation import Generation, never_written
from lingflash.api.answer.stream import AnswerWriter
from lingflash.core.types import FinishReason, Usage
from lingflash.protocol.chat import StreamOptions
from lingflash.protocol.sse import DONE, ChunkEncoder
from lingflash.protocol.usage import openai_usage


class CompletionWriter(AnswerWriter):
    """An answer with choices, as chunks or as one body."""

    def __init__(
        self,
        generation: Generation,
        model: str,
        options: StreamOptions | None,
        *,
        id_prefix: str,
        chunk_kind: Literal["chat.completion.chunk", "text_completion"],
        kind: str,
    ) -> None:
        self._generation = generation
        self._include_usage = options is not None and bool(options.include_usage)
        self._kind = kind
        answer_id, created = id_prefix + secrets.token_hex(12), int(time.time())
        self._head = {"id": answer_id, "created": created, "model": model}
        self._encoder = ChunkEncoder(
            chunk_kind,
            answer_id=answer_id,
            created=created,
            model=model,
            num_choices=generation.num_choices,
            include_usage=self._include_usage,
            usage_so_far=self._usage_so_far if _is_continuous(options) else None,
        )

    def usage(self) -> Usage:
        """Token counts so far."""
        return self._generation.usage()

    def _usage_so_far(self) -> dict[str, Any]:
        return openai_usage(self.usage())

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._encoder.usage(openai_usage(self.usage())) + DONE

    @abstractmethod
    def whole_choices(self) -> list[dict[str, Any]]:
        """The choices of an answer that is not streamed."""

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return {
            **self._head,
            "object": self._kind,
            "choices": self.whole_choices(),
            "usage": openai_usage(self.usage()),
        }


def _is_continuous(options: StreamOptions | None) -> bool:
    return options is not None and bool(options.continuous_usage_stats)


def openai_finish_reason(
    reason: FinishReason | None, *, ended_with_calls: bool = False
) -> str | None:
    """OpenAI's word for how a choice ended; None while it goes on."""
    match reason:
        case None:
            return None
        case "stop":
            return "tool_calls" if ended_with_calls else "stop"
        case "length":
            return "length"
        case "error" | "aborted":
            raise never_written(reason)
        case _:
            assert_never(reason)
