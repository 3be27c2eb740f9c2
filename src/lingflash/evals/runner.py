"""Asks every item that has no line in the results yet, many at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lingflash.core.errors import LingflashError
from lingflash.evals.endpoint import Endpoint, NotAnswered, Refused, Trace
from lingflash.evals.results import ResultsFile
from lingflash.evals.task import Item, Message, Reply, Task, Verdict

_PRINT_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run did.

    Args:
        num_asked: items that got their line now.
        num_unanswered: items that the server failed at; they have no line.
    """

    num_asked: int
    num_unanswered: int
    seconds: float


async def run_items(
    task: Task, items: Sequence[Item], endpoint: Endpoint, results: ResultsFile
) -> Counts:
    """Ask what is missing, write each answer down at once, and sort the file when all is there.

    Raises:
        LingflashError: the run cannot go on; what was answered is in the file.
    """
    todo = [item for item in items if item.id not in results]
    started = time.monotonic()
    unanswered: list[str] = []
    with _Bar(task.name, len(items), len(results), endpoint) as bar:
        queue: Iterator[Item] = iter(todo)

        async def work() -> None:
            for item in queue:  # shared: each takes the next
                try:
                    line = await _attempt(task, item, endpoint)
                except NotAnswered as error:
                    unanswered.append(f"{item.id}: {error.message}")
                    continue
                results.add(line)
                bar.advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.limiter.most, len(todo))):
                    group.create_task(work())
        except* LingflashError as errors:
            raise errors.exceptions[0] from None
    if not unanswered:
        results.sort([item.id for item in items])
    return Counts(len(todo) - len(unanswered), len(unanswered), time.monotonic() - started)


async def _attempt(task: Task, item: Item, endpoint: Endpoint) -> dict[str, Any]:
    """An item's line."""
    trace, started = Trace(), time.monotonic()

    async def ask(
        messages: Sequence[Message], *, tools: Sequence[Any] = (), **fields: Any
    ) -> Reply:
        return await endpoint.ask(trace, messages, tools, fields)

    try:
        verdict = await task.attempt(item, ask)
    except Refused as error:
        # A prompt that does not fit, say: the model has not solved it.
        verdict = Verdict(False, f"refused: {error.message}")
    tokens = trace.tokens
    return {
        "id": item.id,
        "category": item.category,
        "solved": verdict.is_solved,
        **({"why": verdict.why} if verdict.why else {}),
        **({"scores": dict(verdict.scores)} if verdict.scores else {}),
        "replies": trace.replies,
        "tokens": (
            {
                "prompt": tokens.prompt,
                "completion": tokens.completion,
                "reasoning": tokens.reasoning,
            }
            if trace.is_metered
            else None
        ),
        "run": {
            "seconds": round(time.monotonic() - started, 3),
            "cached": tokens.cached,
            **({"failures": trace.failures} if trace.failures else {}),
        },
    }


class _Bar:
    """Items done, rate, tokens and time left; lines now and then where there is no terminal."""

    def __init__(self, name: str, total: int, done: int, endpoint: Endpoint) -> None:
        self._name, self._total, self._done = name, total, done
        self._endpoint = endpoint
        self._num_new = 0
        self._started = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._is_live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._is_live,
        )
        self._row = self._progress.add_task(name, total=total, completed=done, said="")
        self._console = console

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """An item is done."""
        self._num_new += 1
        now = time.monotonic()
        seconds = max(now - self._started, 1e-6)
        tokens = self._endpoint.tokens.completion
        said = (
            f"{self._num_new / seconds:.2f}/s {tokens:,} tokens "
            f"({tokens / seconds:,.0f}/s) {failures_text(self._endpoint.failures)}"
        )
        self._progress.update(self._row, advance=1, said=said)
        done = self._done + self._num_new
        if not self._is_live and (now - self._printed > _PRINT_EVERY_S or done == self._total):
            self._printed = now
            left = (self._total - done) * seconds / self._num_new
            self._console.print(
                f"{self._name}: {done} of {self._total}, {said}, {left:.0f} s left", highlight=False
            )


def failures_text(failures: Mapping[str, int]) -> str:
    """Attempts without an answer, by kind."""
    return ", ".join(f"{count}x {kind}" for kind, count in sorted(failures.items()))
