"""An answer to a conversation as a row of blocks: text, thinking, tool calls.

Responses and messages both send an answer block by block: open it, add to it, close it. This is the
one place that turns what the chat route reads from the model into such steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lingflash.api.answer.choices import ChatChoice, is_cut_off, usage_of
from lingflash.api.answer.generation import Generation
from lingflash.core.types import FinishReason, Usage
from lingflash.text.answer import AnswerEvent
from lingflash.text.output import OutputDelta
from lingflash.text.reasoning import Reasoning
from lingflash.text.tool_parser import CallDelta, CallEnd, CallStart
from lingflash.text.tools import Tool

BlockKind = Literal["text", "reasoning", "call"]


@dataclass(slots=True)
class Block:
    """One piece of an answer.

    Args:
        tool: that a call is of, if there is one of its name.
        pieces: its text so far; of a call, the JSON of its arguments, or a custom tool's text.
        is_complete: False if the answer was cut off inside it; a call never is.
    """

    index: int
    kind: BlockKind
    call_id: str = ""
    name: str = ""
    tool: Tool | None = None
    pieces: list[str] = field(default_factory=list)
    is_complete: bool = True

    @property
    def is_custom(self) -> bool:
        """Whether it is a call of a custom tool, whose input is text."""
        return self.tool is not None and self.tool.kind == "custom"

    @property
    def own_name(self) -> str:
        """The called tool's name as its client knows it."""
        return self.name if self.tool is None else self.tool.own_name

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class BlockStep:
    """What happened to a block."""

    action: Literal["open", "add", "close"]
    block: Block
    text: str = ""


class Turn:
    """Reads the one choice of a generation into blocks."""

    def __init__(self, choice: ChatChoice) -> None:
        self._choice = choice
        self._open: Block | None = None
        self.blocks: list[Block] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def usage(self, generation: Generation) -> Usage:
        """Token counts so far, those of thinking among them."""
        return usage_of(generation, [self._choice])

    @property
    def num_calls(self) -> int:
        """Tool calls so far."""
        return sum(block.kind == "call" for block in self.blocks)

    @property
    def ends_with_call(self) -> bool:
        """Whether nothing came after the last call."""
        return bool(self.blocks) and self.blocks[-1].kind == "call"

    def take(self, delta: OutputDelta) -> list[BlockStep]:
        """Take what one event added; return the steps that it makes."""
        steps: list[BlockStep] = []
        self._read(self._choice.take(delta), steps)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason
            if self._open is not None and is_cut_off(delta.finish_reason):
                self._open.is_complete = False
            self._close(steps)
        return steps

    async def collect(self, generation: Generation) -> None:
        """Read a whole answer."""
        async for deltas in generation.deltas():
            for _, delta in deltas:
                self.take(delta)

    def _read(self, events: Sequence[AnswerEvent], steps: list[BlockStep]) -> None:
        for event in events:
            match event:
                case str():
                    if event:
                        self._add("text", event, steps)
                case Reasoning(text):
                    self._add("reasoning", text, steps)
                case CallStart(_, call_id, name):
                    self._close(steps)
                    tool = self._choice.tools.called(name)
                    self._begin(Block(len(self.blocks), "call", call_id, name, tool), steps)
                case CallDelta(_, arguments):
                    self._add("call", arguments, steps)
                case CallEnd():
                    self._close(steps)

    def _add(self, kind: BlockKind, text: str, steps: list[BlockStep]) -> None:
        if self._open is None or self._open.kind != kind:
            self._close(steps)
            self._begin(Block(len(self.blocks), kind), steps)
        assert self._open is not None
        self._open.pieces.append(text)
        steps.append(BlockStep("add", self._open, text))

    def _begin(self, block: Block, steps: list[BlockStep]) -> None:
        self._open = block
        self.blocks.append(block)
        steps.append(BlockStep("open", block))

    def _close(self, steps: list[BlockStep]) -> None:
        if self._open is not None:
            steps.append(BlockStep("close", self._open))
            self._open = None
