"""Whether and when an engine that has ended is started again, and what its end is called."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from pathlib import Path

WINDOW_S = 3600.0
"""Restarts count against the limit for so long."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# An engine that served for so long had no lasting fault: the next pause is short again.
_HEALTHY_S = 60.0

_SIGNAL_NOTES = {
    signal.SIGKILL: "perhaps the kernel's out-of-memory killer",
    signal.SIGBUS: "a file that it had mapped was cut short, or its disk failed",
    signal.SIGSEGV: "a fault in native code",
    signal.SIGABRT: "native code gave up, perhaps for want of memory",
}


class Restarts:
    """Pauses before restarts: each twice the one before, within a limit on their number.

    Args:
        most: in an hour; 0 never starts again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._times: deque[float] = deque(maxlen=max(most, 1))
        self._pause_s = _FIRST_PAUSE_S

    def next_pause_s(self, now_s: float, served_s: float) -> float | None:
        """Count a restart; how long to wait before it, or None if there have been too many.

        Args:
            now_s: the clock.
            served_s: how long the engine that has ended was able to serve; 0 if it never was.
        """
        while self._times and now_s - self._times[0] > WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self.most:
            return None
        if served_s >= _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._times.append(now_s)
        return pause_s

    @property
    def num_left(self) -> int:
        """Restarts that are left, as of the last call."""
        return self.most - len(self._times)


def describe_exit(code: int | None) -> str:
    """What a process's return code means, to go on after "The engine process"."""
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    note = _SIGNAL_NOTES.get(number)
    return f"was ended by {number.name}{f' ({note})' if note else ''}"


def fingerprint(model: str) -> dict[str, tuple[int, int]]:
    """Sizes and times of a model folder's files, to see whether they were replaced.

    Args:
        model: nothing is known of one that is no folder.
    """
    found: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(OSError, ValueError):
        for entry in os.scandir(Path(model).expanduser()):
            if entry.name.endswith((".json", ".safetensors", ".jinja")):
                known = entry.stat()
                found[entry.name] = known.st_size, known.st_mtime_ns
    return found
