"""The HTTP client against servers that answer well, badly, slowly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess

import pytest

from lingflash.core.errors import ConfigError
from lingflash.link import http_client
from lingflash.link.http_client import Address, Answer, BadAnswer, Deadlines, TooSlow, open_request

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(*pieces, pause_s=0.0, stays_open=False, tls=None):
    """A server that sends pieces with pauses; its address, and a future of its client's end."""
    gone = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            if stays_open:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if not gone.done():
                gone.set_result(None)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    address = Address("127.0.0.1", listener.sockets[0].getsockname()[1], is_tls=tls is not None)
    async with listener:
        yield address, gone


@contextlib.asynccontextmanager
async def asking(*pieces, pause_s=0.0, stays_open=False, **kwargs):
    """The answer of such a server."""
    async with serving(*pieces, pause_s=pause_s, stays_open=stays_open) as (address, _):  # noqa: SIM117
        async with open_request(address, "GET", "/", **kwargs) as answer:
            yield answer


async def read(address, **kwargs):
    async with open_request(address, "GET", "/", **kwargs) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, ""),
        ("https://api.example.com/openai/v1/", "api.example.com", 443, "/openai"),
        ("http://[::1]:80", "::1", 80, ""),
        ("http://bücher.example", "xn--bcher-kva.example", 80, ""),
    ],
)
def test_url_when_it_is_any_servers_then_read_into_its_parts(url, host, port, prefix):
    address = Address.parse_any(url)
    assert (address.host, address.port, address.prefix) == (host, port, prefix)
    assert address.is_tls is url.startswith("https")


@pytest.mark.parametrize(
    ("url", "key"),
    [("ftp://x", None), ("http://", None), ("http://[::1", None), ("http://x:99999", None),
     ("http://x/a b", None), ("http://a b", None), ("http://x/\u5217", None),
     ("http://x", "a\r\nX-Evil: 1")],
)  # fmt: skip
def test_url_when_it_or_the_key_cannot_be_sent_then_refused_by_its_flag(url, key):
    with pytest.raises(ConfigError, match=r"--url|--api-key"):
        Address.parse_any(url, key)


@pytest.mark.parametrize(
    "url", ["http://a:hush@x", "http://hush@x:1/v1", "http://x?hush", "http://x/#hush"]
)
def test_url_when_it_holds_more_than_an_address_then_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match="--url is more than") as caught:
        Address.parse_any(url)
    assert "hush" not in str(caught.value)


def test_encode_when_the_host_is_ipv6_then_it_stands_in_brackets():
    data = Address.parse_any("http://[::1]:81/base/v1").encode("GET", "/v1/models", None)
    assert data.startswith(b"GET /base/v1/models HTTP/1.1\r\nHost: [::1]:81\r\n")


def test_encode_when_a_header_holds_a_line_end_then_refused():
    with pytest.raises(ValueError, match="header"):
        Address("x", 1).encode("GET", "/", None, [("X-Request-Id", "a\r\nX-Evil: 1")])


async def test_body_when_chunked_counted_or_ended_by_closing_then_the_same():
    for head, body in (
        (CHUNKED, b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        (OK + b"Content-Length: 5\r\n\r\n", b"abcde"),
        (OK + b"\r\n", b"abcde"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"\r\n", b"abcde"),
    ):
        async with serving(head + body) as (address, _):
            assert await read(address) == (200, b"abcde")


async def test_body_when_every_byte_comes_alone_then_the_same():
    body = CHUNKED + "a\r\ndata: 列\n\r\n1\r\n\n\r\n0\r\n\r\n".encode()
    async with asking(*(body[i : i + 1] for i in range(len(body)))) as answer:
        assert [data async for data in answer.events()] == ["列"]


async def test_body_when_nobody_reads_then_it_is_not_taken_in_either():
    block = b"x" * (1 << 20)
    pieces = [OK + b"Content-Length: %d\r\n\r\n" % (64 << 20), *[block] * 64]
    async with serving(*pieces) as (address, gone):  # noqa: SIM117
        async with open_request(address, "GET", "/") as answer:
            await asyncio.sleep(0.3)
            assert not gone.done()
            assert len(await answer.read()) == 64 << 20


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 2", b"SSH-2.0-x\r\n\r\n", CHUNKED + b"zz\r\n", CHUNKED + b"5\r\nab",
     OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
     b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
     OK + b"X: " + b"x" * (1 << 19)],
)  # fmt: skip
async def test_answer_when_it_is_no_http_or_cut_off_then_bad(data):
    async with serving(data) as (address, _):
        with pytest.raises((BadAnswer, OSError)):
            await read(address)


