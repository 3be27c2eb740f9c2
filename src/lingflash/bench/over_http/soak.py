"""`ling bench soak`: many clients, good and bad, then proof from /metrics that nothing was left.

good        streams, whole answers, chats, several choices, a slow reader
leaving     before the first byte, in the middle of a stream, in the middle of the request body
malformed   not HTTP, not JSON, wrong types, unknown fields, values out of range, too long
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingflash.bench.over_http.server_process import ServerProcess, server_at
from lingflash.bench.over_http.soak_clients import Limits, ask_whole, find_limits, pick_behaviour
from lingflash.link.http_client import Address, BadAnswer, call
from lingflash.records.record import Record, model_label, require

_IDLE_TIMEOUT_S = 30.0
_POLL_S = 0.25
_REQUEST_TIMEOUT_S = 120.0
_BUSY_PAUSE_S = 0.1
# A server that fails this often is broken or gone; more load would prove nothing.
_MAX_FAILURES = 100
# Gauges that must be equal when the server is idle.
_FREE_AND_TOTAL = (
    ("kv_blocks_free", "kv_blocks_total"),
    ("state_slots_free", "state_slots_total"),
)
_ZERO_WHEN_IDLE = ("num_requests_running", "num_requests_waiting")
_MUST_EXIST = [name for pair in _FREE_AND_TOTAL for name in pair] + list(_ZERO_WHEN_IDLE)


@dataclass(slots=True)
class SoakSummary:
    """What happened and what was left.

    Args:
        outcomes: behaviour and how it ended, to how often.
        failures: what should not have happened, with the first few words of why.
        leaks: gauges that were not back where they belong.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Nothing leaked and nothing failed."""
        return not self.leaks and not self.failures


async def read_metrics(address: Address) -> dict[str, float]:
    """The series of /metrics that have no labels, without the lingflash_ prefix.

    Raises:
        BadAnswer: there are none.
    """
    status, body = await call(address, "GET", "/metrics")
    if status != 200:
        raise BadAnswer(f"/metrics answered {status}")
    found: dict[str, float] = {}
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("lingflash_") and "{" not in name:
            found[name.removeprefix("lingflash_")] = float(value)
    return found


def find_leaks(metrics: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """What an idle server's gauges say is still held; empty if nothing is.

    Args:
        metrics: read now.
        before: read when the server was idle, before any load.
    """
    missing = [name for name in _MUST_EXIST if name not in metrics]
    if missing:
        return [f"/metrics has no {name}" for name in missing]
    leaks = [
        f"{free} is {metrics[free]:g} of {metrics[total]:g}"
        for free, total in _FREE_AND_TOTAL
        if metrics[free] != metrics[total]
    ]
    leaks += [f"{name} is {metrics[name]:g}" for name in _ZERO_WHEN_IDLE if metrics[name]]
    for name in ("asyncio_tasks", "http_requests_in_flight"):
        if metrics.get(name, 0) > before.get(name, 0):
            leaks.append(f"{name} is {metrics[name]:g}, was {before.get(name, 0):g} before")
    return leaks


async def soak(
    address: Address, *, seconds: float, num_clients: int, seed: int, limits: Limits
) -> SoakSummary:
    """Load a server that nobody else uses, then look at what is left.

    Args:
        seconds: of load; requests under way then are let finish.
    """
    summary = SoakSummary()
    before = await read_metrics(address)
    start = time.monotonic()

    async def client(index: int) -> None:
        rng = random.Random(seed * 1_000_003 + index)
        while time.monotonic() - start < seconds and len(summary.failures) < _MAX_FAILURES:
            behaviour = pick_behaviour(rng, limits)
            name = behaviour.__name__
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    outcome = await behaviour(address, rng, limits)
            except TimeoutError:
                summary.failures.append(f"{name}: no end after {_REQUEST_TIMEOUT_S:g} s")
            except (BadAnswer, OSError) as error:
                summary.failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                summary.outcomes[f"{name}: {outcome}"] += 1
                if outcome == "busy":
                    await asyncio.sleep(_BUSY_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for index in range(num_clients):
            group.create_task(client(index))
    summary.seconds = time.monotonic() - start
    await settle(address, before, summary)
    return summary


async def settle(address: Address, before: Mapping[str, float], summary: SoakSummary) -> None:
    """Wait until the server is idle, note what is left, and see that it still answers."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    try:
        while True:
            summary.metrics = await read_metrics(address)
            summary.leaks = find_leaks(summary.metrics, before)
            if not summary.leaks or time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        rng = random.Random(0)
        outcome = await ask_whole(address, rng, Limits(has_text=False))
        if outcome != "answered":
            summary.failures.append(f"after the load a request was {outcome}")
        status, _ = await call(address, "GET", "/ready")
        if status != 200:
            summary.failures.append(f"after the load /ready answered {status}")
    except (BadAnswer, OSError) as error:
        summary.failures.append(f"after the load the server does not answer: {error}")
        summary.leaks = summary.leaks or ["/metrics could not be read"]


