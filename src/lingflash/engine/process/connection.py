"""The engine's end of the connection to its server; loads without torch."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from typing import Any

from lingflash.link.frames import read_frame
from lingflash.link.messages import Ping, Pong, ToEngine, frame, to_engine_decoder

log = logging.getLogger(__name__)


class Connection:
    """Sends from two threads: the engine's own, and the one that reads and answers pings.

    Args:
        sock: blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._busy_since_s: float | None = None
        self.has_failed = False

    def send(self, *messages: Any) -> None:
        """Send messages, in order.

        Raises:
            OSError: the server is gone.
        """
        encoded = b"".join(map(frame, messages))
        with self._lock:
            self._sock.sendall(encoded)

    def mark_busy(self, is_busy: bool) -> None:
        """Note that a piece of the engine's work begins, or that it waits for some."""
        self._busy_since_s = time.monotonic() if is_busy else None

    def receive(self) -> ToEngine | None:
        """The next message, None if the server has hung up.

        Raises:
            msgspec.MsgspecError: it cannot be decoded.
        """
        body = read_frame(self._sock)
        return None if body is None else to_engine_decoder.decode(body)

    def receive_all(self, inbox: queue.SimpleQueue[Any]) -> None:
        """Thread: messages into the inbox, pings answered, None at the end, whatever it is."""
        try:
            while (message := self.receive()) is not None:
                if isinstance(message, Ping):
                    since_s = self._busy_since_s
                    busy_s = 0.0 if since_s is None else time.monotonic() - since_s
                    self.send(Pong(message.number, busy_s))
                else:
                    inbox.put(message)
        except OSError:
            pass  # the server is gone
        except Exception as error:
            self.has_failed = True
            log.critical("a message of the server cannot be understood: %s", error)
        finally:
            inbox.put(None)
