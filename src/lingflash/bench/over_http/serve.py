"""`ling bench serve`: clients that stream answers over HTTP; latencies, tokens/s, goodput."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingflash.bench.over_http.chunks import read_chunks
from lingflash.bench.over_http.server_process import server_at
from lingflash.bench.over_http.stream import run_stream
from lingflash.core.errors import ConfigError
from lingflash.link.http_client import Address, BadAnswer, call, open_request
from lingflash.records.record import Record, model_label, require

# Token ids below this exist in every vocabulary of the family.
SAFE_VOCAB = 256


@dataclass(frozen=True, slots=True)
class Lengths:
    """Uniformly random numbers of tokens, both ends included."""

    prompt: tuple[int, int]
    answer: tuple[int, int]


@dataclass(slots=True)
class Timing:
    """One request as its client saw it.

    Args:
        ttft_s: until the first token; None if it failed.
        itl_s: between the arrivals of chunks with tokens, per token.
        e2e_s: until the end.
        num_prompt_tokens, num_tokens: read and generated.
    """

    num_prompt_tokens: int = 0
    ttft_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    e2e_s: float = 0.0
    num_tokens: int = 0
    text: str = ""
    error: str | None = None

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first."""
        return sum(self.itl_s) / len(self.itl_s) if self.itl_s else 0.0


async def one_request(address: Address, prompt: Sequence[int], num_tokens: int) -> Timing:
    """Stream one answer of exactly num_tokens tokens."""
    payload = {"prompt": list(prompt), "temperature": 0}
    return await timed_stream(address, "/v1/completions", payload, num_tokens)


