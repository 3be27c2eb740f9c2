"""The engine in a process of its own, reached over a socket pair (messages.py).

If the engine dies, running requests end with an error event, `is_ready` turns false, and it is
started again, with pauses that grow (restarts.py). One that hangs is killed first (pulse.py). After
too many restarts `wait_dead` returns and the server exits.

What is promised to a client holds while the engine hangs, too: this side has deadlines of its own,
and a bound on the requests that the engine has not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from lingflash.core.config import EngineConfig
from lingflash.core.errors import (
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    LingflashError,
    QueueFullError,
    from_code,
)
from lingflash.core.types import EngineInfo, EngineRequest, EngineStats, TokenEvent
from lingflash.link.engine_process import EngineProcess
from lingflash.link.event_stream import EventStream
from lingflash.link.messages import (
    Abort,
    Answer,
    Events,
    Failed,
    FromEngine,
    Loading,
    Ping,
    Pong,
    Ready,
    Reset,
    ResetDone,
    Start,
    Submit,
    frame,
)
from lingflash.link.pulse import PING_EVERY_S, Pulse
from lingflash.link.restarts import Restarts, fingerprint

log = logging.getLogger(__name__)

HANG_TIMEOUT_S = 120.0
# The engine ends a late request by itself; how much later this side does, if it did not.
_DEADLINE_GRACE_S = 5.0


@dataclass(slots=True, eq=False)
class _Call:
    """A request that the engine was given and has not ended.

    Args:
        answer: whether the engine takes it; None once that is known.
        stream: None once nobody reads it. The call stays, so that its id is not used again while
            events of its last use may still arrive.
        open_choices: those that the engine has not ended.
        deadline: fires after the engine's own.
    """

    answer: asyncio.Future[None] | None
    stream: EventStream | None
    open_choices: set[int]
    deadline: asyncio.TimerHandle | None = None


class IpcEngineClient:
    """An EngineClient whose engine is a child process.

    Args:
        config: settings of the engine.
        max_restarts: how often in an hour a dead engine is started again.
        on_loading: told about bytes of weights read and in all.
        hang_timeout_s: an engine that is at one step, or does not answer, for so long is killed.
    """

    def __init__(
        self,
        config: EngineConfig,
        max_restarts: int = 0,
        on_loading: Callable[[int, int], None] | None = None,
        hang_timeout_s: float = HANG_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._restarts = Restarts(max_restarts)
        self._files = fingerprint(config.model)
        self._on_loading = on_loading
        self._hang_timeout_s = hang_timeout_s
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._process: EngineProcess | None = None
        self._pulse = Pulse()
        self._following: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ready_since_s = 0.0
        self._calls: dict[str, _Call] = {}
        self._num_unanswered = 0
        self._resets: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._reset_numbers = itertools.count()
        self._is_ready = self._draining = self._stopping = False
        self._trouble = "It is loading the model."
        self._death: EngineDeadError | None = None
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
    def trouble(self) -> str | None:
        return None if self._is_ready else self._trouble

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return None if self._process is None else self._process.pid

    async def wait_dead(self) -> EngineDeadError:
        await self._dead.wait()
        assert self._death is not None
        return self._death

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            LingflashError: what the engine said, or EngineDeadError if it died without a word.
        """
        try:
            process = self._process = await EngineProcess.launch()
        except OSError as error:
            raise EngineDeadError(f"The engine process cannot be started: {error}.") from None
        self._ready = asyncio.get_running_loop().create_future()
        process.send(Start(self._config))
        self._following = asyncio.create_task(self._follow(process))
        try:
            await self._ready
        except BaseException:
            await process.end()
            raise

    async def submit(self, request: EngineRequest) -> EventStream:
        process, loop = self._process, asyncio.get_running_loop()
        if not self._is_ready or process is None:
            raise EngineDeadError("The engine is not running; try again later.")
        request_id = request.request_id
        if request_id in self._calls:
            raise InvalidRequestError(
                f"Request id {request_id!r} is already running.", param="request_id"
            )
        most = self.info.max_num_waiting + self.info.max_num_seqs
        if self._num_unanswered >= most:
            raise QueueFullError(
                f"{self._num_unanswered} requests wait for the engine's answer already; try again "
                "later."
            )
        try:
            encoded = frame(Submit(request))
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidRequestError(
                f"The request cannot be sent to the engine: {error}"
            ) from None
        answer: asyncio.Future[None] = loop.create_future()
        stream = EventStream(request_id, request.sampling.n, self._leave)
        call = _Call(answer, stream, set(range(request.sampling.n)))
        if request.timeout_s is not None:
            late_s = request.timeout_s + _DEADLINE_GRACE_S
            call.deadline = loop.call_later(late_s, self._on_late, request_id, call)
        self._calls[request_id] = call
        self._num_unanswered += 1
        process.send_frame(encoded)
        try:
            await answer
        except LingflashError:
            raise
        except BaseException:  # cancelled while waiting for the answer
            call.stream = None
            self.abort(request_id)
            raise
        return stream

    def _leave(self, request_id: str) -> None:
        call = self._calls.get(request_id)
        if call is not None:
            call.stream = None
        self.abort(request_id)

    def _on_late(self, request_id: str, call: _Call) -> None:
        """The engine did not end a request at its deadline: end it for the client, at least."""
        error = DeadlineExceededError("The request did not finish before its deadline.")
        self._end_for_client(request_id, call, error)
        self.abort(request_id)

    def _end_for_client(self, request_id: str, call: _Call, error: LingflashError | None) -> None:
        """End what is open of a call with an error, or as aborted without one."""
        if call.answer is not None and not call.answer.done():
            call.answer.set_exception(error or EngineDeadError("The engine is being stopped."))
        stream, call.stream = call.stream, None
        if stream is None:
            return
        for choice in sorted(call.open_choices):
            stream.put(
                TokenEvent(
                    request_id=request_id,
                    choice=choice,
                    finish_reason="aborted" if error is None else "error",
                    error_code=None if error is None else error.code,
                    error_message=None if error is None else error.message,
                )
            )

    def abort(self, request_id: str) -> None:
        if self._process is not None:
            self._process.send(Abort(request_id))

    async def reset_prefix_cache(self) -> tuple[int, int]:
        if not self._is_ready or self._process is None:
            raise EngineDeadError("The engine is not running; try again later.")
        number = next(self._reset_numbers)
        done = self._resets[number] = asyncio.get_running_loop().create_future()
        self._process.send(Reset(number))
        try:
            return await done
        finally:
            del self._resets[number]

    def drain(self) -> None:
        self._draining = True

    async def stop(self) -> None:
        self._stopping = True
        self._is_ready, self._trouble = False, "It is being stopped."
        for request_id in list(self._calls):
            self.abort(request_id)
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._process is not None:
            await self._process.end()
        if self._following is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    async def _follow(self, process: EngineProcess) -> None:
        """Take in what a process says until it has ended, then see to what follows."""
        reading = asyncio.create_task(self._read(process))
        watching = asyncio.create_task(self._watch(process))
        try:
            # Not only until the connection ends: what hangs in the kernel keeps it, killed or not.
            await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            watching.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)
            await self._on_engine_gone(process)
        except Exception as error:  # nobody would ever start it again
            log.exception("what follows the engine's end has failed")
            self._give_up(f"{process.why_ended()}, and it cannot be started again: {error}")

    async def _read(self, process: EngineProcess) -> None:
        try:
            while True:
                message = await process.receive()
                self._take(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except Exception as error:
            # A reader that stops leaves the engine unheard: the engine is as good as dead.
            process.kill(f"said what cannot be understood ({type(error).__name__}: {error})")

    async def _watch(self, process: EngineProcess) -> None:
        """Return when an engine that can serve hangs, and has been killed for it."""
        self._pulse = pulse = Pulse()
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(PING_EVERY_S)
            if not self._is_ready:
                continue  # loading may take any time
            complaint = pulse.complaint(self._hang_timeout_s)
            if complaint is not None:
                process.kill(f"{complaint} (--engine-hang-timeout-s {self._hang_timeout_s:g})")
                return
            number = pulse.beat(clock())
            if number is not None:
                process.send(Ping(number))

    def _take(self, message: FromEngine) -> None:
        match message:
            case Events(events, stats):
                for event in events:
                    self._deliver(event)
                if stats is not None:
                    self._stats = stats
            case Answer(request_id, code, text, param):
                self._on_answer(
                    request_id, None if code is None else from_code(code, text, param=param)
                )
            case ResetDone(number, blocks, checkpoints):
                reset = self._resets.get(number)
                if reset is not None and not reset.done():
                    reset.set_result((blocks, checkpoints))
            case Pong(number, busy_s):
                self._pulse.answered(number, busy_s)
            case Loading(done, total):
                if self._on_loading is not None:
                    self._on_loading(done, total)
            case Ready(info):
                self._info, self._is_ready = info, True
                self._ready_since_s = asyncio.get_running_loop().time()
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case Failed(code, text, param):
                error = from_code(code, text, param=param)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(error)
                else:
                    log.error("engine failed: %s", text)

    def _on_answer(self, request_id: str, error: LingflashError | None) -> None:
        call = self._calls.get(request_id)
        if call is None or call.answer is None:
            return
        answer, call.answer = call.answer, None
        self._num_unanswered -= 1
        if error is not None:
            self._forget(request_id)
        if not answer.done():
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

    def _deliver(self, event: TokenEvent) -> None:
        call = self._calls.get(event.request_id)
        if call is None:
            return
        if call.stream is not None:
            call.stream.put(event)
        if event.finish_reason is not None:
            call.open_choices.discard(event.choice)
            if not call.open_choices:
                self._forget(event.request_id)

    def _forget(self, request_id: str) -> None:
        call = self._calls.pop(request_id)
        if call.deadline is not None:
            call.deadline.cancel()

    async def _on_engine_gone(self, process: EngineProcess) -> None:
        """End what ran, then have it started again or give up."""
        was_ready, self._is_ready = self._is_ready, False
        served_s = asyncio.get_running_loop().time() - self._ready_since_s if was_ready else 0.0
        error = EngineDeadError("The engine process ended while this request ran.")
        for request_id, call in list(self._calls.items()):
            self._end_for_client(request_id, call, None if self._stopping else error)
            self._forget(request_id)
        self._num_unanswered = 0
        for reset in self._resets.values():
            if not reset.done():
                reset.set_exception(error)
        self._stats = EngineStats()
        self._trouble = f"{process.why_ended()}."
        await process.end()
        why = process.why_ended()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                EngineDeadError(f"{why} while it was starting; see its log above.")
            )
        if self._stopping or not was_ready:
            return  # stop() waits for us, or start() says what went wrong
        self._restarting = asyncio.create_task(self._restart(why, served_s))

    async def _restart(self, why: str, served_s: float) -> None:
        """Start again until it serves, or there were too many attempts.

        Args:
            why: the last one ended, a sentence without its full stop.
            served_s: for how long that could serve.
        """
        clock = asyncio.get_running_loop().time
        try:
            while True:
                if self._draining:
                    return self._give_up(f"{why}; the server is shutting down")
                if fingerprint(self._config.model) != self._files:
                    # Tokenizer and template are still those of the old one.
                    return self._give_up(
                        f"{why}; the files of {self._config.model} were changed since the server "
                        "started: start it again"
                    )
                pause_s = self._restarts.next_pause_s(clock(), served_s)
                if pause_s is None:
                    return self._give_up(f"The engine is gone and no restarts are left. {why}")
                left = self._restarts.num_left
                log.error("%s; it is started again in %g s, %d restarts left", why, pause_s, left)
                self._trouble = f"{why}; it is being started again."
                await asyncio.sleep(pause_s)
                if self._draining:
                    continue
                try:
                    return await self.start()
                except LingflashError as error:
                    why, served_s = f"A restart failed: {error.message.rstrip('.')}", 0.0
        except Exception as error:
            log.exception("the restart has failed")
            self._give_up(f"{why}, and it cannot be started again: {type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        """Be dead for good."""
        log.error("the engine is not started again: %s", why)
        self._trouble = f"{why}."
        self._death = EngineDeadError(f"{why}.")
        self._dead.set()
