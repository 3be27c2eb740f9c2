"""Events are cut out of a stream by the standard's rules, wherever its pieces were cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.link.sse_reader import EventReader, event_data, event_name

PARTS = [b"data: x", b"data:\xe5\x88\x97", b"data", b": c", b"event: e", b"id: 1", b"\n", b"\r\n",
         b"\r", b"\n\n", b"\r\n\r\n"]  # fmt: skip


def feed(reader, stream, cuts):
    places = [0, *sorted(cuts), len(stream)]
    return [
        event
        for i in range(len(places) - 1)
        for event in reader.feed(stream[places[i] : places[i + 1]])
    ]


def by_lines(stream):
    """The standard's own way: line by line."""
    found, data = [], []
    for line in re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        if not line:
            found += [b"\n".join(data).decode()] if data else []
            data = []
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return found


@given(st.data())
def test_reader_when_a_stream_is_cut_anywhere_then_events_are_its_bytes_and_say_the_same(data):
    stream = b"".join(data.draw(st.lists(st.sampled_from(PARTS), max_size=16)))
    stream = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + stream
    if stream.endswith(b"\r"):
        stream += b"\n"  # what comes next decides what a \r was
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    reader = EventReader()
    events = feed(reader, stream, cuts)
    assert b"".join(events) + reader.rest == stream
    assert [said for said in map(event_data, events) if said is not None] == by_lines(stream)


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        (b'data: {"a":1}\n\n', "message", '{"a":1}'),
        (b"event: message_stop\ndata: {}\n\n", "message_stop", "{}"),
        (b"data: a\ndata: b\n\n", "message", "a\nb"),
        (b"data: a\r\n\r\n", "message", "a"),
        (b"event:\ndata\n\n", "message", ""),
        (b": heartbeat\n\n", "message", None),
    ],
)
def test_event_when_read_then_name_and_data_are_the_standards(event, name, data):
    assert event_name(event) == name
    assert event_data(event) == data


def test_event_data_when_it_is_no_utf_8_then_refused():
    with pytest.raises(ValueError, match="utf-8"):
        event_data(b"data: \xff\n\n")
