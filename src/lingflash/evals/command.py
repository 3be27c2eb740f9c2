"""`ling eval`: a benchmark, asked of any OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def eval_command(
    task: Annotated[
        str, typer.Argument(help="bfcl, ifbench, ...; `list` shows all, `index` runs several.")
    ],
    file: Annotated[
        Path | None, typer.Argument(help="For the task `file`: JSON lines of the kind's schema.")
    ] = None,
    *,
    base_url: Annotated[
        str, typer.Option("--base-url", help="Of the server, with or without /v1.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option("--model", help="Name that the server knows it by.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="Key of the server.")
    ] = None,
    categories: Annotated[
        list[str] | None, typer.Option("--category", help="Only this one; repeat the flag.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Schema of FILE; docs/evidence.md has them.")
    ] = None,
    sandbox_url: Annotated[
        str | None,
        typer.Option("--sandbox-url", help="Of `ling sandbox`, for tasks that run programs."),
    ] = None,
    sandbox_key: Annotated[
        str | None, typer.Option("--sandbox-key", envvar="E2B_API_KEY", help="Key of it.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", help="Of who judges answers; --base-url if none.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="Its name; --model if none.")
    ] = None,
    judge_key: Annotated[
        str | None, typer.Option("--judge-key", envvar="JUDGE_API_KEY", help="Key of --judge-url.")
    ] = None,
    user_url: Annotated[
        str | None, typer.Option("--user-url", help="Of who plays the user; --base-url if none.")
    ] = None,
    user_model: Annotated[
        str | None, typer.Option("--user-model", help="Its name; --model if none.")
    ] = None,
    user_key: Annotated[
        str | None, typer.Option("--user-key", envvar="USER_API_KEY", help="Key of --user-url.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="Tokens of each prompt of ruler.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="The model's folder or tokenizer.json, for ruler."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items, taken from all categories alike.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=1024, help="Most requests in flight.")
    ] = 8,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Left to the server if below 0.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Sent with each request.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="Sent as reasoning_effort medium or none."),
    ] = None,
    price: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--price", help="USD per million tokens: prompt, cached, completion."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest time of one answer, in seconds.")
    ] = 1800.0,
    patience_s: Annotated[
        float,
        typer.Option("--patience", min=0, help="Give up when the server is silent for so long."),
    ] = 300.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON lines; a file that is there is gone on with."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="Also a record for the report, JSON.")
    ] = None,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Write --record although src/ is not committed.")
    ] = False,
) -> None:
    """Score a model on a benchmark with known answers, and the tokens each solved task took."""
    values = dict(locals())
    # Late: it takes longer to import than `ling --help` may take in all.
    from lingflash.evals.start import list_tasks, start

    if task == "list":
        list_tasks()
    elif not start(**values):
        raise typer.Exit(1)
