"""`ling bench serve --scripted`: a real server process, every event checked."""

import json

import pytest

from lingflash.bench.over_http.stream import run_stream
from lingflash.bench.over_http.stream_client import Stream, stream_chat
from lingflash.core.errors import ConfigError
from lingflash.link.http_client import Address, BadAnswer

SMALL = {
    "model": "ling-nano", "num_clients": 3, "num_tokens": 20, "step_ms": 1.0, "num_first": 2,
    "repeats": 1, "out": None, "allow_dirty": False,
}  # fmt: skip


async def test_stream_when_run_then_every_token_is_an_event_and_the_record_is_whole(
    tmp_path, capsys
):
    out = tmp_path / "stream.json"
    record = await run_stream(**SMALL | {"out": out, "allow_dirty": True})
    assert len(record.results["first token, one client"].samples) == 2
    assert len(record.results["tokens, all clients"].samples) == 1
    assert {target["limit"] for target in json.loads(out.read_text())["targets"]} == {10000, 3}
    assert "first token, one client" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"num_clients": 0}, {"num_tokens": 0}, {"step_ms": 0.0}])
async def test_stream_when_a_flag_is_out_of_range_then_it_is_named(change):
    with pytest.raises(ConfigError, match="--"):
        await run_stream(**SMALL | change)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 500 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\n\r\n13\r\ndata: {"error": 1}\n\n\r\n0\r\n\r\n',
    ],
)
async def test_stream_when_the_answer_is_not_whole_then_it_does_not_count(raw):
    with pytest.raises(BadAnswer):
        await Stream(0.0, raw=bytearray(raw)).read_texts()


async def test_stream_when_nobody_listens_then_an_error():
    with pytest.raises(OSError, match=r"."):
        await stream_chat(Address("127.0.0.1", 1), 3)
