"""`ling bench gateway`: what the gateway costs, in front of a vendor that replays.

Every number is measured directly at the vendor and through the gateway, in turns, in the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from lingflash.bench.over_http.ledger import measure_ledger
from lingflash.bench.over_http.scripted_vendor import HOST, WORD
from lingflash.bench.over_http.server_process import ServerProcess, free_port, running
from lingflash.bench.over_http.stream_client import Stream, stream_chat
from lingflash.gateway.accounts.keys import Keys
from lingflash.link.http_client import Address, BadAnswer
from lingflash.records.record import Record, Target, require
from lingflash.store.database import Database

_MODEL = "bench/model"
_FILE = """
[server]
port = {port}
log_level = "warning"

[accounts]
database = "{database}"

[[upstream]]
name = "vendor"
base_url = "http://{host}:{vendor}"
allow_private_address = true

[[model]]
name = "{model}"

[[model.endpoint]]
upstream = "vendor"

[[model.endpoint.price]]
prompt = 0.10
completion = 0.30
"""
_MAX_P50_MS, _MAX_P99_MS = 2.0, 10.0
_MIN_TOKENS_PER_S, _MIN_SETTLED_PER_S = 10_000.0, 200.0
_MAX_GROWTH_MIB = 8.0
_WARM_UP = 20
# 64 streams at the pace of the load (--step-ms) are more than one process passes on, so that their
# first tokens wait in a queue without end; at this one they show what a request waits for.
_CALM_STEP_MS, _CALM_TOKENS = 20.0, 100


async def run_gateway(
    *,
    num_clients: int,
    num_tokens: int,
    step_ms: float,
    num_first: int,
    num_rounds: int,
    num_memory: int,
    out: Path | None,
    allow_dirty: bool,
) -> None:
    """Measure and record.

    Raises:
        ConfigError: a value is out of range.
        EngineError: the gateway did not start.
        BadAnswer: an answer was not what the vendor sends.
    """
    require(1 <= num_clients <= 256, "--clients", num_clients, "1 to 256")
    require(1 <= num_tokens <= 4096, "--tokens", num_tokens, "1 to 4096")
    require(step_ms > 0, "--step-ms", step_ms, "above 0")
    require(num_first >= 2, "--first-tokens", num_first, "2 or more")
    require(num_rounds >= 1, "--rounds", num_rounds, "1 or more")
    require(num_memory == 0 or num_memory >= 100, "--memory", num_memory, "0, or 100 or more")
    record = Record("gateway", out, allow_dirty)
    record.settings = {
        "upstream": "scripted, a process of its own",
        "accounts": "SQLite, WAL",
        "num_clients": num_clients,
        "num_tokens": num_tokens,
        "step_ms": step_ms,
        "offered tokens/s": num_clients / step_ms * 1e3,
        "num_first": num_first,
        "num_rounds": num_rounds,
        "num_memory": num_memory,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _served(folder / "a", step_ms=0.0) as (direct, through, gateway):
            await _measure_first(record, direct, through, gateway, num_first)
            if num_memory:
                await _measure_memory(record, through, gateway, num_memory, num_clients)
        async with _served(folder / "b", step_ms=step_ms) as (direct, through, _):
            places = {"direct": direct, "through": through}
            await _measure_load(record, places, num_clients, num_tokens, num_rounds)
        async with _served(folder / "c", step_ms=_CALM_STEP_MS) as (direct, through, _):
            places = {"direct": direct, "through": through}
            await _measure_calm(record, places, num_clients, num_rounds)
        await _measure_accounts(record, folder / "accounts.db", num_clients)
    record.notes += [
        "direct and through alternate; added is the difference of the two in the same turn",
        "every answer is checked after the clock has stopped",
        "vendor, gateway and clients share the machine's cores",
    ]
    record.finish()


@contextlib.asynccontextmanager
async def _served(
    folder: Path, *, step_ms: float
) -> AsyncIterator[tuple[Address, Address, ServerProcess]]:
    """A vendor and a gateway to it: the addresses of both, and the gateway's process."""
    folder.mkdir()
    database = f"sqlite:///{folder}/gateway.db"
    key = await new_key(database)
    vendor, through = Address(HOST, free_port()), Address(HOST, free_port(), key)
    file = folder / "gateway.toml"
    text = _FILE.format(
        port=through.port, database=database, host=HOST, vendor=vendor.port, model=_MODEL
    )
    file.write_text(text, encoding="utf-8")
    script = "lingflash.bench.over_http.scripted_vendor"
    command = [sys.executable, "-m", script, str(vendor.port), str(step_ms)]
    main = "import lingflash.cli as cli; cli.main()"
    async with (
        running(ServerProcess(vendor, command)),
        running(
            ServerProcess(through, [sys.executable, "-c", main, "gateway", "--config", str(file)])
        ) as gateway,
    ):
        yield vendor, through, gateway


async def new_key(url: str) -> str:
    """A key of a gateway with this database."""
    database = Database(url)
    await database.open()
    try:
        secret, _ = await Keys(database).create({"name": "bench"})
    finally:
        await database.close()
    return secret


async def _ask(address: Address, num_tokens: int) -> Stream:
    return await stream_chat(address, num_tokens, model=_MODEL)


async def _check(stream: Stream, num_tokens: int) -> None:
    texts = await stream.read_texts()
    if texts[-num_tokens:] != [WORD] * num_tokens:
        raise BadAnswer(f"{len(texts)} events for {num_tokens} tokens")


