"""One `ling serve` as a child process: where it listens, whether it serves, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque

from lingflash.cluster.config import ReplicaTable
from lingflash.link.http_client import Address
from lingflash.link.replica_probe import probe
from lingflash.link.restarts import describe_exit
from lingflash.protocol.replicas import Health

# What `ling serve` tells people once it is ready.
_SERVING = re.compile(r"^serving .+ on (http://\S+)/v1$")
_NUM_KEPT_LINES = 12
_POLL_S = 0.05
# A server that does not answer for so long is not ready; for so much longer, it hangs.
_DEAF_S, _HUNG_S = 15.0, 60.0
# From the end of a drain to the end of the process.
_GRACE_S = 15.0


class ServeChild:
    """A server that is started here; it ends with the thread that made this, too.

    Args:
        host: address that it listens on, with a port of its own choice.
        token: its API key.
    """

    def __init__(self, replica: ReplicaTable, host: str, token: str) -> None:
        self.url: str | None = None
        self._token = token
        self._is_draining = False
        self._health = Health(ready=False)
        self._heard_s = 0.0
        self._drain_timeout_s = replica.drain_timeout_s
        self._lines: deque[str] = deque(maxlen=_NUM_KEPT_LINES)
        environment = {**os.environ, "LINGFLASH_API_KEY": token}
        self._process = subprocess.Popen(
            _command(replica, host),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read_lines, name="child-log", daemon=True).start()

    def why_ended(self) -> str | None:
        """Why it has ended or is to be ended, with its last lines; None while it runs."""
        code = self._process.poll()
        if code is not None:
            return f"ling serve {describe_exit(code)}: {' / '.join(self._lines)}"
        if self._heard_s and time.monotonic() - self._heard_s > _HUNG_S:
            return f"ling serve hangs: it has not answered for {_HUNG_S:g} s"
        return None

    async def health(self) -> Health:
        """What it says on /ready; not ready while nobody knows where it listens.

        One that has too much to do to answer in time is as it was, for a while.
        """
        if self.url is None or self._process.poll() is not None:
            return Health(ready=False)
        health = await probe(Address.parse_any(self.url, self._token))
        if health is not None:
            self._health, self._heard_s = health, time.monotonic()
        elif time.monotonic() - self._heard_s > _DEAF_S:
            self._health = Health(ready=False)
        return self._health

    async def drain(self) -> None:
        """SIGTERM: it refuses what is new, finishes what runs, and ends. Killed if it does not."""
        if not self._is_draining:  # a second one would end it at once
            self._is_draining = True
            self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._drain_timeout_s + _GRACE_S):
                while self._process.poll() is None:
                    await asyncio.sleep(_POLL_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _read_lines(self) -> None:
        """Keep its last lines, find where it listens, and pass all on to our own log."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            line = line.rstrip("\n")
            self._lines.append(line)
            if (found := _SERVING.match(line)) is not None:
                self.url = found[1]
            print(line, file=sys.stderr, flush=True)


def _command(replica: ReplicaTable, host: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lingflash.cluster.serve_child", str(os.getpid())),
        *("serve", replica.model, "--host", host, "--port", "0", "--no-ui"),
        *("--drain-timeout-s", str(replica.drain_timeout_s), *replica.flags),
    ]
