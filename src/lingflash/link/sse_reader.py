"""Server-sent events read from bytes that come in pieces, from our server or anybody's.

An event stays the bytes that it came as, so that whoever passes it on changes nothing; its data is
taken out on demand. https://html.spec.whatwg.org/multipage/server-sent-events.html has the rules.
"""

from __future__ import annotations

import re

# Two line ends in a row; a line ends with \n, \r\n or \r.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_PLAIN_BLANK_LINE = re.compile(rb"\n\n")  # ten times as fast, where there is no \r
_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Cuts a stream into events, wherever its pieces were cut.

    All events that were fed so far and `rest` are the stream's bytes. `rest` has no bound of its
    own: who reads from a stranger looks at its length.
    """

    def __init__(self) -> None:
        self.rest = bytearray()
        self._searched = 0
        self._blank_line = _PLAIN_BLANK_LINE

    def feed(self, data: bytes) -> list[bytes]:
        """Take in the next bytes; the events that they complete, each with its blank line."""
        rest = self.rest
        rest += data
        if self._blank_line is _PLAIN_BLANK_LINE and b"\r" in data:
            self._blank_line = _BLANK_LINE
        # After a last \r there may be the \n that belongs to it.
        end = len(rest) - rest.endswith(b"\r")
        events: list[bytes] = []
        start = 0
        for match in self._blank_line.finditer(rest, self._searched, end):
            events.append(bytes(rest[start : match.end()]))
            start = match.end()
        del rest[:start]
        self._searched = max(end - start - 3, 0)
        return events


def event_data(event: bytes) -> str | None:
    """What an event says; None if it has no data, as a comment or a heartbeat.

    Raises:
        ValueError: it is not UTF-8.
    """
    # What nearly all are: one line.
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2].decode()
    values = _values(event, b"data")
    return b"\n".join(values).decode() if values else None


def event_comment(event: bytes, name: str) -> bytes | None:
    """What follows a name in an event that is a comment; None if this is no such comment."""
    mark = f": {name} ".encode()
    return event[len(mark) :].strip() if event.startswith(mark) else None


def event_name(event: bytes) -> str:
    """The event's type, "message" if it names none."""
    values = _values(event, b"event")
    return values[-1].decode("utf-8", "replace") if values and values[-1] else "message"


def _values(event: bytes, field: bytes) -> list[bytes]:
    found = []
    for line in event.removeprefix(_MARK).splitlines():
        name, _, value = line.partition(b":")
        if name == field:
            found.append(value.removeprefix(b" "))
    return found
