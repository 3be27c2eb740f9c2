"""What makes a row of `command.py` a command; a room is imported when its command runs."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

app = typer.Typer(
    help="Measure: tokens per second, host time, memory, serving load, endurance.",
    no_args_is_help=True,
)

# What each room needs.
_ROOMS = {
    "on_gpu": "On one NVIDIA GPU, with lingflash[cuda]",
    "in_engine": "In this process, with lingflash[engine]",
    "over_http": "Over HTTP; lingflash[engine] only to start a server of its own",
    "roofline": "Computed, anywhere; --measure on one NVIDIA GPU, with lingflash[cuda]",
}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of the table.

    Args:
        titles: heading in RESULTS.md of each case that its records name.
    """

    name: str
    room: str
    titles: dict[str, str]

    def runner(self) -> Callable[..., Any]:
        """What does the work; imports it."""
        module = importlib.import_module(f"lingflash.bench.{self.room}.{self.name}")
        return getattr(module, f"run_{self.name}")


BENCHMARKS: list[Benchmark] = []


def benchmark(room: str, **titles: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a row for the function under it, which is only read: its name, help and parameters."""

    def add(flags: Callable[..., None]) -> Callable[..., None]:
        row = Benchmark(flags.__name__, room, titles)

        @functools.wraps(flags)
        def command(**values: Any) -> None:
            if room == "in_engine":
                # Idle OpenMP threads sleep, as in the server: spinning, they hold up the others.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            # What it started is ended on the way out, as by Ctrl-C.
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                result = row.runner()(**values)
                if inspect.iscoroutine(result):
                    result = asyncio.run(result)
            finally:
                signal.signal(signal.SIGTERM, before)
            if result is False:
                raise typer.Exit(1)

        BENCHMARKS.append(row)
        return app.command(rich_help_panel=_ROOMS[room])(command)

    return add
