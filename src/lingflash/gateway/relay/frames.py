"""What each event of a stream is, in the dialect that it is in.

Nothing may reach the client before the first content, so that another upstream can still be tried.
Comments, a message's role and the like are therefore `quiet`: they wait for what follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from lingflash.core.types import Usage
from lingflash.gateway.accounting import Dialect
from lingflash.gateway.relay.usage import estimated_tokens, read_usage
from lingflash.link.http_client import BadAnswer
from lingflash.link.sse_reader import event_data

Kind = Literal["quiet", "content", "usage", "end", "error"]
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
_decode = msgspec.json.decode


class Frames(ABC):
    """Reads the events of one stream, and counts them.

    Args:
        usage: as the upstream last gave it.
        error: what an event of the kind `error` said.
        finish_reason: in the dialect's words.
    """

    dialect: Dialect

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.error: Any = None
        self.finish_reason: str | None = None
        self.answer_id: str | None = None
        self.has_content = False
        self._num_pieces = 0
        self._num_bytes = 0

    def read(self, event: bytes) -> tuple[Kind, dict[str, Any] | None]:
        """What an event is, and its JSON if it has some.

        Raises:
            BadAnswer: it is none of the dialect's.
        """
        try:
            text = event_data(event)
        except ValueError:
            raise BadAnswer("an event is no UTF-8") from None
        if text is None:
            return "quiet", None
        if text.strip() == "[DONE]":
            return "end", None
        try:
            data = _decode(text)
        except (msgspec.DecodeError, RecursionError):
            raise BadAnswer("an event is no JSON") from None
        if not isinstance(data, dict):
            raise BadAnswer("an event is no JSON object")
        kind = self._read(data)
        if kind == "content":
            self.has_content = True
        return kind, data

    @property
    def counted(self) -> int:
        """Tokens of the answer so far by its pieces and their bytes, where nobody tells."""
        return max(self._num_pieces, estimated_tokens(self._num_bytes))

    @property
    def is_finished(self) -> bool:
        """Whether an answer that just ends here, without the dialect's last word, is whole."""
        return self.finish_reason is not None

    @abstractmethod
    def _read(self, data: dict[str, Any]) -> Kind: ...

    def _count(self, text: Any) -> bool:
        """Count a piece of text, thinking or arguments; whether there is any."""
        if not text:
            return False
        if isinstance(text, str):
            self._num_bytes += len(text.encode("utf-8", "surrogatepass"))
        return True

    def _failed(self, error: Any) -> Kind:
        self.error = error
        return "error"


class _ChoiceFrames(Frames):
    """Chat and text completions."""

    def _read(self, data: dict[str, Any]) -> Kind:
        if data.get("error"):
            return self._failed(data["error"])
        if isinstance(data.get("id"), str):
            self.answer_id = data["id"]
        given = data.get("usage")
        if given is not None:
            self.usage = read_usage(self.dialect, given) or self.usage
        choices = data.get("choices")
        if not isinstance(choices, list):
            if given is None:
                raise BadAnswer("an event is no completion")
            choices = []
        kind: Kind = "quiet" if choices or given is None else "usage"
        for choice in choices:
            if not isinstance(choice, dict):
                raise BadAnswer("a choice is no object")
            if self._read_choice(choice):
                self._num_pieces += 1
                kind = "content"
            reason = choice.get("finish_reason")
            if reason == "error":
                return self._failed(choice.get("error") or {"message": "finish_reason is error"})
            if reason is not None:
                self.finish_reason = str(reason)
                kind = "content"
        return kind

    @abstractmethod
    def _read_choice(self, choice: dict[str, Any]) -> bool: ...


class _ChatFrames(_ChoiceFrames):
    dialect = "chat"

    def _read_choice(self, choice: dict[str, Any]) -> bool:
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return False
        found = self._count(delta.get("content"))
        for name in ("reasoning_content", "reasoning", "refusal"):
            if name in delta and self._count(delta[name]):
                found = True
        for call in delta.get("tool_calls") or ():
            found = True
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                self._count(function.get("arguments"))
        return found or bool(delta.get("function_call") or delta.get("audio"))


class _CompletionFrames(_ChoiceFrames):
    dialect = "completions"

    def _read_choice(self, choice: dict[str, Any]) -> bool:
        return self._count(choice.get("text"))


class _ResponseFrames(Frames):
    dialect = "responses"
    _QUIET = frozenset(("response.created", "response.in_progress", "response.queued"))

    def __init__(self) -> None:
        super().__init__()
        # What an event of failure needs: the object as it was last told, and the last number.
        self.response: Mapping[str, Any] = {}
        self.sequence_number = -1

    def _read(self, data: dict[str, Any]) -> Kind:
        kind = data.get("type")
        if not isinstance(kind, str):
            raise BadAnswer("an event has no type")
        if isinstance(data.get("sequence_number"), int):
            self.sequence_number = data["sequence_number"]
        response = data.get("response")
        if isinstance(response, dict):
            self.response = response
            if isinstance(response.get("id"), str):
                self.answer_id = response["id"]
            self.usage = read_usage("responses", response.get("usage")) or self.usage
        match kind:
            case "error":
                return self._failed(data.get("error") or data)
            case "response.failed":
                return self._failed(self.response.get("error"))
            case "response.completed" | "response.incomplete":
                self.finish_reason = kind.removeprefix("response.")
                self.has_content = True  # an answer may be empty
                return "end"
        if kind in self._QUIET:
            return "quiet"
        if kind.endswith(".delta") and self._count(data.get("delta")):
            self._num_pieces += 1
        return "content"


class _MessageFrames(Frames):
    dialect = "messages"

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, Any] = {}

    def _read(self, data: dict[str, Any]) -> Kind:
        match data.get("type"):
            case "error":
                return self._failed(data.get("error"))
            case "message_start":
                message = data.get("message")
                if isinstance(message, dict):
                    self.answer_id = str(message.get("id"))
                    self._take_usage(message.get("usage"))
                return "quiet"
            case "content_block_delta":
                delta = data.get("delta")
                if isinstance(delta, dict):
                    pieces = ("text", "thinking", "partial_json", "signature")
                    if any(self._count(delta.get(name)) for name in pieces):
                        self._num_pieces += 1
                return "content"
            case "message_delta":
                self._take_usage(data.get("usage"))
                delta = data.get("delta")
                if isinstance(delta, dict) and delta.get("stop_reason"):
                    self.finish_reason = str(delta["stop_reason"])
                return "content"
            case "message_stop":
                return "end"
            case "ping" | "content_block_start" | "content_block_stop":
                return "quiet"
            case str():
                return "content"
        raise BadAnswer("an event has no type")

    def _take_usage(self, given: Any) -> None:
        if isinstance(given, dict):
            self._usage |= {name: value for name, value in given.items() if value is not None}
            self.usage = read_usage("messages", self._usage)


_FRAMES: dict[Dialect, type[Frames]] = {
    "chat": _ChatFrames,
    "completions": _CompletionFrames,
    "responses": _ResponseFrames,
    "messages": _MessageFrames,
}


def frames_of(dialect: Dialect) -> Frames:
    """A reader for one stream."""
    return _FRAMES[dialect]()
