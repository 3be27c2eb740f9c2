"""The engine's process at work: requests in, steps, events out."""

from __future__ import annotations

import logging
import queue
import time

from lingflash.core.config import EngineConfig
from lingflash.core.errors import EngineError, LingflashError
from lingflash.core.types import TokenEvent
from lingflash.engine.grammar_thread import Compiled, GrammarThreads
from lingflash.engine.loop import EngineLoop
from lingflash.engine.process.connection import Connection
from lingflash.engine.process.self_test import run_self_test
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.link.messages import (
    Abort,
    Answer,
    Events,
    Loading,
    Reset,
    ResetDone,
    Submit,
    ToEngine,
)

log = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[ToEngine | Compiled | None]

_STATS_INTERVAL_S = 0.25
_PROGRESS_INTERVAL_S = 0.1


def load(config: EngineConfig, connection: Connection) -> EngineLoop:
    """Load the model, telling of it, and test it.

    Raises:
        LingflashError: it cannot be loaded or does not fit.
        SystemExit: the server is gone.
    """
    last_told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last_told
        now = time.monotonic()
        if now - last_told > _PROGRESS_INTERVAL_S or done == total:
            last_told = now
            try:
                connection.send(Loading(done, total))
            except OSError:
                raise SystemExit(0) from None  # no fault of the file that is being read

    loop = EngineLoop(config, ModelRunner.from_config(config, tell))
    run_self_test(loop)
    return loop


def serve(connection: Connection, inbox: Inbox, loop: EngineLoop) -> None:
    """Take messages, step while there is work, send events; returns when the server has closed.

    Raises:
        EngineError: the engine is of no more use.
        OSError: the server is gone.
    """
    compiling = GrammarThreads(loop.grammars, inbox.put, loop.scheduler.max_num_waiting)
    last_stats = 0.0
    was_busy = True
    while True:
        out: list[Answer | ResetDone] = []
        events: list[TokenEvent] = []
        while not inbox.empty() or not (loop.has_work or was_busy):
            connection.mark_busy(False)
            message = inbox.get()
            connection.mark_busy(True)
            if message is None:
                return
            was_busy = True
            if isinstance(message, Submit | Compiled):
                answer = _accept(loop, compiling, message)
                if answer is not None:
                    out.append(answer)
            elif isinstance(message, Reset):
                out.append(ResetDone(message.number, *loop.reset_prefix_cache()))
            elif isinstance(message, Abort):
                events += compiling.abort(message.request_id)
                events += loop.abort(message.request_id)
        # Answers leave before the step that may take long, so that a client knows it was accepted.
        if out:
            connection.send(*out)
        connection.mark_busy(True)
        if loop.has_work:
            events += loop.step()
        now = time.monotonic()
        stats = None
        if now - last_stats > _STATS_INTERVAL_S or not loop.has_work:
            last_stats, stats = now, loop.stats()
        was_busy = loop.has_work
        if events or stats is not None:
            connection.send(Events(events, stats))


def _accept(
    loop: EngineLoop, compiling: GrammarThreads, message: Submit | Compiled
) -> Answer | None:
    """Queue a request; the answer to it, None if that has to wait until its grammar is compiled."""
    request = message.request
    answer = Answer(request.request_id)
    try:
        if isinstance(message, Submit) and request.grammar is not None:
            loop.scheduler.validate(request)
            compiling.submit(request)
            return None
        if isinstance(message, Submit):
            loop.add(request)
        elif compiling.is_wanted(message):
            loop.add(request, message.result())
        else:
            return None
    except LingflashError as error:
        answer.code, answer.message, answer.param = error.code, error.message, error.param
    except Exception as error:  # whatever it is, it must not take other requests along
        log.exception("a request could not be taken")
        answer.code = EngineError.code
        answer.message = f"The request failed: {type(error).__name__}. See the server's log."
    return answer
