"""Code contexts of one sandbox, by way of the agent that runs in it (`inside/agent.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from lingflash.core.errors import InvalidRequestError, NotFoundError, SandboxError, SandboxGoneError
from lingflash.sandbox.box import Box
from lingflash.sandbox.jail.argv import entry_code
from lingflash.sandbox.process import End, Process

_MAX_LINE = 32 << 20
_MAX_CONTEXTS = 16
HOME = "/home/user"
# How a language is run; None is a Jupyter kernel.
LANGUAGES: dict[str, tuple[str, ...] | None] = {
    "python": None,
    "bash": ("/bin/bash", "-c"),
    "javascript": ("node", "-e"),
}
_ALSO = {"js": "javascript", "python3": "python", "sh": "bash"}
_EVENT_TYPES = frozenset(("stdout", "stderr", "result", "error", "number_of_executions"))


@dataclass(frozen=True, slots=True)
class Context:
    """Where code runs, one piece after the other."""

    id: str
    language: str
    cwd: str


class Contexts:
    """The contexts of a sandbox; the first use of one starts the agent.

    Args:
        python: the jail's interpreter.
        languages: what there is on this host.
        output_bytes: what one execution may write; what comes beyond is thrown away.
    """

    def __init__(self, box: Box, python: str, languages: frozenset[str], output_bytes: int) -> None:
        self._box = box
        self._python = python
        self._languages = languages
        self._output_bytes = output_bytes
        self._agent: Process | None = None
        self._starting = asyncio.Lock()
        self._defaulting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._room: dict[int, int] = {}  # bytes that an execution may still write
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}
        self.env: dict[str, str] = {}

    def all(self) -> list[Context]:
        """Those that there are."""
        return list(self._contexts.values())

    def get(self, context_id: str) -> Context:
        """One of them.

        Raises:
            NotFoundError: there is none of that id.
        """
        if context_id not in self._contexts:
            raise NotFoundError(f"Context {context_id[:60]!r} is not there; create it first.")
        return self._contexts[context_id]

    async def create(self, language: str | None = None, cwd: str | None = None) -> Context:
        """Make a context.

        Raises:
            InvalidRequestError: the language is none, the folder is not there, or there are too
                many.
        """
        name = _ALSO.get((language or "python").lower(), (language or "python").lower())
        if name not in self._languages:
            allowed = ", ".join(sorted(self._languages))
            raise InvalidRequestError(
                f"language is {name[:40]!r}; this server runs: {allowed}.", param="language"
            )
        if len(self._contexts) >= _MAX_CONTEXTS:
            raise InvalidRequestError(
                f"A sandbox has at most {_MAX_CONTEXTS} contexts; delete one."
            )
        context = Context(secrets.token_hex(16), name, cwd or HOME)
        argv = LANGUAGES[name]
        try:
            await self._ask(
                "create",
                context=context.id,
                cwd=context.cwd,
                argv=None if argv is None else list(argv),
            )
        except SandboxGoneError:
            raise
        except SandboxError as error:
            raise InvalidRequestError(f"The context could not be made: {error}.") from None
        self._contexts[context.id] = context
        return context

    async def default(self, language: str | None) -> Context:
        """The context of code that names none, made at its first use."""
        name = _ALSO.get((language or "python").lower(), (language or "python").lower())
        async with self._defaulting:
            known = self._contexts.get(self._defaults.get(name, ""))
            if known is None:
                known = await self.create(name)
                self._defaults[name] = known.id
            return known

    async def delete(self, context_id: str) -> None:
        """End a context and what runs in it."""
        self.get(context_id)
        await self._ask("delete", context=context_id)
        self._contexts.pop(context_id, None)

    async def restart(self, context_id: str) -> None:
        """Begin a context anew, without its variables."""
        context = self.get(context_id)
        argv = LANGUAGES[context.language]
        await self._ask("delete", context=context_id)
        await self._ask(
            "create",
            context=context_id,
            cwd=context.cwd,
            argv=None if argv is None else list(argv),
        )

    async def execute(
        self, context: Context, code: str, env: Mapping[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Run code; gives its events as `/execute` streams them. Left early, it is interrupted.

        Raises:
            SandboxError: it could not be run.
            SandboxGoneError: the sandbox is gone.
        """
        number, queue = await self._begin(
            "execute", context=context.id, code=code, env={**self.env, **(env or {})}
        )
        is_done = False
        try:
            while (answer := await queue.get()) is not None:
                if "event" not in answer:
                    is_done = True
                    if "failed" in answer:
                        yield _failure(str(answer["failed"]))
                    return
                event = answer["event"]
                if not isinstance(event, dict) or event.get("type") not in _EVENT_TYPES:
                    continue
                yield event
            is_done = True
            yield _failure("the process that runs code in this sandbox has ended")
        finally:
            self._answers.pop(number, None)
            self._room.pop(number, None)
            if not is_done and self._agent is not None and self._agent.end is None:
                order = {"op": "interrupt", "context": context.id}
                self._agent.write_soon(json.dumps(order).encode() + b"\n")

    async def close(self) -> None:
        """Forget everything: the processes are gone or are about to be."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._agent = self._reading = None
        self._contexts.clear()
        self._defaults.clear()

    async def _ask(self, op: str, **fields: Any) -> None:
        number, queue = await self._begin(op, **fields)
        try:
            answer = await queue.get()
        finally:
            self._answers.pop(number, None)
        if answer is None:
            raise SandboxError("the process that runs code in this sandbox has ended")
        if "failed" in answer:
            raise SandboxError(str(answer["failed"])[:1000])

    async def _begin(
        self, op: str, **fields: Any
    ) -> tuple[int, asyncio.Queue[dict[str, Any] | None]]:
        agent = await self._started()
        # Nothing in the jail can know it before: an answer that was kept or made up is nobody's.
        number = secrets.randbits(53)
        queue = self._answers[number] = asyncio.Queue()
        self._room[number] = self._output_bytes
        line = json.dumps({"op": op, "id": number, **fields}).encode() + b"\n"
        await agent.write(line)
        return number, queue

    async def _started(self) -> Process:
        async with self._starting:
            if self._agent is None or self._agent.end is not None:
                if self._reading is not None:
                    await self.close()
                argv = [self._python, "-E", "-s", "-B", "-c", entry_code("agent")]
                self._agent = await self._box.spawn(argv, stdin=True, is_unlimited=True)
                self._reading = asyncio.create_task(self._read(self._agent))
            return self._agent

    async def _read(self, agent: Process) -> None:
        """Deal the agent's lines out to who asked. They come from a jail and may be anything."""
        buffer = bytearray()
        try:
            async for event in agent.events():
                if isinstance(event, End):
                    return
                if event.fd != 1:
                    continue
                buffer += event.data
                *lines, rest = (
                    bytes(buffer).split(b"\n") if b"\n" in event.data else [bytes(buffer)]
                )
                buffer = bytearray(rest)
                if len(buffer) > _MAX_LINE:
                    agent.kill()
                    return
                for line in lines:
                    self._deal(line)
        finally:
            for queue in self._answers.values():
                queue.put_nowait(None)
            self._contexts.clear()

    def _deal(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            answer = json.loads(line)
            number = answer.get("id")
            queue = self._answers.get(number)
            if queue is None:
                return
            if "event" in answer:
                # Counted here, so that what a slow client has not read is bounded, too.
                room, self._room[number] = self._room[number], self._room[number] - len(line)
                if room <= 0:
                    return
                if room < len(line):
                    answer = {"event": self._cut(answer["event"], room)}
            queue.put_nowait(answer)

    def _cut(self, event: dict[str, Any], room: int) -> dict[str, Any]:
        """The last event that an execution may write, with as much of its text as there is room."""
        note = f"[output over {self._output_bytes} bytes is left out]\n"
        kind, text = event.get("type"), str(event.get("text", ""))
        if kind in ("stdout", "stderr"):
            return {**event, "text": f"{text[:room]}\n{note}"}
        return {"type": "stderr", "text": note, "timestamp": time.time_ns()}


def _failure(message: str) -> dict[str, Any]:
    return {"type": "error", "name": "ContextError", "value": message, "traceback": message}
