"""One run of `ling eval`: check, ask, sum up, print, record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lingflash.evals.endpoint import Asking, Endpoint
from lingflash.evals.results import ResultsFile
from lingflash.evals.runner import Counts, failures_text, run_items
from lingflash.evals.summary import Group, Price, Summary
from lingflash.evals.task import Item, Task, take_evenly
from lingflash.link.http_client import Address
from lingflash.records.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was asked for on the command line."""

    task: Task
    address: Address
    asking: Asking
    concurrency: int
    limit: int | None
    price: Price | None
    out: Path | None
    record: Path | None
    allow_dirty: bool

    async def run(self) -> bool:
        """Do it all; whether every item was answered. See measure."""
        return (await self.measure())[0]

    async def measure(self) -> tuple[bool, Group]:
        """Do it all; whether every item was answered, and what all come to.

        Raises:
            LingflashError: it cannot begin, or not go on.
        """
        record = Record("eval", self.record, self.allow_dirty, flag="--record")
        endpoint = Endpoint(self.address, self.asking, self.concurrency)
        await endpoint.check(needs_tools=self.task.needs_tools)
        try:
            await self.task.open()
            items = take_evenly(self.task.items(), self.limit)
            results = ResultsFile(self._path(), self._settings())
            try:
                counts = await run_items(self.task, items, endpoint, results)
                summary = Summary.of(results.lines([item.id for item in items]))
            finally:
                results.close()
        finally:
            await self.task.close()
        self._print(summary, items, counts, endpoint)
        self._fill(record, summary, items, counts, endpoint)
        record.save()
        return not counts.num_unanswered, summary.whole

    def _path(self) -> Path:
        if self.out is not None:
            return self.out
        model = re.sub(r"[^\w.-]+", "-", self.asking.model)
        return Path(f"{self.task.name}-{model}.jsonl")

    def _settings(self) -> dict[str, Any]:
        """What must not change while a file is gone on with."""
        asking = self.asking
        return {
            "task": self.task.name,
            "versions": dict(self.task.versions()),
            "model": asking.model,
            "temperature": asking.temperature,
            "seed": asking.seed,
            "max_tokens": asking.max_tokens,
            "thinking": asking.thinking,
        }

    def _fill(
        self,
        record: Record,
        summary: Summary,
        items: list[Item],
        counts: Counts,
        endpoint: Endpoint,
    ) -> None:
        record.settings = {
            **self._settings(),
            "endpoint": endpoint.url,
            "limit": self.limit,
            "items_of_the_task": len(self.task.items()),
            "concurrency": self.concurrency,
            "least_concurrency": endpoint.limiter.least,
        }
        record.derived = {
            "all": summary.whole.as_dict(self.price),
            "categories": {
                name: group.as_dict(self.price) for name, group in summary.categories.items()
            },
            "reasons": dict(summary.reasons.most_common()),
            "failures": dict(sorted(summary.failures.items())),
            "seconds": round(counts.seconds, 1),
            "samples": summary.samples,
        }
        record.notes = [
            *self.task.notes,
            "intervals are 95 %, from 2,000 draws of the items with replacement",
            "tokens per solved task: completion tokens of all items, reasoning and failures "
            "included, over the items solved",
            "a sample is 1 if the item is solved, else 0, and its completion tokens",
        ]
        if len(summary.samples) < len(items):
            record.notes.append(f"{len(items) - len(summary.samples)} items were not answered")

    def _print(
        self, summary: Summary, items: list[Item], counts: Counts, endpoint: Endpoint
    ) -> None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 150
        title = f"{self.task.name}, {self.asking.model} at {endpoint.url}"
        table = Table(title=title, title_justify="left")
        columns = [
            "",
            "solved",
            "of",
            "score",
            "95 %",
            "prompt",
            "cached",
            "completion",
            "per solved",
        ]
        scores = list(summary.whole.scores)
        columns[4:4] = scores
        if self.price is not None:
            columns.append("USD")
        for column in columns:
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        groups = summary.categories if len(summary.categories) > 1 else {}
        for name, group in [*groups.items(), ("all", summary.whole)]:
            table.add_row(*self._row(name, group, scores))
        console.print(table)
        if not summary.whole.is_metered:
            console.print("unmetered: an answer had no usage, so no tokens are counted")
        for note in self.task.notes:
            console.print(f"note: {note}")
        if summary.failures:
            console.print(f"attempts without an answer: {failures_text(summary.failures)}")
        missing = len(items) - len(summary.samples)
        if missing:
            console.print(
                f"PARTIAL: {missing} of {len(items)} items were not answered; the same command "
                "asks them again"
            )
        console.print(
            f"{counts.num_asked} asked in {counts.seconds:.1f} s, "
            f"{len(summary.samples) - counts.num_asked} were there; in {self._path()}"
        )

    def _row(self, name: str, group: Group, scores: list[str]) -> list[str]:
        found = group.as_dict(self.price)
        if not found["items"]:
            return [name, "0", "0"]
        low, high = found["score_interval"]
        cells = [
            name, str(found["solved"]), str(found["items"]), f"{found['score']:.1f}",
            *(f"{found[s]:.1f}" if s in found else "-" for s in scores), f"{low:.1f}-{high:.1f}",
        ]  # fmt: skip
        if not group.is_metered:
            return [*cells, *["unmetered"] * 4]
        per_solved = found["completion_tokens_per_solved"]
        cells += [f"{found[f'{name}_tokens']:,}" for name in ("prompt", "cached", "completion")]
        cells.append("-" if per_solved is None else f"{per_solved:,.1f}")
        if self.price is not None:
            cells.append(f"{found['cost_usd']:.4f}")
        return cells