async def run_soak(
    *,
    url: str | None,
    model: str,
    api_key: str | None,
    minutes: float,
    num_clients: int,
    seed: int,
    serve_flags: Sequence[str],
    out: Path | None,
    allow_dirty: bool,
) -> bool:
    """Soak a server and print what happened; returns whether it was clean.

    Raises:
        ConfigError: a value is out of range.
        EngineError: our server did not start.
    """
    require(0 < minutes <= 24 * 60, "--minutes", minutes, "above 0, at most 1440")
    require(1 <= num_clients <= 1024, "--clients", num_clients, "1 to 1024")
    record = Record("soak", out, allow_dirty)
    exit_code = 0
    memory: list[int] = []
    async with server_at(url, model, api_key, serve_flags) as (address, server):
        limits = await find_limits(address)
        if server is not None:
            # First touches of the cache would look like a leak of memory.
            await soak(address, seconds=5.0, num_clients=num_clients, seed=seed + 1, limits=limits)
            memory.append(server.memory_bytes())
        summary = await soak(
            address, seconds=60 * minutes, num_clients=num_clients, seed=seed, limits=limits
        )
        if server is not None:
            memory.append(server.memory_bytes())
            exit_code = await asyncio.to_thread(_stop, server, summary)
    record.settings = {
        "model": model_label(model) if url is None else "whatever the URL serves",
        "minutes": minutes,
        "serve_flags": list(serve_flags),
        "num_clients": num_clients,
        "seed": seed,
        "limits": {"max_model_len": limits.max_model_len, "has_text": limits.has_text},
    }
    _fill(record, summary, memory, exit_code)
    record.finish()
    return summary.is_clean


def _stop(server: ServerProcess, summary: SoakSummary) -> int:
    code = server.stop()
    if code:
        summary.failures.append(f"ling serve ended with code {code}:\n{server.log_tail()}")
    return code


def _fill(record: Record, summary: SoakSummary, memory: list[int], exit_code: int) -> None:
    record.derived |= dict(sorted(summary.outcomes.items()))
    record.derived |= {
        "requests in all": summary.outcomes.total() + len(summary.failures),
        "failures": len(summary.failures),
        "leaks": len(summary.leaks),
        "seconds of load": summary.seconds,
    }
    for name in (*_MUST_EXIST, "asyncio_tasks", "preemptions_total", "engine_steps_total",
                 "engine_generation_tokens_total", "requests_aborted_total"):  # fmt: skip
        if name in summary.metrics:
            record.derived[f"after: {name}"] = summary.metrics[name]
    if memory:
        record.derived["anonymous memory before, MiB"] = memory[0] / 2**20
        record.derived["anonymous memory after, MiB"] = memory[1] / 2**20
        record.derived["exit code after SIGTERM"] = exit_code
    record.notes += [f"LEAK: {leak}" for leak in summary.leaks]
    record.notes += [f"FAILURE: {failure}" for failure in summary.failures[:20]]
    if summary.is_clean:
        record.notes.append(
            "clean: every block and slot is free, no request is left, it still answers"
        )
