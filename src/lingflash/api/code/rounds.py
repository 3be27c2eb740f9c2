"""An answer in rounds: the model calls code, the server runs it, and the model goes on with what it
gave, until it calls none.

Calls are run when their round has ended, one after the other. Where a round also calls a tool of
the client's, the answer ends with it: the client sends that result, and the code's are in the
history.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from lingflash.api.answer.blocks import Block, BlockStep, Turn
from lingflash.api.answer.choices import ChatChoice, chat_choices
from lingflash.api.answer.conversation import Conversation, make_conversation
from lingflash.api.answer.generation import Deltas, Generation
from lingflash.api.answer.prepare import prepare_chat
from lingflash.api.code.containers import Container, Containers
from lingflash.api.code.outputs import Outputs, text_of
from lingflash.api.state import ServerState
from lingflash.core.errors import (
    CapacityError,
    ContextLengthError,
    DeadlineExceededError,
    NotFoundError,
    SandboxGoneError,
)
from lingflash.core.types import CodeUsage, PromptProgress, SamplingParams, Usage
from lingflash.httpd.auth import caller_of
from lingflash.link.sandbox_server import Sandbox
from lingflash.protocol.chat import ChatOptions
from lingflash.text.messages import call_of

MAX_CALLS = 20
"""Of an answer whose request names no limit: a model may call code for ever. A gateway in front
reserves money for so many (`gateway/relay/bounds.py`)."""

_ENDED = (
    "[the container has ended, with its files and variables; the next code begins in a new one]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeWish:
    """What a request says of the code that its answer may run.

    Args:
        container: where it runs; None for one that is made when code is called.
        max_calls: further ones are not run.
        keeps: the container is there for later requests.
    """

    container: Container | None = None
    max_calls: int | None = None
    keeps: bool = True


class Rounds:
    """Stands where an answer's one generation does.

    Args:
        generation: the first, already started.
    """

    def __init__(
        self,
        state: ServerState,
        request: Request,
        options: ChatOptions,
        conversation: Conversation,
        generation: Generation,
        wish: CodeWish,
    ) -> None:
        assert state.containers is not None
        self._state = state
        self._containers: Containers = state.containers
        self._owner = caller_of(request)
        # Whoever sends the answer watches the connection; two readers of it would be in the way.
        self._request = Request(request.scope, receive=_never)
        self._options = options
        self._conversation = conversation
        self._generation = generation
        self._choice = self._new_choice()
        self.turn = Turn(self._choice, self._container_id)
        self._max_calls = MAX_CALLS if wish.max_calls is None else wish.max_calls
        self._most_tokens = options.max_completion_tokens
        limit_s = options.timeout or state.config.request_timeout_s
        self._ends_at = None if limit_s is None else time.monotonic() + limit_s
        self._keeps = wish.keeps
        self._container = wish.container
        if self._container is not None:
            self._container.num_users += 1
        self._made: list[Container] = []
        self._past: list[Usage] = []
        self._num_calls = 0
        self._seconds = 0.0
        self._output_bytes = 0
        self._running: asyncio.Task[None] | None = None
        self._is_aborted = self._is_whole = self._is_closed = False
        self._id = "code-" + secrets.token_hex(12)
        state.in_flight[self._id] = self.abort

    @property
    def sampling(self) -> SamplingParams:
        return self._generation.sampling

    async def deltas(self) -> AsyncIterator[Deltas]:
        """Yield what the answer gains; nothing at all, too, where the turn has a step to tell.

        Raises:
            LingflashError: the engine failed, or there is nowhere to run code.
        """
        turn = self.turn
        while True:
            async for deltas in self._generation.deltas():
                yield deltas
            if turn.finish_reason is not None:
                break
            for block in turn.code_calls:
                if self._num_calls < self._max_calls:
                    self._num_calls += 1
                    turn.tell(BlockStep("run", block))
                    yield []
                    await self._run(block)
                else:
                    assert block.run is not None
                    note = f"[not run: max_tool_calls is {self._max_calls}]\n"
                    block.run.status = "incomplete"
                    block.run.outputs = [{"type": "logs", "logs": note}]
                turn.tell(BlockStep("end", block))
                yield []
            if turn.calls_others:
                turn.finish_reason = "stop"
            elif not await self._begin_next():
                turn.finish_reason = "length"
            if turn.finish_reason is not None:
                yield []
                break
        self._is_whole = True

    def take_progress(self) -> PromptProgress | None:
        return self._generation.take_progress()

    def usage(self) -> Usage:
        """Token counts of all rounds so far, and what the code took."""
        rounds = [*self._past, self._generation.usage()]
        drafts = [usage.drafts for usage in rounds if usage.drafts is not None]
        reports = [usage.cache_reports for usage in rounds if usage.cache_reports is not None]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in rounds),
            cached_tokens=sum(usage.cached_tokens for usage in rounds),
            completion_tokens=sum(usage.completion_tokens for usage in rounds),
            drafts=(sum(d[0] for d in drafts), sum(d[1] for d in drafts)) if drafts else None,
            cache_reports=tuple(each for some in reports for each in some) if reports else None,
            code=CodeUsage(
                calls=self._num_calls, seconds=self._seconds, output_bytes=self._output_bytes
            ),
        )

    def abort(self) -> None:
        """End what is generated or run; the reader gets the error of an aborted request."""
        self._is_aborted = True
        self._generation.abort()
        if self._running is not None:
            self._running.cancel()

    async def close(self, error: BaseException | None = None) -> None:
        """Release everything; of an answer that is not whole its containers go, too."""
        if self._is_closed:
            return
        self._is_closed = True
        self._state.in_flight.pop(self._id, None)
        if self._container is not None and self._container not in self._made:
            self._container.num_users -= 1
        for container in self._made:
            container.num_users -= 1
            if not (self._is_whole and self._keeps) or container.sandbox is None:
                self._containers.forget(container)
        await self._generation.close(error)

    # Running code.

    def _container_id(self) -> str:
        """The id of where the next code runs, whose sandbox may not be made yet."""
        if self._container is None:
            self._container = self._containers.add(self._owner, name="auto", is_auto=True)
            self._container.num_users += 1
            self._made.append(self._container)
        return self._container.id

    async def _run(self, block: Block) -> None:
        """Run a call's code.

        Raises:
            CapacityError: the answer was aborted meanwhile, or there is no sandbox free.
        """
        self._check_aborted()
        self._running = asyncio.create_task(self._execute(block))
        try:
            await self._running
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self._check_aborted()
            raise
        finally:
            self._running = None

    async def _execute(self, block: Block) -> None:
        run = block.run
        assert run is not None
        run.container_id, run.status = self._container_id(), "interpreting"
        container = self._container
        assert container is not None
        outputs = Outputs()
        deadline = asyncio.timeout(self._left_s())
        try:
            async with deadline, container.busy, self._containers.open(container) as sandbox:
                await self._collect(sandbox, block.text, outputs)
            run.status = "completed"
        except TimeoutError:
            if deadline.expired():
                raise _too_late() from None
            outputs.note(f"[stopped after {self._containers.run_s:g} s]")
            run.status = "incomplete"
        except (NotFoundError, SandboxGoneError) as error:
            is_ours = container.is_auto
            if not is_ours or (container.sandbox is None and isinstance(error, SandboxGoneError)):
                raise  # its client named one that is not there, or none can be made
            outputs.note(_ENDED)
            run.status = "failed"
            self._containers.forget(container)
            if container not in self._made:
                container.num_users -= 1
            self._container = None
        finally:
            run.outputs, run.has_error = outputs.whole(), outputs.has_error
            self._output_bytes += outputs.num_bytes

    async def _collect(self, sandbox: Sandbox, code: str, outputs: Outputs) -> None:
        """Run code to its end.

        Raises:
            TimeoutError: it took longer than it may; it is interrupted.
        """
        began = time.monotonic()
        running = self._containers.sandboxes.execute(sandbox, code)
        try:
            async with asyncio.timeout(self._containers.run_s), contextlib.aclosing(running):
                async for event in running:
                    outputs.add(event)
        finally:
            self._seconds += time.monotonic() - began

    def _left_s(self) -> float | None:
        """Seconds until the request's deadline."""
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    # The next round.

    async def _begin_next(self) -> bool:
        """Start the next round; False where neither context nor limit leaves a token for it."""
        await self._generation.close()
        done = self._generation.usage()
        self._check_aborted()
        left_s = self._left_s()
        if left_s is not None and left_s <= 0:
            raise _too_late()
        changes: dict[str, Any] = {"tool_choice": self._next_choice()}
        if self._most_tokens is not None:
            used = sum(usage.completion_tokens for usage in (*self._past, done))
            if used >= self._most_tokens:
                return False
            changes["max_completion_tokens"] = self._most_tokens - used
        if left_s is not None:
            changes["timeout"] = left_s
        options = self._options.model_copy(update=changes)
        conversation = make_conversation(
            self._state,
            options,
            [*self._conversation.messages, *self._round_messages()],
            self._conversation.tools,
            self._conversation.dropped,
        )
        try:
            generation = await prepare_chat(self._state, self._request, options, conversation)
        except ContextLengthError:
            return False
        self._check_aborted()
        self._past.append(done)
        self._conversation, self._generation = conversation, generation
        await generation.start(_never)
        if self._is_aborted:
            generation.abort()
        self._choice = self._new_choice()
        self.turn.begin_round(self._choice)
        return True

    def _round_messages(self) -> list[dict[str, Any]]:
        """What was said in the last round, as a later request would say it."""
        said, blocks = self._choice.message, self.turn.code_calls
        tools, limit = self._conversation.tools, self._state.engine.info.max_model_len
        calls = [call_of(block.call_id, *tools.code_call(block.text)) for block in blocks]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.content,
            "tool_calls": calls,
        }
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        results = [
            {
                "role": "tool",
                "content": text_of(block.run.outputs, limit),
                "tool_call_id": block.call_id,
            }
            for block in blocks
            if block.run is not None
        ]
        return [message, *results]

    def _next_choice(self) -> Any:
        """A tool_choice that was done is auto; code that would not be run is not offered."""
        tools, choice = self._conversation.tools, self._options.tool_choice
        if self._num_calls >= self._max_calls:
            others = [
                {"type": "function", "function": {"name": tool.name}}
                for tool in tools
                if tool.kind != "code"
            ]
            if choice == "none" or not others:
                return "none"
            return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": others}}
        if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
            return {**choice, "allowed_tools": {**choice["allowed_tools"], "mode": "auto"}}
        return choice if choice in (None, "none") else "auto"

    def _new_choice(self) -> ChatChoice:
        return chat_choices(self._state, self._conversation, 1, self._owner)[0]

    def _check_aborted(self) -> None:
        if self._is_aborted:
            raise CapacityError(
                "The request was aborted because the server is shutting down; try again."
            ) from None


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("The request did not finish before its deadline.")


async def _never() -> Any:
    """The connection's channel for who does not watch it."""
    await asyncio.Event().wait()
