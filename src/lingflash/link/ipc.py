"""The engine in a process of its own, reached over a socket pair with length-prefixed msgpack
frames.

    server process                               engine process (worker.py)
    IpcEngineClient  -- Start, Submit, Abort, Reset -->  EngineLoop
                     <-- Loading, Ready, Answer, ResetDone, Events --

If the engine dies, running requests end with an error event, `is_ready` turns false, and it is
started again up to `max_restarts` times; after that `wait_dead` returns and the server exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from lingflash.core.config import EngineConfig
from lingflash.core.errors import (
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    LingflashError,
    from_code,
)
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats, TokenEvent
from lingflash.link import frames
from lingflash.link.event_stream import EventStream

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 5.0
_RESTART_PAUSE_S = 0.5


class Start(msgspec.Struct, tag=True):
    """First message to the engine."""

    config: EngineConfig


class Submit(msgspec.Struct, tag=True):
    """Serve this."""

    request: EngineRequest


class Abort(msgspec.Struct, tag=True):
    """End this request."""

    request_id: str


class Reset(msgspec.Struct, tag=True):
    """Forget every computed prefix."""

    number: int


class ResetDone(msgspec.Struct, tag=True):
    """It was done: blocks and state checkpoints that were forgotten."""

    number: int
    blocks: int
    checkpoints: int


class Loading(msgspec.Struct, tag=True):
    """Bytes of weights read so far and in all."""

    done: int
    total: int


class Ready(msgspec.Struct, tag=True):
    """The engine can serve."""

    info: EngineInfo


class Failed(msgspec.Struct, tag=True):
    """The engine cannot start or go on; it exits after this."""

    code: str
    message: str
    param: str | None = None


class Answer(msgspec.Struct, tag=True):
    """Whether a request was accepted; code is None if it was."""

    request_id: str
    code: str | None = None
    message: str = ""
    param: str | None = None


class Events(msgspec.Struct, tag=True):
    """What one step did, and the gauges now and then."""

    events: list[TokenEvent]
    stats: EngineStats | None = None


ToEngine = Start | Submit | Abort | Reset
FromEngine = Loading | Ready | Failed | Answer | ResetDone | Events

encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)


def frame(message: Any) -> bytes:
    """One message, encoded."""
    return frames.frame(encoder.encode(message))


class IpcEngineClient:
    """An EngineClient whose engine is a child process.

    Args:
        config: settings of the engine.
        max_restarts: how often a dead engine is started again.
        on_loading: told about bytes of weights read and in all.
    """

    def __init__(
        self,
        config: EngineConfig,
        max_restarts: int = 0,
        on_loading: Callable[[int, int], None] | None = None,
    ) -> None:
        self._config = config
        self._restarts_left = max_restarts
        self._on_loading = on_loading
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._answers: dict[str, asyncio.Future[None]] = {}
        self._resets: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._reset_numbers = itertools.count()
        self._streams: dict[str, EventStream] = {}
        # Choices that the engine has not ended; kept past an abort, so that an id is not used again
        # while events of its last use may still arrive.
        self._open_choices: dict[str, set[int]] = {}
        self._is_ready = self._stopping = False
        self._dead = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        """What the engine serves.

        Raises:
            EngineError: start() has not returned yet.
        """
        if self._info is None:
            raise EngineError("The engine has not been started.")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The newest gauges and counters received."""
        return self._stats

    @property
    def is_ready(self) -> bool:
        """Whether the engine runs and has loaded its model."""
        return self._is_ready

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return None if self._process is None else self._process.pid

    async def wait_dead(self) -> None:
        """Return when the engine is gone for good, not after stop()."""
        await self._dead.wait()

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            LingflashError: what the engine said, or EngineDeadError if it died without a word.
        """
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        # Idle OpenMP threads that spin steal the second core from the server.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lingflash.engine.process.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        ours.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        self._ready = asyncio.get_running_loop().create_future()
        self._writer.write(frame(Start(self._config)))
        self._reading = asyncio.create_task(self._read(reader))
        try:
            await self._ready
        except BaseException:
            await self._end_process()
            raise

    async def submit(self, request: EngineRequest) -> EventStream:
        """See EngineClient.submit."""
        if not self._is_ready or self._writer is None:
            raise EngineDeadError("The engine is not running; try again later.")
        request_id = request.request_id
        if request_id in self._open_choices:
            raise InvalidRequestError(
                f"Request id {request_id!r} is already running.", param="request_id"
            )
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream = EventStream(request_id, request.sampling.n, self._leave)
        self._answers[request_id] = answer
        self._streams[request_id] = stream
        self._open_choices[request_id] = set(range(request.sampling.n))
        self._writer.write(frame(Submit(request)))
        try:
            await answer
        except LingflashError:
            self._streams.pop(request_id, None)
            self._open_choices.pop(request_id, None)
            raise
        except BaseException:  # cancelled while waiting for the answer
            self._streams.pop(request_id, None)
            self.abort(request_id)
            raise
        finally:
            self._answers.pop(request_id, None)
        return stream

    def _leave(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self.abort(request_id)

    def abort(self, request_id: str) -> None:
        """See EngineClient.abort."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(Abort(request_id)))

    async def reset_prefix_cache(self) -> tuple[int, int]:
        """See EngineClient.reset_prefix_cache."""
        if not self._is_ready or self._writer is None:
            raise EngineDeadError("The engine is not running; try again later.")
        number = next(self._reset_numbers)
        done = self._resets[number] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(Reset(number)))
        try:
            return await done
        finally:
            del self._resets[number]

    async def stop(self) -> None:
        """See EngineClient.stop."""
        self._stopping = True
        self._is_ready = False
        for request_id in list(self._streams):
            self.abort(request_id)
        await self._end_process()
        if self._reading is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    async def _end_process(self) -> None:
        """Close the connection, which ends the engine; kill it if it does not listen."""
        if self._writer is not None:
            # uvloop raises RuntimeError on a connection that the engine's death has closed.
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._writer.write_eof()
        process = self._process
        if process is None:
            return
        deadline = asyncio.get_running_loop().time() + _STOP_TIMEOUT_S
        while process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                process.kill()
                process.wait()
                break
            await asyncio.sleep(0.01)
        if self._writer is not None:
            self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._take(from_engine_decoder.decode(await frames.receive_frame(reader)))
        await self._on_engine_gone()

    def _take(self, message: FromEngine) -> None:
        match message:
            case Events(events, stats):
                for event in events:
                    self._deliver(event)
                if stats is not None:
                    self._stats = stats
            case Answer(request_id, code, text, param):
                answer = self._answers.get(request_id)
                if answer is not None and not answer.done():
                    if code is None:
                        answer.set_result(None)
                    else:
                        answer.set_exception(from_code(code, text, param=param))
            case ResetDone(number, blocks, checkpoints):
                reset = self._resets.get(number)
                if reset is not None and not reset.done():
                    reset.set_result((blocks, checkpoints))
            case Loading(done, total):
                if self._on_loading is not None:
                    self._on_loading(done, total)
            case Ready(info):
                self._info, self._is_ready = info, True
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case Failed(code, text, param):
                error = from_code(code, text, param=param)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(error)
                else:
                    log.error("engine failed: %s", text)

    def _deliver(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is not None:
            stream.put(event)
        if event.finish_reason is not None:
            still_open = self._open_choices.get(event.request_id, set())
            still_open.discard(event.choice)
            if not still_open:
                self._open_choices.pop(event.request_id, None)
                self._streams.pop(event.request_id, None)

    async def _on_engine_gone(self) -> None:
        """End what ran, then start again or give up."""
        was_ready, self._is_ready = self._is_ready, False
        message = "The engine process ended while this request ran."
        for answer in [*self._answers.values(), *self._resets.values()]:
            if not answer.done():
                answer.set_exception(EngineDeadError(message))
        for request_id, choices in list(self._open_choices.items()):
            for choice in sorted(choices):
                self._deliver(
                    TokenEvent(
                        request_id=request_id,
                        choice=choice,
                        finish_reason="aborted" if self._stopping else "error",
                        error_code=None if self._stopping else EngineDeadError.code,
                        error_message=None if self._stopping else message,
                    )
                )
        self._stats = EngineStats()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                EngineDeadError(
                    "The engine process ended while it was starting; see its log above."
                )
            )
        if self._stopping or not was_ready:
            return  # stop() waits for us, or start() says what went wrong
        await self._end_process()
        code = self._process.returncode if self._process is not None else None
        while self._restarts_left > 0 and not self._stopping:
            self._restarts_left -= 1
            log.error("engine ended with code %s; restarting, %d left", code, self._restarts_left)
            await asyncio.sleep(_RESTART_PAUSE_S)
            try:
                await self.start()
            except LingflashError as error:
                log.error("restart failed: %s", error)
            else:
                return
        if not self._stopping:
            log.error("engine ended with code %s; no restarts left", code)
            self._dead.set()