async def timed_stream(
    address: Address, path: str, payload: Mapping[str, Any], num_tokens: int
) -> Timing:
    """The same for a completion or a chat with fields of its own; keeps what was said."""
    timing = Timing()
    wanted = {
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    body = json.dumps({**payload, **wanted}).encode()
    start = last = time.perf_counter()
    try:
        async with open_request(address, "POST", path, body) as answer:
            async for chunk in read_chunks(answer):
                if chunk.get("usage"):
                    timing.num_prompt_tokens = chunk["usage"]["prompt_tokens"]
                choices = chunk["choices"]
                timing.text += "".join(_text_of(choice) for choice in choices)
                count = sum(len(choice.get("token_ids") or ()) for choice in choices)
                if not count:
                    continue
                now = time.perf_counter()
                if timing.ttft_s is None:
                    timing.ttft_s = now - start
                    count -= 1
                    timing.num_tokens += 1
                timing.itl_s += [(now - last) / count] * count if count else []
                timing.num_tokens += count
                last = now
        timing.e2e_s = time.perf_counter() - start
        if timing.num_tokens != num_tokens:
            raise BadAnswer(f"{timing.num_tokens} of {num_tokens} tokens")
    except (BadAnswer, OSError) as error:
        timing.error = str(error)
    return timing


def _text_of(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


async def run_clients(
    address: Address, num_clients: int, num_requests: int, lengths: Lengths, seed: int
) -> tuple[float, list[Timing]]:
    """Each client sends its next request when the last has ended; seconds, and all requests."""
    rng = random.Random(seed)
    plan = [
        (
            [rng.randrange(SAFE_VOCAB) for _ in range(rng.randint(*lengths.prompt))],
            rng.randint(*lengths.answer),
        )
        for _ in range(num_requests)
    ]
    waiting = iter(plan)
    timings: list[Timing] = []

    async def client() -> None:
        for prompt, num_tokens in waiting:
            timings.append(await one_request(address, prompt, num_tokens))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    return time.perf_counter() - start, timings


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the values lie, interpolated."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def run_serve(
    *,
    scripted: bool,
    num_clients: int | None,
    prompt_len: tuple[int, int],
    answer_len: tuple[int, int],
    step_ms: float,
    num_tokens: int,
    **load: Any,
) -> Record:
    """Load a server as serve_load, or measure it alone as run_stream.

    Raises:
        ConfigError, EngineError, BadAnswer: see there.
    """
    if num_clients is None:
        num_clients = 64 if scripted else 16
    if not scripted:
        lengths = Lengths(prompt_len, answer_len)
        return await serve_load(num_clients=num_clients, lengths=lengths, **load)
    url, flags = load["url"], load["serve_flags"]
    require(url is None, "--url", url, "not with --scripted, which starts its own server")
    require(not flags, "--serve-flag", flags, "none with --scripted")
    return await run_stream(
        model=load["model"],
        num_clients=num_clients,
        num_tokens=num_tokens,
        step_ms=step_ms,
        num_first=200,
        repeats=5,
        out=load["out"],
        allow_dirty=load["allow_dirty"],
    )


async def serve_load(
    *,
    url: str | None,
    model: str,
    api_key: str | None,
    num_clients: int,
    num_requests: int,
    lengths: Lengths,
    slo_ttft_ms: float,
    slo_tpot_ms: float,
    seed: int,
    serve_flags: Sequence[str],
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Load a server and record what its clients saw.

    Raises:
        ConfigError: a value is out of range, or no request succeeded.
        EngineError: our server did not start.
    """
    require(num_clients >= 1, "--clients", num_clients, "1 or more")
    require(num_requests >= num_clients, "--requests", num_requests, "at least --clients")
    for flag, (low, high) in (("--prompt-len", lengths.prompt), ("--answer-len", lengths.answer)):
        require(1 <= low <= high, flag, f"{low} {high}", "two numbers of 1 or more, ascending")
    require(slo_ttft_ms > 0, "--slo-ttft-ms", slo_ttft_ms, "above 0")
    require(slo_tpot_ms > 0, "--slo-tpot-ms", slo_tpot_ms, "above 0")
    record = Record("serve", out, allow_dirty)
    record.settings = {
        "model": model_label(model) if url is None else "whatever the URL serves",
        "own_server": url is None,
        "serve_flags": list(serve_flags),
        "num_clients": num_clients,
        "num_requests": num_requests,
        "prompt_len": list(lengths.prompt),
        "answer_len": list(lengths.answer),
        "slo_ttft_ms": slo_ttft_ms,
        "slo_tpot_ms": slo_tpot_ms,
        "sampling": "greedy, ignore_eos",
        "seed": seed,
    }
    async with server_at(url, model, api_key, serve_flags) as (address, _):
        status, _ = await call(address, "GET", "/ready")
        if status != 200:
            raise ConfigError(f"--url: the server is not ready (status {status}).", param="url")
        await run_clients(address, num_clients, num_clients, lengths, seed + 1)  # warm-up
        seconds, timings = await run_clients(address, num_clients, num_requests, lengths, seed)
    _conclude(record, seconds, timings)
    record.finish()
    return record


def _conclude(record: Record, seconds: float, timings: Sequence[Timing]) -> None:
    good = [timing for timing in timings if timing.error is None]
    failed = [timing for timing in timings if timing.error is not None]
    if not good:
        raise ConfigError(f"No request succeeded; the first error: {failed[0].error}")
    ttft = [1e3 * timing.ttft_s for timing in good if timing.ttft_s is not None]
    itl = [1e3 * value for timing in good for value in timing.itl_s]
    record.add("ttft", "ms", ttft)
    if itl:
        record.add("itl", "ms", itl)
    record.add("e2e", "ms", [1e3 * timing.e2e_s for timing in good])
    for name, values in (("ttft", ttft), ("itl", itl)):
        for percent in (50, 90, 99) if values else ():
            record.derived[f"{name} p{percent}, ms"] = percentile(values, percent)
    settings = record.settings
    kept = sum(
        1e3 * (timing.ttft_s or 0.0) <= settings["slo_ttft_ms"]
        and 1e3 * timing.tpot_s <= settings["slo_tpot_ms"]
        for timing in good
    )
    record.derived |= {
        "seconds": seconds,
        "generated tokens/s": sum(timing.num_tokens for timing in good) / seconds,
        "prompt tokens/s": sum(timing.num_prompt_tokens for timing in good) / seconds,
        "requests/s": len(good) / seconds,
        "goodput, requests/s within the limits": kept / seconds,
        "failed requests": len(failed),
    }
    if failed:
        record.notes.append(f"first failure: {failed[0].error}")
    record.notes.append(
        "clients and server share the machine; each client has one request in flight"
    )
