"""`ling bench serve --scripted`: what the server costs by itself, around an engine that replays.

Two questions. How much later does the first token come, at one client, than the engine gave it?
How many tokens per second, one event each, can one process pass on to many clients?
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lingflash.bench.over_http.scripted_server import HOST, SENTENCE
from lingflash.bench.over_http.server_process import ServerProcess, free_port, running
from lingflash.bench.over_http.stream_client import Stream, stream_chat
from lingflash.core.hub import resolve_model
from lingflash.link.http_client import Address, BadAnswer
from lingflash.records.record import Record, Target, model_label, require

_MIN_TOKENS_PER_S, _MAX_TTFT_MS = 10_000.0, 3.0
_WARM_UP = 20


async def run_stream(
    *,
    model: str,
    num_clients: int,
    num_tokens: int,
    step_ms: float,
    num_first: int,
    repeats: int,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Measure and record: num_first requests of one client, then rounds of all clients.

    Raises:
        ConfigError: a value is out of range.
        EngineError: the server did not start.
        BadAnswer: an answer was not what the script says.
    """
    require(1 <= num_clients <= 256, "--clients", num_clients, "1 to 256")
    require(1 <= num_tokens <= 4096, "--tokens", num_tokens, "1 to 4096")
    require(step_ms > 0, "--step-ms", step_ms, "above 0")
    require(num_first >= 1, "--first-tokens", num_first, "1 or more")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    record = Record("stream", out, allow_dirty)
    record.settings = {
        "model": model_label(model),
        "engine": "scripted, in the server's process",
        "num_clients": num_clients,
        "num_tokens": num_tokens,
        "step_ms": step_ms,
        "offered tokens/s": num_clients / step_ms * 1e3,
        "num_first": num_first,
        "repeats": repeats,
    }
    folder = resolve_model(model)
    async with running(_scripted(folder, 0.0)) as server:
        for _ in range(_WARM_UP):
            await stream_chat(server.address, 8)
        alone = [await stream_chat(server.address, 8) for _ in range(num_first)]
    await _check(alone, 8)
    ttft_ms = [1e3 * (stream.first_s - stream.started_s) for stream in alone]
    rounds: list[list[Stream]] = []
    async with running(_scripted(folder, step_ms)) as server:
        for i in range(repeats + 1):  # the first warms up
            requests = [stream_chat(server.address, num_tokens) for _ in range(num_clients)]
            streams = await asyncio.gather(*requests)
            await _check(streams, num_tokens)
            if i:
                rounds.append(streams)
    _conclude(record, ttft_ms, rounds, num_tokens)
    record.finish()
    return record


def _scripted(folder: Path, step_ms: float) -> ServerProcess:
    address = Address(HOST, free_port())
    script = "lingflash.bench.over_http.scripted_server"
    return ServerProcess(
        address, [sys.executable, "-m", script, str(folder), str(address.port), str(step_ms)]
    )


async def _check(streams: list[Stream], num_tokens: int) -> None:
    for stream in streams:
        texts = await stream.read_texts()
        said = "".join(texts)
        if len(texts) != num_tokens or not (SENTENCE * num_tokens).startswith(said):
            raise BadAnswer(f"{len(texts)} events for {num_tokens} tokens: {said[:80]!r}")


def _conclude(
    record: Record, ttft_ms: list[float], rounds: list[list[Stream]], num_tokens: int
) -> None:
    record.add("first token, one client", "ms", ttft_ms)
    rates, per_read = [], []
    for streams in rounds:
        seconds = max(s.ended_s for s in streams) - min(s.started_s for s in streams)
        rates.append(len(streams) * num_tokens / seconds)
        per_read.append(len(streams) * num_tokens / sum(s.num_reads for s in streams))
    rate = record.add("tokens, all clients", "tokens/s", rates)
    record.add("events per read of a client", "", per_read)
    first = record.results["first token, one client"]
    record.targets = [
        Target("tokens/s to all clients", rate.median, _MIN_TOKENS_PER_S, "at least"),
        Target("ms to the first token, one client", first.median, _MAX_TTFT_MS, "at most"),
    ]
    record.notes += [
        "one event per token, each checked against the script after the clock has stopped; tokens "
        "that are due together are written together",
        "the time to the first token holds all but the engine: connection, request, template, "
        "tokenizer, first event",
        "server and clients share the machine's cores",
    ]
