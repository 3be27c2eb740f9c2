"""An answer to a conversation as a row of blocks: text, thinking, tool calls.

Responses and messages both send an answer block by block: open it, add to it, close it. This is the
one place that turns what the chat route reads from the model into such steps. Where the server runs
code itself, an answer goes on after a call of it: in another round, from another generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lingflash.api.answer.choices import ChatChoice, is_cut_off, usage_of
from lingflash.api.answer.generation import Answering, Deltas
from lingflash.core.types import FinishReason, Usage
from lingflash.text.answer import AnswerEvent
from lingflash.text.output import OutputDelta
from lingflash.text.reasoning import Reasoning
from lingflash.text.tool_parser import CallDelta, CallEnd, CallStart
from lingflash.text.tools import Tool

BlockKind = Literal["text", "reasoning", "call"]
CodeStatus = Literal["in_progress", "interpreting", "completed", "incomplete", "failed"]


@dataclass(slots=True)
class CodeRun:
    """What became of code that the model called.

    Args:
        status: "incomplete" if it was not run, or stopped; "failed" if its container ended.
        outputs: OpenAI's: logs and images.
        has_error: it raised.
    """

    container_id: str
    status: CodeStatus = "in_progress"
    outputs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    has_error: bool = False


@dataclass(slots=True)
class Block:
    """One piece of an answer.

    Args:
        tool: that a call is of, if there is one of its name.
        pieces: its text so far; of a call, the JSON of its arguments, or the text of a custom
            tool's call, or code.
        run: of a call of code.
        is_complete: False if the answer was cut off inside it; a call never is.
    """

    index: int
    kind: BlockKind
    call_id: str = ""
    name: str = ""
    tool: Tool | None = None
    pieces: list[str] = field(default_factory=list)
    is_complete: bool = True
    run: CodeRun | None = None

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
    """What happened to a block; of one with code also that it is run, and that it has ended."""

    action: Literal["open", "add", "close", "run", "end"]
    block: Block
    text: str = ""


class Turn:
    """Reads the one choice of a generation into blocks.

    Args:
        container: the id of where code runs, asked for each call of it; None where none is run.
    """

    def __init__(self, choice: ChatChoice, container: Callable[[], str] | None = None) -> None:
        self._choices = [choice]
        self._container = container
        self._open: Block | None = None
        self._told: list[BlockStep] = []
        self._num_before = 0  # blocks of earlier rounds
        self.blocks: list[Block] = []
        # Of the whole answer: None while code is to be run.
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def usage(self, generation: Answering) -> Usage:
        """Token counts so far, those of thinking among them."""
        return usage_of(generation, self._choices)

    @property
    def round_blocks(self) -> list[Block]:
        """The blocks of this round."""
        return self.blocks[self._num_before :]

    @property
    def code_calls(self) -> list[Block]:
        """Calls of code in this round."""
        return [block for block in self.round_blocks if block.run is not None]

    @property
    def calls_others(self) -> bool:
        """Whether this round calls a tool that is the client's to run."""
        return any(block.kind == "call" and block.run is None for block in self.round_blocks)

    def tell(self, step: BlockStep) -> None:
        """Have a step written with what is taken next."""
        self._told.append(step)

    def begin_round(self, choice: ChatChoice) -> None:
        """Go on with what reads another generation."""
        self._choices.append(choice)
        self._num_before = len(self.blocks)

    @property
    def num_calls(self) -> int:
        """Calls so far of tools that are the client's to run."""
        return sum(block.kind == "call" and block.run is None for block in self.blocks)

    @property
    def ends_with_call(self) -> bool:
        """Whether nothing came after the last call."""
        return bool(self.blocks) and self.blocks[-1].kind == "call"

    def take(self, deltas: Deltas) -> list[BlockStep]:
        """Take what was added; return the steps that it makes, and those that were told."""
        steps, self._told = self._told, []
        for _, delta in deltas:
            self._take(delta, steps)
        return steps

    def _take(self, delta: OutputDelta, steps: list[BlockStep]) -> None:
        self._read(self._choices[-1].take(delta), steps)
        reason = delta.finish_reason
        if reason is None:
            return
        if self._open is not None and is_cut_off(reason):
            self._open.is_complete = False
        self._close(steps)
        if is_cut_off(reason):
            for block in self.code_calls:
                assert block.run is not None
                block.run.status = "incomplete"
                steps.append(BlockStep("end", block))
        elif self.code_calls:
            return
        self.finish_reason, self.stop_reason = reason, delta.stop_reason

    async def collect(self, generation: Answering) -> None:
        """Read a whole answer."""
        async for deltas in generation.deltas():
            self.take(deltas)

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
                    tool = self._choices[-1].tools.called(name)
                    block = Block(len(self.blocks), "call", call_id, name, tool)
                    if self._container is not None and tool is not None and tool.kind == "code":
                        block.run = CodeRun(self._container())
                    self._begin(block, steps)
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
