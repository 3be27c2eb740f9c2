"""Remembers generated turns with tool calls, so that they go back into prompts unchanged.

A client sends a call back as parsed and written anew by its library. If it is one of ours, by its
id, and says the same, then what the model generated is put into the prompt: the very tokens, where
the whole turn came back, else the text of its calls. So the prompt continues what was computed
already. The store is small and in memory; what it has lost is written in the one form of the
template.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lingflash.text.answer import AnswerMessage
from lingflash.text.tokenizer import Piece
from lingflash.text.tool_parser import CLOSE_TAG, OPEN_TAG, ToolCall
from lingflash.text.tools import ToolSet

MAX_BYTES = 64 * 2**20

# What /v1/messages puts between the text blocks of a message.
BLOCK_JOINT = "\n\n"


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: str
    raw: str


@dataclass(frozen=True, slots=True)
class _Turn:
    content: str
    reasoning: str
    calls: dict[str, _Call]
    call_places: tuple[int, ...]
    token_ids: array[int]

    @property
    def texts(self) -> list[str]:
        """What was said before, between and after the calls; empty where nothing was."""
        ends = [*self.call_places, len(self.content)]
        starts = [0, *self.call_places]
        return [self.content[start:end] for start, end in zip(starts, ends, strict=True)]

    def is_said(self, content: str) -> bool:
        """Whether a message's content is ours: its texts in a row, or joined as of blocks."""
        return content == self.content or content == BLOCK_JOINT.join(filter(None, self.texts))

    @property
    def num_bytes(self) -> int:
        text = sum(2 * len(call.raw) for call in self.calls.values())
        return 512 + len(self.content) + len(self.reasoning) + text + 4 * len(self.token_ids)


class CallStore:
    """Turns by caller and call id; the least recently used go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._turns: OrderedDict[tuple[str, str], _Turn] = OrderedDict()

    def remember(
        self, caller: str, message: AnswerMessage, tools: ToolSet, token_ids: Sequence[int]
    ) -> None:
        """Keep a finished turn.

        Args:
            caller: whose it is; nobody else finds it.
            message: the turn as it was sent out.
            tools: that it called, whose names will come back.
            token_ids: the turn as it was generated, without the stop token.
        """
        if not message.calls or not all(call.is_complete for call in message.calls):
            return
        calls = {call.call_id: _sent_back(call, tools) for call in message.calls}
        places = tuple(message.call_places)
        turn = _Turn(message.content, message.reasoning, calls, places, array("I", token_ids))
        # Found by its last call, so it is one entry.
        self._turns[caller, message.calls[-1].call_id] = turn
        self._num_bytes += turn.num_bytes
        while self._num_bytes > self._max_bytes:
            _, old = self._turns.popitem(last=False)
            self._num_bytes -= old.num_bytes

    def history(self, caller: str) -> CallerHistory:
        """What one caller may find."""
        return CallerHistory(self, caller)

    def find(self, caller: str, call_id: str) -> _Turn | None:
        """The turn that ended with this call, if it is still known."""
        turn = self._turns.get((caller, call_id))
        if turn is not None:
            self._turns.move_to_end((caller, call_id))
        return turn


class CallerHistory:
    """The `History` of one caller's turns; see text/chat_prompt.py."""

    def __init__(self, store: CallStore, caller: str) -> None:
        self._store = store
        self._caller = caller

    def turn(self, message: Mapping[str, Any], *, with_reasoning: bool) -> list[Piece] | None:
        calls = message["tool_calls"]
        turn = self._store.find(self._caller, calls[-1]["id"] or "")
        if turn is None:
            return None
        for call in calls:
            ours = turn.calls.get(call["id"])
            if ours is None or not _is_same(ours, call["function"]):
                return None
        reasoning = message.get("reasoning_content", "").strip("\n") if with_reasoning else ""
        content = message["content"]
        is_whole = [call["id"] for call in calls] == list(turn.calls) and turn.is_said(content)
        # Most clients do not send thinking back; within a tool loop it still belongs to the turn.
        is_same_thinking = reasoning in ("", turn.reasoning)
        if is_whole and is_same_thinking and (with_reasoning or not turn.reasoning):
            return [Piece("", is_literal=False, token_ids=tuple(turn.token_ids))]
        if reasoning:
            return None  # the template knows how thinking is written
        texts = turn.texts if is_whole else [content]
        pieces = [Piece(texts[0], is_literal=True)] if texts[0] else []
        for i, call in enumerate(calls):
            if pieces:
                pieces.append(Piece("\n", is_literal=False))
            body = turn.calls[call["id"]].raw.removeprefix(OPEN_TAG).removesuffix(CLOSE_TAG)
            pieces.append(Piece(OPEN_TAG, is_literal=False))
            pieces.append(Piece(body, is_literal=True))
            pieces.append(Piece(CLOSE_TAG, is_literal=False))
            if i + 1 < len(texts) and texts[i + 1]:
                pieces.append(Piece(texts[i + 1], is_literal=True))
        return pieces


def _sent_back(call: ToolCall, tools: ToolSet) -> _Call:
    """A call as it will be read when its client sends it back."""
    tool = tools.called(call.name)
    if tool is None:
        return _Call(call.name, call.arguments, call.raw)
    arguments = call.arguments
    if tool.text_argument is not None:
        arguments = json.dumps({tool.text_argument: arguments})
    return _Call(tool.name, arguments, call.raw)


def _is_same(ours: _Call, function: Mapping[str, Any]) -> bool:
    arguments = function["arguments"]
    if function["name"] != ours.name or isinstance(arguments, str):
        return False
    try:
        known = json.loads(ours.arguments)
    except (ValueError, RecursionError):
        return False
    # Python holds 1, 1.0 and True for equal; their JSON differs.
    return json.dumps(known, sort_keys=True) == json.dumps(arguments, sort_keys=True)
