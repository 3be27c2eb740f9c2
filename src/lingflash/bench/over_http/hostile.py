"""`ling bench hostile`: two keys, one hostile.

Key b runs eight streams and an agent's conversation, first alone, then while key a, and somebody
without a key, do to the server what `hostile_attacks` lists. b must not notice, and nothing of it
may be left afterwards: memory, open files, tasks, blocks.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingflash.bench.over_http.hostile_attacks import ATTACKS
from lingflash.bench.over_http.serve import SAFE_VOCAB, Timing, percentile, timed_stream
from lingflash.bench.over_http.server_process import ServerProcess, server_at
from lingflash.bench.over_http.soak import SoakSummary, find_leaks, read_metrics, settle
from lingflash.bench.over_http.soak_clients import find_limits
from lingflash.link.http_client import Address, BadAnswer, call
from lingflash.records.record import Record, model_label, require

_NUM_STREAMS = 8
_PROMPT_LEN = (16, 256)
_ANSWER_LEN = (64, 256)
_TURN_LEN = 48
_BETWEEN_STARTS_S = 0.3
_WORDS = ("weather", "Paris", "book", "train", "tomorrow", "seven", "list", "open", "why", "river")
_MAX_QUIET_MINUTES = 3.0
_WARM_UP_S = 8.0
_IDLE_TIMEOUT_S = 60.0
# Promises: latencies against the quiet ones, and what memory may grow by.
_MOST_TIMES_QUIET = 3.0
_MOST_GROWTH = 1.1


@dataclass(slots=True)
class Victim:
    """What key b saw: each stream, and each turn of its agent."""

    streams: list[Timing] = field(default_factory=list)
    turns: list[Timing] = field(default_factory=list)

    def ttft_ms(self) -> list[float]:
        """Of both."""
        return [1e3 * t.ttft_s for t in self.streams + self.turns if t.ttft_s is not None]

    def itl_ms(self) -> list[float]:
        """Of both."""
        return [1e3 * value for t in self.streams + self.turns for value in t.itl_s]

    def errors(self) -> list[str]:
        """Requests that did not end as asked for."""
        return [t.error for t in self.streams + self.turns if t.error is not None]


@dataclass(frozen=True, slots=True)
class Held:
    """What the idle server holds."""

    memory_bytes: int
    num_fds: int


async def be_served(address: Address, seconds: float, max_model_len: int, seed: int) -> Victim:
    """Eight streams and a conversation, one after the other each, for so long."""
    victim = Victim()
    end = time.monotonic() + seconds

    async def stream(number: int) -> None:
        rng = random.Random(seed * 1009 + number)
        # All at once would be a burst of their own, and the worst first tokens those of its end.
        await asyncio.sleep(number * _BETWEEN_STARTS_S)
        while time.monotonic() < end:
            prompt = [rng.randrange(SAFE_VOCAB) for _ in range(rng.randint(*_PROMPT_LEN))]
            payload = {"prompt": prompt, "temperature": 1, "seed": rng.randrange(2**31)}
            num_tokens = rng.randint(*_ANSWER_LEN)
            victim.streams.append(
                await timed_stream(address, "/v1/completions", payload, num_tokens)
            )

    async def converse() -> None:
        rng = random.Random(seed)
        messages: list[dict[str, str]] = []
        while time.monotonic() < end:
            words = " ".join(rng.choices(_WORDS, k=rng.randint(10, 60)))
            messages.append({"role": "user", "content": words})
            payload = {"messages": messages, "temperature": 0}
            turn = await timed_stream(address, "/v1/chat/completions", payload, _TURN_LEN)
            victim.turns.append(turn)
            messages.append({"role": "assistant", "content": turn.text})
            if turn.error is not None or turn.num_prompt_tokens > max_model_len // 2:
                messages.clear()

    async with asyncio.TaskGroup() as group:
        for number in range(_NUM_STREAMS):
            group.create_task(stream(number))
        group.create_task(converse())
    return victim


@asynccontextmanager
async def _attacked(given: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
    """The attacks under way; their counts are in the dict once the block has ended."""
    outcomes: dict[str, int] = {}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lingflash.bench.over_http.hostile_attacks",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    talk = asyncio.create_task(process.communicate(json.dumps(given).encode()))
    try:
        yield outcomes
        said, _ = await asyncio.wait_for(talk, 60.0)
        outcomes |= json.loads(said)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _structured(address: Address) -> None:
    """One answer under a grammar: the process that compiles them is started on demand."""
    body = {"prompt": "hi", "max_tokens": 4, "structured_outputs": {"choice": ["yes", "no"]}}
    status, said = await call(address, "POST", "/v1/completions", body)
    if status != 200:
        raise BadAnswer(f"a grammar of two words got status {status}: {said[:200]!r}")


async def _settle(server: ServerProcess, address: Address, before: dict[str, float],
                  num_fds: int | None) -> SoakSummary:  # fmt: skip
    """Wait until nothing runs and, if their number before is known, files are closed again."""
    summary = SoakSummary()
    await settle(address, before, summary)
    await _structured(address)
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while num_fds is not None and server.num_fds() > num_fds and time.monotonic() < deadline:
        await asyncio.sleep(0.25)
    return summary


async def run_hostile(
    *,
    model: str,
    minutes: float,
    attacks: Sequence[str],
    seed: int,
    serve_flags: Sequence[str],
    out: Path | None,
    allow_dirty: bool,
) -> bool:
    """Attack a server of our own; returns whether all promises held.

    Raises:
        ConfigError: a value is out of range.
        EngineError: our server did not start.
    """
    require(0 < minutes <= 24 * 60, "--minutes", minutes, "above 0, at most 1440")
    names = list(attacks or ATTACKS)
    require(set(names) <= set(ATTACKS), "--attack", names, ", ".join(ATTACKS))
    record = Record("hostile", out, allow_dirty)
    record.settings = {
        "model": model_label(model),
        "minutes": minutes,
        "quiet_minutes": min(minutes, _MAX_QUIET_MINUTES),
        "attacks": names,
        "serve_flags": list(serve_flags),
        "streams of key b": _NUM_STREAMS,
        "seed": seed,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("key-a\nkey-b\n")
        keys.flush()
        flags = [*serve_flags, "--api-key-file", keys.name]
        async with server_at(None, model, None, flags) as (bare, server):
            assert server is not None
            await _measure(record, server, bare)
            code = await asyncio.to_thread(server.stop)
    record.derived["exit code after SIGTERM"] = code
    record.promise("exit code after SIGTERM", code, 0, "at most")
    record.notes.append(
        "clients, attackers and server share the machine; the attackers' process is niced"
    )
    record.finish()
    return all(target.is_met for target in record.targets)


async def _measure(record: Record, server: ServerProcess, bare: Address) -> None:
    a, b = (Address(bare.host, bare.port, key) for key in ("key-a", "key-b"))
    settings = record.settings
    seed, seconds = settings["seed"], 60 * settings["minutes"]
    room = (await find_limits(b)).max_model_len or 512
    given = {
        "host": a.host, "port": a.port, "api_key": a.api_key, "max_model_len": room,
        "attacks": settings["attacks"], "seed": seed,
    }  # fmt: skip
    await _structured(b)
    idle = await read_metrics(b)
    # First touches of the cache would look like a leak.
    async with _attacked({**given, "seconds": _WARM_UP_S}):
        await be_served(b, _WARM_UP_S, room, seed + 1)
    await _settle(server, b, idle, None)
    quiet = await be_served(b, 60 * settings["quiet_minutes"], room, seed + 2)
    await _settle(server, b, idle, None)
    before = Held(server.memory_bytes(), server.num_fds())
    async with _attacked({**given, "seconds": seconds}) as outcomes:
        hostile = await be_served(b, seconds, room, seed)
    summary = await _settle(server, b, idle, before.num_fds)
    after = Held(server.memory_bytes(), server.num_fds())
    _conclude(record, quiet, hostile)
    _conclude_left(record, summary, before, after, find_leaks(await read_metrics(b), idle))
    record.derived |= {f"attack {name}": count for name, count in sorted(outcomes.items())}
    internal = sum(n for name, n in outcomes.items() if name.endswith((": 500", "internal error")))
    record.promise("attacks that met a bug", internal, 0, "at most")


def _conclude(record: Record, quiet: Victim, hostile: Victim) -> None:
    require(bool(quiet.itl_ms() and hostile.itl_ms()), "--minutes", record.settings["minutes"],
            "more: key b got no answer")  # fmt: skip
    for name, alone, beside in (
        ("ttft", quiet.ttft_ms(), hostile.ttft_ms()),
        ("itl", quiet.itl_ms(), hostile.itl_ms()),
    ):
        for percent in (50, 99):
            pair = percentile(alone, percent), percentile(beside, percent)
            record.derived[f"{name} p{percent} alone, ms"] = pair[0]
            record.derived[f"{name} p{percent} beside, ms"] = pair[1]
        ratio = percentile(beside, 99) / percentile(alone, 99)
        record.promise(f"{name} p99 of key b, times alone", ratio, _MOST_TIMES_QUIET, "at most")
    # The gaps of all tokens would be megabytes.
    record.add("ttft alone", "ms", quiet.ttft_ms())
    record.add("ttft beside", "ms", hostile.ttft_ms())
    for word, victim in (("alone", quiet), ("beside", hostile)):
        record.derived[f"streams {word}"] = len(victim.streams)
        record.derived[f"turns {word}"] = len(victim.turns)
    errors = hostile.errors()
    record.promise("errors of key b", len(errors), 0, "at most")
    record.notes += [f"ERROR of key b: {error}"[:300] for error in errors[:5]]


def _conclude_left(
    record: Record, summary: SoakSummary, before: Held, after: Held, leaks: list[str]
) -> None:
    mib = 2**20
    record.derived |= {
        "anonymous memory before, MiB": before.memory_bytes / mib,
        "anonymous memory after, MiB": after.memory_bytes / mib,
        "open files before": before.num_fds,
        "open files after": after.num_fds,
    }
    growth = after.memory_bytes / before.memory_bytes
    record.promise("memory after, times before", growth, _MOST_GROWTH, "at most")
    record.promise("open files left", max(after.num_fds - before.num_fds, 0), 0, "at most")
    record.promise("blocks, slots, requests and tasks left", len(leaks), 0, "at most")
    record.promise("failures after the load", len(summary.failures), 0, "at most")
    record.notes += [f"LEFT: {leak}" for leak in leaks]
    record.notes += [f"FAILURE: {failure}" for failure in summary.failures]
