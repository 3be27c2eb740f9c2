"""From the flags of `ling eval` to its runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lingflash.core.errors import ConfigError
from lingflash.evals.endpoint import Asking
from lingflash.evals.evaluation import Evaluation
from lingflash.evals.helper import Helper
from lingflash.evals.index import index_tasks, print_index
from lingflash.evals.summary import Price
from lingflash.evals.tasks.table import IMPOSSIBLE, TASKS, Choice, make_task
from lingflash.link.http_client import Address


def start(
    *,
    task: str,
    file: Path | None,
    base_url: str,
    model: str | None,
    api_key: str | None,
    categories: list[str] | None,
    kind: str | None,
    sandbox_url: str | None,
    sandbox_key: str | None,
    judge_url: str | None,
    judge_model: str | None,
    judge_key: str | None,
    user_url: str | None,
    user_model: str | None,
    user_key: str | None,
    length: int | None,
    tokenizer: str | None,
    limit: int | None,
    concurrency: int,
    temperature: float | None,
    seed: int | None,
    max_tokens: int | None,
    thinking: bool | None,
    price: tuple[float, float, float] | None,
    timeout_s: float,
    patience_s: float,
    out: Path | None,
    record: Path | None,
    allow_dirty: bool,
) -> bool:
    """Run a task, or those of the index; whether every item was answered.

    Raises:
        LingflashError: a flag is wrong, or the run cannot begin or go on.
    """
    if model is None:
        raise ConfigError("--model is missing; /v1/models of the server lists them.", param="model")
    if price is not None and min(price) < 0:
        raise ConfigError(f"--price is {price}; allowed: 0 or more.", param="price")
    address = Address.parse_any(base_url, _key(api_key), "--base-url")
    asking = Asking(
        model=model,
        temperature=None if temperature is None or temperature < 0 else temperature,
        seed=seed,
        max_tokens=max_tokens,
        thinking=thinking,
        timeout_s=timeout_s,
        patience_s=patience_s,
    )
    helper = partial(_helper, address, asking, concurrency)
    choice = partial(
        Choice,
        categories=categories or (),
        sandbox_url=sandbox_url,
        sandbox_key=_key(sandbox_key),
        length=length,
        tokenizer=tokenizer,
        judge=helper("--judge-url", judge_url, judge_model, judge_key),
        user=helper("--user-url", user_url, user_model, user_key),
    )
    evaluation = partial(
        Evaluation,
        address=address,
        asking=asking,
        concurrency=concurrency,
        limit=limit,
        price=None if price is None else Price(*price),
        out=out,
        record=record,
        allow_dirty=allow_dirty,
    )
    if task != "index":
        chosen = make_task(task, choice(file=file, kind=kind))
        return asyncio.run(evaluation(task=chosen).run())
    for flag, given in (("--out", out), ("--record", record), ("--kind", kind)):
        if given is not None:
            raise ConfigError(
                f"{flag} is not for index, whose parts have a file each; ling eval PART {flag} "
                "goes on with a part's file.",
                param=flag.lstrip("-"),
            )
    found = {}
    for part, (name, more) in index_tasks(file).items():
        # Who helps one part is not wanted by the others.
        unwanted = {who: None for who in ("judge", "user") if who not in TASKS[name].options}
        own = replace(choice(**more), **unwanted)
        found[part] = asyncio.run(evaluation(task=make_task(name, own)).measure())
    print_index(model, {part: group for part, (_, group) in found.items()})
    return all(is_whole for is_whole, _ in found.values())


def _helper(
    address: Address,
    asking: Asking,
    concurrency: int,
    flag: str,
    url: str | None,
    model: str | None,
    key: str | None,
) -> Helper:
    """Who judges, or plays the user: the model itself, asked as it is, unless another is named."""
    if url is None and model in (None, asking.model):
        return Helper(address, asking, concurrency, is_tested=True)
    place = address if url is None else Address.parse_any(url, _key(key), flag)
    own = Asking(model=model or asking.model, temperature=0.0)
    return Helper(place, own, concurrency, is_tested=False)


def _key(given: str | None) -> str | None:
    return (given or "").strip() or None


def list_tasks() -> None:
    """Print the tasks, and what cannot be run."""
    table = Table(show_header=False, box=None)
    for row in TASKS.values():
        table.add_row(row.name, row.help)
    table.add_row("index", "The parts of the Artificial Analysis Index whose data are here")
    for name, why in IMPOSSIBLE.items():
        table.add_row(name, f"not here: {why}")
    Console(highlight=False).print(table)
