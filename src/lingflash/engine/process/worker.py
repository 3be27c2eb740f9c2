"""Main program of the engine process: python -m lingflash.engine.process.worker FD.

Torch is loaded once there is somebody to tell that it cannot be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import resource
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from lingflash.core.errors import EngineError, LingflashError, ModelLoadError
from lingflash.core.log import flush_logs, setup_logging
from lingflash.engine.process.connection import Connection
from lingflash.link.messages import Failed, Ready, Start

if TYPE_CHECKING:
    from lingflash.engine.loop import EngineLoop
    from lingflash.engine.process.serving import Inbox

log = logging.getLogger(__name__)


def main(fd: int) -> int:
    """Serve the parent at the other end of socket `fd` until it hangs up; the exit code."""
    # A Ctrl-C or a SIGTERM to the whole group is the server's business: it drains, then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(socket.socket(fileno=fd))
    try:
        start = connection.receive()
    except msgspec.MsgspecError as error:
        log.critical("the server's first message cannot be understood: %s", error)
        return 1
    if start is None:
        return 0
    assert isinstance(start, Start)
    inbox: Inbox = queue.SimpleQueue()
    try:
        loop = _load(start, connection, inbox)
    except LingflashError as error:
        with contextlib.suppress(OSError):
            connection.send(Failed(error.code, error.message, error.param))
        return 1
    try:
        from lingflash.engine.process.serving import serve

        connection.send(Ready(loop.info))
        serve(connection, inbox, loop)
    except EngineError as error:
        log.critical("engine gives up: %s", error)
        loop.runner.hang_up()
        flush_logs()
        # A device that still waits for a rank that is gone would hold up a tidy end.
        os._exit(1)
    except OSError as error:
        log.debug("the server is gone", exc_info=error)
        return 0  # and so is the reason to go on
    except Exception as error:
        log.critical("the engine ends by a fault of its own", exc_info=error)
        return 1
    return int(connection.has_failed)


def _load(start: Start, connection: Connection, inbox: Inbox) -> EngineLoop:
    """Load the model, whatever may come of that.

    Raises:
        LingflashError: a sentence why it cannot be.
    """
    try:
        threading.Thread(target=connection.receive_all, args=(inbox,), daemon=True).start()
        from lingflash.engine.process.serving import load

        return load(start.config, connection)
    except LingflashError:
        raise
    except Exception as error:
        log.debug("the model cannot be loaded", exc_info=error)
        lines = str(error).strip().splitlines()
        what = type(error).__name__ + (f": {lines[0].rstrip('.')}" if lines else "")
        raise ModelLoadError(f"The engine cannot start ({what}).{_memory_note()}") from None


def _memory_note() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f" Its address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), which may be too "
        "little; unlimited is best, since memory is reserved in large pieces."
    )


if __name__ == "__main__":
    setup_logging(os.environ.get("LINGFLASH_LOG_LEVEL", "info"))
    code = main(int(sys.argv[1]))
    flush_logs(1.0)
    sys.exit(code)
