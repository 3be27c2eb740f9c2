"""What ran in a sandbox lately and what it wrote: a bounded number of bytes, in memory alone."""

from __future__ import annotations

import codecs
import shlex
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lingflash.sandbox.process import End, Hearer, Output

_MAX_CHARS = 1 << 16
_MAX_ENTRIES = 1000
_MAX_SOURCE_CHARS = 2000
Level = Literal["debug", "info", "error"]
"""debug: what was started, and how it ended. info: its output. error: what it complained of."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece of output, or that something began or ended.

    Args:
        at: of `time.time()`.
        source: what tells runs apart, such as `process 7`.
    """

    at: float
    level: Level
    source: str
    message: str


class Journal:
    """The last entries of one sandbox."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._chars = 0
        self._runs = 0

    def __iter__(self) -> Iterator[Entry]:
        """The oldest first."""
        return iter(self._entries)

    def note(self, level: Level, source: str, message: str) -> None:
        """Add an entry; the oldest go."""
        if not message:
            return
        message = message[-_MAX_CHARS:]
        self._entries.append(Entry(time.time(), level, source, message))
        self._chars += len(message)
        while self._chars > _MAX_CHARS or len(self._entries) > _MAX_ENTRIES:
            self._chars -= len(self._entries.popleft().message)

    def of_process(self, argv: Sequence[str]) -> Hearer:
        """Who hears a program that is about to start."""
        source = self._begin("process", shlex.join(argv))
        decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in (1, 2)}

        def hear(event: Output | End) -> None:
            if isinstance(event, Output):
                level: Level = "info" if event.fd == 1 else "error"
                self.note(level, source, decoders[event.fd].decode(event.data))
            else:
                self.note("debug", source, _told(event))

        return hear

    def of_code(self, language: str, code: str) -> CodeHearer:
        """Who hears code that is about to run in a kernel."""
        return CodeHearer(self, self._begin(language, code))

    def _begin(self, kind: str, what: str) -> str:
        self._runs += 1
        source = f"{kind} {self._runs}"
        cut = "..." if len(what) > _MAX_SOURCE_CHARS else ""
        self.note("debug", source, what[:_MAX_SOURCE_CHARS] + cut)
        return source


class CodeHearer:
    """Takes the events of one execution."""

    def __init__(self, journal: Journal, source: str) -> None:
        self._journal = journal
        self._source = source

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take one of E2B's events; what is no text is named by its kinds."""
        match event.get("type"):
            case "stdout":
                self._journal.note("info", self._source, str(event.get("text", "")))
            case "stderr":
                self._journal.note("error", self._source, str(event.get("text", "")))
            case "error":
                said = f"{event.get('name')}: {event.get('value')}"
                self._journal.note("error", self._source, said)
            case "result":
                kinds = sorted(set(event) & {"png", "jpeg", "svg", "html", "latex", "json"})
                text = event.get("text") or f"[{', '.join(kinds)}]"
                self._journal.note("info", self._source, str(text))
            case _:
                pass


def _told(end: End) -> str:
    if end.signal:
        return f"ended by {signal.strsignal(end.signal) or f'signal {end.signal}'}"
    return f"exit status {end.code}"
