"""`ling eval index`: those parts of the Artificial Analysis Index whose data are here.

The parts are those of version 4.0, current when Ling-2.6-flash was announced. The index itself is
not computed: most of its weight lies on parts that are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lingflash.evals.summary import Group

# Parts, the tasks that are they, and what of Choice makes them that.
HERE: dict[str, tuple[str, dict[str, Any]]] = {
    "IFBench": ("ifbench", {}),
    "AA-LCR": ("aa-lcr", {}),
    "tau2-Bench Telecom": ("tau2", {"categories": ("telecom",)}),
}
FROM_FILE = "GPQA Diamond"
MISSING = {
    FROM_FILE: "its data are not public; give its file: ling eval index gpqa_diamond.csv",
    "Terminal-Bench Hard": "needs containers and their images",
    "SciCode": "its data are in no package",
    "AA-Omniscience": "its questions are not public",
    "Humanity's Last Exam": "its data are not public",
    "CritPt": "its answers are not public",
    "GDPval-AA": "people and another model compare the answers",
}


def print_index(model: str, parts: Mapping[str, Group]) -> None:
    """What the announcement prints: score and output tokens, part by part; and what is missing."""
    table = Table(
        title=f"Parts of the Artificial Analysis Index 4.0, {model}", title_justify="left"
    )
    for name in ("part", "score", "95 %", "output tokens", "a solved task"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    total = 0
    for part, group in parts.items():
        found = group.as_dict()
        low, high = found["score_interval"]
        tokens = found.get("completion_tokens")
        per_solved = found.get("completion_tokens_per_solved")
        total += tokens or 0
        table.add_row(
            part, f"{found['score']:.1f}", f"{low:.1f}-{high:.1f}",
            "unmetered" if tokens is None else f"{tokens:,}",
            "-" if per_solved is None else f"{per_solved:,.1f}",
        )  # fmt: skip
    table.add_row("these parts", "", "", f"{total:,}", "")
    console = Console(highlight=False)
    console.print(table)
    for part, why in MISSING.items():
        if part not in parts:
            console.print(f"missing: {part}: {why}")
    console.print("The index is not computed without them.")


def index_tasks(file: Path | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Task of each part, and what makes it that, in the order in which they are run."""
    own = {} if file is None else {FROM_FILE: ("file", {"file": file, "kind": "choice"})}
    return HERE | own
