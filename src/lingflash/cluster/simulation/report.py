"""`ling cluster simulate`: the ways to share requests beside each other, and a record of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from lingflash.cluster.simulation.cluster import Cluster, ClusterShape, Outcome
from lingflash.cluster.simulation.rates import find_card, read_cards
from lingflash.cluster.simulation.sessions import (
    Session,
    SessionShape,
    generate_sessions,
    read_sessions,
)
from lingflash.gateway.routing.replicas import BALANCES, Balance
from lingflash.records.record import Record, require

_DAY_S = 86_400
# So many sessions tell how many tokens one has.
_SAMPLE = 5000


def run_simulation(
    *,
    card: str,
    benchmarks: Path,
    num_replicas: int,
    tokens_per_day: float,
    num_gateways: int,
    balances: Sequence[str],
    trace: Path | None,
    shape: SessionShape,
    seconds: float,
    warm_up_s: float,
    max_num_seqs: int,
    cache_tokens: int | None,
    grain: int,
    seed: int,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Simulate each way and record.

    Args:
        seconds: simulated, the warm-up with it.

    Raises:
        ConfigError: a value is out of range, or a file cannot be used.
    """
    require(num_replicas >= 1, "--replicas", num_replicas, "1 or more")
    require(tokens_per_day > 0, "--tokens-per-day", tokens_per_day, "above 0")
    require(num_gateways >= 1, "--gateways", num_gateways, "1 or more")
    require(0 <= warm_up_s < seconds, "--warm-up-s", warm_up_s, "0 or more, below --seconds")
    require(max_num_seqs >= 1, "--max-num-seqs", max_num_seqs, "1 or more")
    require(grain in (1, 2, 4, 8, 16, 32, 64), "--grain", grain, "a power of two up to 64")
    for each in balances:
        require(each in BALANCES, "--balance", each, ", ".join(BALANCES))
    known = find_card(read_cards(benchmarks), card)
    record = Record("simulation", out, allow_dirty)
    sample = (
        list(itertools.islice(generate_sessions(shape, seed), _SAMPLE))
        if trace is None
        else read_sessions(trace)
    )
    tokens_each = sum(each.tokens for each in sample) / len(sample)
    num_turns = sum(len(each.turns) for each in sample)
    sessions_per_s = tokens_per_day / _DAY_S / tokens_each
    cache = known.cache(max_num_seqs, cache_tokens, grain)
    record.settings = {
        "card": card,
        "records": list(known.files),
        "replicas": num_replicas,
        "gateways": num_gateways,
        "tokens a day": tokens_per_day,
        "sessions a second": sessions_per_s,
        "tokens of a request": tokens_each * len(sample) / num_turns,
        "requests of a session": num_turns / len(sample),
        "trace": None if trace is None else trace.name,
        "seconds": seconds,
        "warm_up_s": warm_up_s,
        "max_num_seqs": max_num_seqs,
        "cache tokens of a replica": cache.tokens,
        "grain": grain,
        "seed": seed,
    }
    outcomes: dict[str, Outcome] = {}
    for balance in balances:
        wanted = ClusterShape(
            num_replicas=num_replicas,
            rates=known.rates(),
            cache=cache,
            balance=_checked(balance),
            num_gateways=num_gateways,
            warm_up_s=warm_up_s,
            duration_s=seconds,
        )
        sessions = (
            generate_sessions(shape, seed) if trace is None else _again_and_again(sample, seed)
        )
        outcome = Cluster(wanted, seed).play(_arrivals(sessions, sessions_per_s, seed))
        outcomes[balance] = outcome
        record.derived |= {f"{balance}: {name}": v for name, v in describe(outcome).items()}
    _promise(record, outcomes)
    record.notes += [
        "the router is the gateway's, what a replica keeps is decided by the engine's cache; only "
        "sessions and times are made up",
        "a first token's time is waiting and reading of the prompt, without network and gateway",
        "recomputed: prompt tokens beyond those that no replica had computed before",
    ]
    record.finish()
    return record


def describe(outcome: Outcome) -> dict[str, float]:
    """An outcome as a record shows it."""
    seconds = max(outcome.seconds, 1e-9)
    return {
        "requests": outcome.requests,
        "tokens a day": (outcome.prompt_tokens + outcome.answer_tokens) / seconds * _DAY_S,
        "prompt tokens": outcome.prompt_tokens,
        "computed tokens": outcome.computed_tokens,
        "recomputed tokens": outcome.recomputed_tokens,
        "hit rate": outcome.hit_rate,
        "turns that moved": outcome.moved_turns,
        "first token p50, ms": 1e3 * outcome.first_at(0.5),
        "first token p99, ms": 1e3 * outcome.first_at(0.99),
        "busy, mean of replicas": sum(outcome.busy) / max(len(outcome.busy), 1),
        "answers at once, mean of replicas": sum(outcome.running) / max(len(outcome.running), 1),
        "answers at once, busiest replica": max(outcome.running, default=0.0),
    }


def _promise(record: Record, outcomes: dict[str, Outcome]) -> None:
    ours = outcomes.get("belief")
    if ours is None:
        return
    others = [each for name, each in outcomes.items() if name != "belief"]
    if others:
        name = "simulated: tokens computed by belief over those of the next best"
        best = min(each.computed_tokens for each in others)
        record.promise(name, ours.computed_tokens / max(best, 1), 1.0, "at most")
        name = "simulated: first token p99 by belief over that of the next best"
        best_s = min(each.first_at(0.99) for each in others)
        record.promise(name, ours.first_at(0.99) / max(best_s, 1e-9), 1.0, "at most")
        name = "simulated: tokens a day served by belief over the most of another"
        most = max(describe(each)["tokens a day"] for each in others)
        record.promise(name, describe(ours)["tokens a day"] / max(most, 1), 0.99, "at least")


def _checked(balance: str) -> Balance:
    return next(each for each in BALANCES if each == balance)


def _arrivals(
    sessions: Iterator[Session], sessions_per_s: float, seed: int
) -> Iterator[tuple[float, Session]]:
    rng = random.Random(seed + 1)
    now_s = 0.0
    for session in sessions:
        now_s += rng.expovariate(sessions_per_s)
        yield now_s, session


def _again_and_again(sessions: Sequence[Session], seed: int) -> Iterator[Session]:
    """A trace's sessions in any order, for ever; each time as another's."""
    rng = random.Random(seed + 2)
    for number in itertools.count():
        each = rng.choice(sessions)
        yield Session(f"{each.name}#{number}", each.shared, each.shared_tokens, each.turns)
