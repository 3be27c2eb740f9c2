"""Main program of the engine process: python -m lingflash.engine.process.worker FD."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time

from lingflash.core.errors import EngineError, LingflashError
from lingflash.core.types import TokenEvent
from lingflash.engine.grammar_thread import Compiled, GrammarThreads
from lingflash.engine.loop import EngineLoop
from lingflash.engine.process.self_test import run_self_test
from lingflash.engine.run.model_runner import ModelRunner
from lingflash.link import ipc
from lingflash.link.frames import read_frame

log = logging.getLogger(__name__)

Inbox = queue.SimpleQueue[ipc.ToEngine | Compiled | None]

_STATS_INTERVAL_S = 0.25
_PROGRESS_INTERVAL_S = 0.1


def main(fd: int) -> int:
    """Serve the parent at the other end of socket `fd` until it hangs up; the exit code."""
    # A Ctrl-C or a SIGTERM to the whole group is the server's business: it drains, then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    body = read_frame(sock)
    if body is None:
        return 0
    start = ipc.to_engine_decoder.decode(body)
    assert isinstance(start, ipc.Start)
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sock, inbox), daemon=True).start()
    try:
        last_told = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal last_told
            now = time.monotonic()
            if now - last_told > _PROGRESS_INTERVAL_S or done == total:
                last_told = now
                sock.sendall(ipc.frame(ipc.Loading(done, total)))

        loop = EngineLoop(start.config, ModelRunner.from_config(start.config, tell))
        run_self_test(loop)
    except LingflashError as error:
        sock.sendall(ipc.frame(ipc.Failed(error.code, error.message, error.param)))
        return 1
    sock.sendall(ipc.frame(ipc.Ready(loop.info)))
    try:
        _serve(sock, inbox, loop)
    except EngineError as error:
        log.critical("engine gives up: %s", error)
        loop.runner.hang_up()
        logging.shutdown()
        # A device that still waits for a rank that is gone would hold up a tidy end.
        os._exit(1)
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the server is gone, and so is the reason to go on
    return 0


def _receive(sock: socket.socket, inbox: Inbox) -> None:
    """Thread: messages of the server into the inbox, None at the end."""
    try:
        while (body := read_frame(sock)) is not None:
            inbox.put(ipc.to_engine_decoder.decode(body))
    except OSError:
        pass
    inbox.put(None)


def _serve(sock: socket.socket, inbox: Inbox, loop: EngineLoop) -> None:
    """Take messages, step while there is work, send events; returns when the server has closed."""
    compiling = GrammarThreads(loop.grammars, inbox.put, loop.scheduler.max_num_waiting)
    last_stats = 0.0
    was_busy = True
    while True:
        out: list[ipc.Answer | ipc.ResetDone] = []
        events: list[TokenEvent] = []
        while not inbox.empty() or not (loop.has_work or was_busy):
            message = inbox.get()
            if message is None:
                return
            was_busy = True
            if isinstance(message, ipc.Submit | Compiled):
                answer = ipc.Answer(message.request.request_id)
                try:
                    if isinstance(message, ipc.Submit) and message.request.grammar is not None:
                        loop.scheduler.validate(message.request)
                        compiling.submit(message.request)
                        continue  # the answer waits until it is compiled
                    if isinstance(message, ipc.Submit):
                        loop.add(message.request)
                    elif compiling.is_wanted(message):
                        loop.add(message.request, message.result())
                    else:
                        continue
                except LingflashError as error:
                    answer.code, answer.message = error.code, error.message
                    answer.param = error.param
                out.append(answer)
            elif isinstance(message, ipc.Reset):
                out.append(ipc.ResetDone(message.number, *loop.reset_prefix_cache()))
            elif isinstance(message, ipc.Abort):
                events += compiling.abort(message.request_id)
                events += loop.abort(message.request_id)
        # Answers leave before the step that may take long, so that a client knows it was accepted.
        if out:
            sock.sendall(b"".join(map(ipc.frame, out)))
        if loop.has_work:
            events += loop.step()
        now = time.monotonic()
        stats = None
        if now - last_stats > _STATS_INTERVAL_S or not loop.has_work:
            last_stats, stats = now, loop.stats()
        was_busy = loop.has_work
        if events or stats is not None:
            sock.sendall(ipc.frame(ipc.Events(events, stats)))


if __name__ == "__main__":
    logging.basicConfig(
        level=os.environ.get("LINGFLASH_LOG_LEVEL", "info").upper(),
        format="%(asctime)s %(levelname)s engine %(name)s: %(message)s",
    )
    sys.exit(main(int(sys.argv[1])))