async def test_events_when_one_never_ends_then_it_is_given_up(monkeypatch):
    monkeypatch.setattr(http_client, "_MAX_EVENT_BYTES", 1000)
    async with asking(OK + b"\r\ndata: " + b"x" * 5000) as answer:
        with pytest.raises(BadAnswer, match="more than 1000 bytes"):
            [data async for data in answer.events()]


async def test_events_when_they_are_no_utf_8_then_bad():
    async with asking(OK + b"\r\ndata: \xff\n\n") as answer:
        with pytest.raises(BadAnswer, match="UTF-8"):
            [data async for data in answer.events()]


@pytest.mark.parametrize(
    ("pieces", "deadlines", "name"),
    [
        ([], Deadlines(first_byte_s=0.1), "first_byte_s"),
        ([b"HTTP", b"/1.", b"1 2"], Deadlines(first_byte_s=0.1), "first_byte_s"),
        ([OK + b"\r\nab"], Deadlines(idle_s=0.1), "idle_s"),
        ([OK + b"\r\nab"], Deadlines(total_s=0.1), "total_s"),
    ],
)
async def test_answer_when_a_deadline_passes_then_its_name_is_told(pieces, deadlines, name):
    async with serving(*pieces, pause_s=0.06, stays_open=True) as (address, gone):
        with pytest.raises(TooSlow) as info:
            await read(address, deadlines=deadlines)
        await asyncio.wait_for(gone, 5)
    assert info.value.deadline == name


async def test_events_when_bytes_trickle_but_no_event_comes_then_idle():
    pieces = [OK + b"\r\ndata: 1\n\n", *[b"x"] * 100]
    deadlines = Deadlines(idle_s=0.2)
    async with asking(*pieces, pause_s=0.02, stays_open=True, deadlines=deadlines) as answer:
        events = answer.events()
        assert await anext(events) == "1"
        with pytest.raises(TooSlow, match="idle"):
            await anext(events)


async def test_connect_when_nobody_accepts_in_time_then_too_slow():
    # A queue of one that is full: the next connection is neither taken nor refused.
    listener = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, start_serving=False)
    (sock,) = listener.sockets
    sock._sock.listen(0)
    address = Address(*sock.getsockname()[:2])
    others = [asyncio.create_task(read(address)) for _ in range(4)]
    await asyncio.sleep(0.1)
    with pytest.raises(TooSlow, match="connect"):
        await read(address, deadlines=Deadlines(connect_s=0.2))
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    listener.close()


async def test_request_when_its_task_is_cancelled_then_the_server_sees_it():
    async with serving(CHUNKED + b"1\r\na\r\n", stays_open=True) as (address, gone):
        task = asyncio.create_task(read(address))
        await asyncio.sleep(0.1)
        assert not gone.done()
        task.cancel()
        await asyncio.wait_for(gone, 5)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_request_when_its_body_comes_in_parts_then_it_is_sent_in_chunks():
    heard = bytearray()

    async def serve(reader, writer):
        while not heard.endswith(b"0\r\n\r\n"):
            heard.extend(await reader.read(1 << 16))
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async def parts():
        for part in (b"one", b"", b"x" * 3_000_000):
            yield part

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        async with open_request(address, "POST", "/", parts()) as answer:
            assert (answer.status, await answer.read()) == (200, b"ok")
    head, _, body = bytes(heard).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head.lower()
    assert body == b"3\r\none\r\n2dc6c0\r\n" + b"x" * 3_000_000 + b"\r\n0\r\n\r\n"


async def test_request_when_it_is_answered_early_then_the_rest_of_its_body_is_not_sent():
    given = 0

    async def parts():  # far more than any buffer on the way takes
        nonlocal given
        while given < 10_000:
            given += 1
            yield b"x" * 65_536

    refused = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    async with serving(refused, stays_open=True) as (address, _):  # noqa: SIM117
        async with open_request(address, "POST", "/", parts()) as answer:
            assert answer.status == 413
    assert given < 10_000


async def test_answer_when_read_later_from_kept_bytes_then_as_on_the_way():
    answer = Answer.of_bytes(CHUNKED + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
    assert [data async for data in answer.events()] == ["1"]
    with pytest.raises(BadAnswer):
        await Answer.of_bytes(CHUNKED + b"9\r\ndata").read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_https_when_the_certificate_is_unknown_then_refused_and_else_read(
    tmp_path, monkeypatch
):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    async with serving(OK + b"Content-Length: 2\r\n\r\nhi", tls=tls) as (address, _):
        with pytest.raises(ssl.SSLCertVerificationError):
            await read(address)
        trusting = ssl.create_default_context(cafile=cert)
        monkeypatch.setattr(http_client, "_tls", lambda: trusting)
        assert await read(address) == (200, b"hi")