async def _measure_first(
    record: Record, direct: Address, through: Address, gateway: ServerProcess, num_first: int
) -> None:
    """Time to the first token of one client, and what the gateway's processor does for it."""
    for _ in range(_WARM_UP):
        await _ask(direct, 8)
        await _ask(through, 8)
    times: dict[str, list[float]] = {"direct": [], "through": []}
    cpu_s = gateway.cpu_s()
    for _ in range(num_first):
        for name, address in (("direct", direct), ("through", through)):
            stream = await _ask(address, 8)
            await _check(stream, 8)
            times[name].append(1e3 * (stream.first_s - stream.started_s))
    cpu_ms = 1e3 * (gateway.cpu_s() - cpu_s) / num_first
    record.add("processor time of the gateway, a request of one client", "ms", [cpu_ms])
    # Of clients that come in one instant the last waits for the others: one process is one core.
    record.derived |= {"last of 64 clients in one instant, at least, ms": 64 * cpu_ms}
    for name, samples in times.items():
        record.add(f"first token, one client, {name}", "ms", samples)
    pairs = zip(times["direct"], times["through"], strict=True)
    added = record.add("first token, one client, added", "ms", [b - a for a, b in pairs])
    record.targets.append(
        Target("ms added to the first token, one client, p50", added.median, _MAX_P50_MS, "at most")
    )


async def _measure_load(
    record: Record, places: dict[str, Address], num_clients: int, num_tokens: int, num_rounds: int
) -> None:
    """All clients at once: each begins at a time of its own and asks again and again."""
    firsts: dict[str, list[float]] = {name: [] for name in places}
    rates: dict[str, list[float]] = {name: [] for name in places}
    for i in range(num_rounds + 1):  # the first warms up
        for name, address in places.items():
            streams = await _round(address, num_clients, num_tokens)
            if not i:
                continue
            for stream in streams:
                await _check(stream, num_tokens)
            firsts[name] += [1e3 * (each.first_s - each.started_s) for each in streams]
            seconds = max(s.ended_s for s in streams) - min(s.started_s for s in streams)
            rates[name].append(len(streams) * num_tokens / seconds)
    for name in places:
        record.add(f"first token, {num_clients} clients, {name}", "ms", firsts[name])
        record.add(f"tokens, {num_clients} clients, {name}", "tokens/s", rates[name])
    p99 = {name: _p99(samples) for name, samples in firsts.items()}
    record.derived |= {f"first token, p99, {name}, ms": value for name, value in p99.items()}
    record.targets += [
        Target(
            f"ms added to the first token, {num_clients} clients, p99",
            p99["through"] - p99["direct"],
            _MAX_P99_MS,
            "at most",
        ),
        Target(
            f"tokens/s through one gateway, {num_clients} streams",
            statistics.median(rates["through"]),
            _MIN_TOKENS_PER_S,
            "at least",
        ),
    ]


async def _measure_calm(
    record: Record, places: dict[str, Address], num_clients: int, num_rounds: int
) -> None:
    """The same at the pace of a model that is read, at which nothing is full."""
    firsts: dict[str, list[float]] = {name: [] for name in places}
    for i in range(num_rounds + 1):  # the first warms up
        for name, address in places.items():
            streams = await _round(address, num_clients, _CALM_TOKENS)
            for stream in streams if i else ():
                await _check(stream, _CALM_TOKENS)
                firsts[name].append(1e3 * (stream.first_s - stream.started_s))
    pace = f"{num_clients} clients at {1e3 / _CALM_STEP_MS:.0f} tokens/s each"
    for name, samples in firsts.items():
        record.add(f"first token, {pace}, {name}", "ms", samples)
    added = _p99(firsts["through"]) - _p99(firsts["direct"])
    record.targets.append(
        Target(f"ms added to the first token, {pace}, p99", added, _MAX_P99_MS, "at most")
    )


async def _round(address: Address, num_clients: int, num_tokens: int) -> list[Stream]:
    """Two answers of each client, whose beginnings are spread over a second."""

    async def client(index: int) -> list[Stream]:
        await asyncio.sleep(index / num_clients)
        return [await _ask(address, num_tokens) for _ in range(2)]

    found = await asyncio.gather(*map(client, range(num_clients)))
    return [stream for streams in found for stream in streams]


async def _measure_memory(
    record: Record, address: Address, gateway: ServerProcess, num_requests: int, num_clients: int
) -> None:
    """Anonymous memory of the gateway after each tenth of many short requests."""
    sizes: list[float] = []
    for _ in range(10):
        left = iter(range(num_requests // 10))  # which all clients share
        await asyncio.gather(*(_short_ones(address, left) for _ in range(min(num_clients, 32))))
        sizes.append(gateway.memory_bytes() / 2**20)
    series = record.add("memory of the gateway, after each tenth of the requests", "MiB", sizes)
    growth = series.samples[-1] - series.samples[4]
    name = f"MiB grown over the second half of {num_requests} requests"
    record.targets.append(Target(name, growth, _MAX_GROWTH_MIB, "at most"))


async def _short_ones(address: Address, left: Iterator[int]) -> None:
    for _ in left:
        await _check(await _ask(address, 4), 4)


async def _measure_accounts(record: Record, path: Path, num_clients: int) -> None:
    """Reserve and settle on one hot key, by the accounts alone."""
    rates = await measure_ledger(f"sqlite:///{path}", num_clients=num_clients)
    rate = record.add(
        f"reserve and settle, one key, {num_clients} clients", "requests/s", rates.requests_per_s
    )
    record.add("reserve, one client", "ms", rates.reserve_ms)
    record.add("settle, one client", "ms", rates.settle_ms)
    name = "requests/s reserved and settled on one hot key, SQLite"
    record.targets.append(Target(name, rate.median, _MIN_SETTLED_PER_S, "at least"))


def _p99(samples: list[float]) -> float:
    return sorted(samples)[min(int(0.99 * len(samples)), len(samples) - 1)]
