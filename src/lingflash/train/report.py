"""What a run shows: a progress bar on a terminal, plain lines elsewhere, and the loss curve."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


class Progress:
    """Progress of a run whose length is a time.

    Args:
        total_s: length of the schedule.
        every_s: seconds between plain lines.
    """

    def __init__(self, total_s: float, every_s: float = 5.0) -> None:
        self._total_s = total_s
        self._every_s = every_s
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=total_s)

    def update(
        self,
        elapsed_s: float,
        step: int,
        loss: float,
        mtp: float,
        tokens_per_s: float,
        lr: float,
        ready: int,
    ) -> None:
        """Show the state of the run."""
        speed = f"{tokens_per_s / 1e3:,.0f}k tok/s"
        text = f"step {step} loss {loss:.4f} mtp {mtp:.4f} {speed} lr {lr:.2e}"
        if self._bar is not None:
            self._bar.update(self._task, completed=elapsed_s, description=text)
        elif time.monotonic() - self._last > self._every_s:
            self._last = time.monotonic()
            eta = max(0.0, self._total_s - elapsed_s)
            print(
                f"{elapsed_s:7.1f}s {text} ready {ready} eta {eta:.0f}s",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()


def draw_loss_curve(log: list[dict[str, Any]], batch_tokens: int, path: Path) -> bool:
    """Draw loss and held-out scores over tokens; returns false if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(8, 4.5))
    losses = [e for e in log if "loss" in e]
    scale = batch_tokens / 1e6
    left.plot(
        [e["step"] * scale for e in losses],
        [e["loss"] for e in losses],
        label="loss",
        color="tab:blue",
    )
    left.plot(
        [e["step"] * scale for e in losses],
        [e["mtp"] for e in losses],
        label="MTP loss",
        color="tab:cyan",
        lw=0.7,
    )
    left.set_yscale("log")
    left.set_xlabel("million tokens")
    left.set_ylabel("loss on answer tokens")
    right = left.twinx()
    scored = [e for e in log if "scores" in e]
    for name, color in (("held-out", "tab:red"), ("hand-written", "tab:orange")):
        points = [
            (e["step"] * scale, e["scores"][name]["all"]) for e in scored if name in e["scores"]
        ]
        right.plot(
            [p[0] for p in points],
            [p[1][0] / p[1][1] for p in points],
            "o-",
            ms=3,
            label=name,
            color=color,
        )
    right.set_ylim(0, 1)
    right.set_ylabel("exact answers")
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True
