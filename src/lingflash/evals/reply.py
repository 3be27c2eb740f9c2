"""A streamed chat completion, put together again."""

from __future__ import annotations

import json
from typing import Any

from lingflash.evals.task import Reply, Tokens


class BrokenAnswer(Exception):
    """The stream ended early, held an error, or is none of a chat completion."""


class ReplyReader:
    """Takes the data of each event, in order."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._tokens: Tokens | None = None

    def feed(self, data: str) -> None:
        """Take one event.

        Raises:
            BrokenAnswer: it is none that belongs to an answer.
        """
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise BrokenAnswer(f"an error in the stream: {data[:200]}")
            if chunk.get("usage"):
                self._tokens = read_tokens(chunk["usage"])
            for choice in chunk["choices"]:
                self._feed_delta(choice.get("delta") or {})
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise BrokenAnswer(f"no chunk of a chat completion: {data[:200]}") from None

    def _feed_delta(self, delta: dict[str, Any]) -> None:
        self._content.append(delta.get("content") or "")
        # Two names are in use.
        self._reasoning.append(delta.get("reasoning_content") or delta.get("reasoning") or "")
        for part in delta.get("tool_calls") or ():
            call = self._calls.setdefault(
                part.get("index", 0), {"id": "", "name": "", "arguments": []}
            )
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"].append(function.get("arguments") or "")

    def reply(self) -> Reply:
        """The answer.

        Raises:
            BrokenAnswer: it has not ended.
        """
        if self._finish_reason is None:
            raise BrokenAnswer("the stream ended before the answer")
        if self._finish_reason == "error":
            raise BrokenAnswer("the answer ended with an error")
        calls = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
            }
            for _, call in sorted(self._calls.items())
        ]
        return Reply(
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            tool_calls=calls,
            finish_reason=self._finish_reason,
            tokens=self._tokens,
        )


def read_tokens(usage: dict[str, Any]) -> Tokens:
    """OpenAI's `usage`, of which only the two sums are always there.

    Raises:
        KeyError, TypeError, ValueError: they are not.
    """
    prompt = usage.get("prompt_tokens_details") or {}
    completion = usage.get("completion_tokens_details") or {}
    return Tokens(
        prompt=int(usage["prompt_tokens"]),
        cached=int(prompt.get("cached_tokens") or 0),
        completion=int(usage["completion_tokens"]),
        reasoning=int(completion.get("reasoning_tokens") or 0),
    )
