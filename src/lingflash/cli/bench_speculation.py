"""`ling bench speculation`: here, since it joins the held-out conversations with the benchmark."""

from __future__ import annotations

from typing import Annotated

import typer

from lingflash.bench.command import (
    DirtyOption,
    ModelOption,
    OutOption,
    SeedOption,
    ThreadsOption,
    quiet_threads,
)
from lingflash.core.config import BUNDLED_MODEL


def speculation(
    model: ModelOption = BUNDLED_MODEL,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    cases: Annotated[int, typer.Option("--cases", help="Held-out conversations to draw.")] = 60,
    num_seqs: Annotated[int, typer.Option("--num-seqs", help="Conversations at once.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Of each answer.")] = 200,
    repeats: Annotated[int, typer.Option("--repeats", help="Counted rounds.")] = 3,
    seed: SeedOption = 7,
    threads: ThreadsOption = None,
    out: OutOption = None,
    allow_dirty: DirtyOption = False,
) -> None:
    """Accepted drafts of the MTP layer on held-out tool calls, and tokens/s with and without."""
    quiet_threads()
    from lingflash.bench.in_engine.speculation import run_speculation
    from lingflash.train.data.heldout import heldout_cases

    run_speculation(
        cases=[case for case in heldout_cases(cases, seed) if "calls" in case["expected"]],
        model=model,
        device=device,
        num_seqs=num_seqs,
        max_tokens=max_tokens,
        repeats=repeats,
        threads=threads,
        out=out,
        allow_dirty=allow_dirty,
    )
