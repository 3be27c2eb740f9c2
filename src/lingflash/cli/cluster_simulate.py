"""`ling cluster simulate` and `ling cluster sums`: a cluster before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Benchmarks = Annotated[
    Path, typer.Option("--benchmarks", help="Folder of the records that rates are taken from.")
]
_FOLDER = Path("benchmarks")


def simulate(
    card: Annotated[
        str, typer.Option("--card", help="What a replica runs on, as the records know it.")
    ] = "h200-fp8",
    num_replicas: Annotated[int, typer.Option("--replicas", help="How many.")] = 8,
    tokens_per_day: Annotated[
        float, typer.Option("--tokens-per-day", help="Prompts and answers that are asked.")
    ] = 12e9,
    num_gateways: Annotated[
        int, typer.Option("--gateways", help="Each learns by itself; turns come to any.")
    ] = 1,
    balances: Annotated[
        list[str] | None, typer.Option("--balance", help="Only these ways; repeat the flag.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="JSON lines of recorded sessions, instead of drawn ones."),
    ] = None,
    num_apps: Annotated[int, typer.Option("--apps", help="Drawn: different beginnings.")] = 40,
    shared_tokens: Annotated[
        int, typer.Option("--shared-tokens", help="Drawn: of each beginning, mean.")
    ] = 2000,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="Drawn: that a turn adds, mean.")
    ] = 280,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", help="Drawn: mean.")] = 390,
    turns: Annotated[int, typer.Option("--turns", help="Drawn: of a session, mean.")] = 6,
    pause_s: Annotated[
        float, typer.Option("--pause-s", help="Drawn: from an answer to the next turn, mean.")
    ] = 6.0,
    seconds: Annotated[float, typer.Option("--seconds", help="Simulated in all.")] = 600.0,
    warm_up_s: Annotated[float, typer.Option("--warm-up-s", help="Of them, not counted.")] = 300.0,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", help="Sequences that run at once on a replica.")
    ] = 128,
    cache_tokens: Annotated[
        int | None,
        typer.Option("--cache-tokens", help="That a replica keeps; what its card has room for."),
    ] = None,
    grain: Annotated[
        int, typer.Option("--grain", help="Tokens that the cache counts as one; 1 is exact.")
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of sessions and times.")] = 0,
    benchmarks: Benchmarks = _FOLDER,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Write --out although src/ is not committed.")
    ] = False,
) -> None:
    """Ways to share sessions among replicas, beside each other, by measured rates; no servers."""
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.cluster.simulation.report import run_simulation
    from lingflash.cluster.simulation.sessions import SessionShape

    if balances is None:
        balances = ["belief", "consistent_hash", "least_load", "round_robin"]
    shape = SessionShape(
        num_apps=num_apps,
        shared_tokens=shared_tokens,
        new_tokens=new_tokens,
        answer_tokens=answer_tokens,
        turns=turns,
        pause_s=pause_s,
    )
    run_simulation(
        card=card,
        benchmarks=benchmarks,
        num_replicas=num_replicas,
        tokens_per_day=tokens_per_day,
        num_gateways=num_gateways,
        balances=balances,
        trace=trace,
        shape=shape,
        seconds=seconds,
        warm_up_s=warm_up_s,
        max_num_seqs=max_num_seqs,
        cache_tokens=cache_tokens,
        grain=grain,
        seed=seed,
        out=out,
        allow_dirty=allow_dirty,
    )


def sums(
    tokens_per_day: Annotated[
        float, typer.Option("--tokens-per-day", help="Prompts and answers.")
    ] = 100e9,
    answer_percent: Annotated[
        float, typer.Option("--answer-percent", help="Of the tokens, those of answers.")
    ] = 6.0,
    benchmarks: Benchmarks = _FOLDER,
    out: Annotated[
        Path | None, typer.Option("--out", help="Markdown file to write; else it is printed.")
    ] = None,
) -> None:
    """How many cards so many tokens a day take, by batch and hit rate, from the records."""
    from lingflash.cluster.simulation.sums import write_sums

    page = write_sums(
        benchmarks, tokens_per_day=tokens_per_day, answer_percent=answer_percent, out=out
    )
    typer.echo(f"written to {out}" if out is not None else page)
