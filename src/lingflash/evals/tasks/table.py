"""The table of all tasks of `ling eval`, and of benchmarks that cannot be run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingflash.core.errors import ConfigError
from lingflash.evals.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a task was asked for on the command line; None and () were not said."""

    categories: Sequence[str] = ()
    file: Path | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A task.

    Args:
        place: module and class, imported when it is run.
        help: in one line.
        options: fields of Choice that it takes, as arguments of the class.
    """

    name: str
    place: str
    help: str
    options: Sequence[str] = field(default=())


TASKS = {
    row.name: row
    for row in (
        Row("bfcl", "bfcl:Bfcl", "BFCL-V4: single calls, several turns", ("categories",)),
        Row(
            "ifbench",
            "ifbench:IfBench",
            "IFBench: 294 of its 300 prompts, with verifiable instructions",
        ),
        Row(
            "file",
            "files:FileTask",
            "FILE of --kind choice (GPQA, LongBench-v2), boxed (AIME, MATH-500) or multi_if",
            ("file", "kind"),
        ),
    )
}

# Named in the announcement, or asked for often.
IMPOSSIBLE = {
    "ccalignbench": "CCAlignBench has no public source",
    "pinchbench": "PinchBench needs a running OpenClaw and a judge: point OpenClaw at the server, "
    "and read tokens and cost from the gateway's ledger",
}


def make_task(name: str, choice: Choice) -> Task:
    """The task of a name.

    Raises:
        ConfigError: there is none, or it does not take what was given.
    """
    if name.lower() in IMPOSSIBLE:
        raise ConfigError(f"TASK is {name}: {IMPOSSIBLE[name.lower()]}.", param="task")
    if name not in TASKS:
        raise ConfigError(f"TASK is {name!r}; allowed: {', '.join(TASKS)}.", param="task")
    row = TASKS[name]
    given = {
        "categories": choice.categories or None, "file": choice.file, "kind": choice.kind,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None and option not in row.options:
            flag = {"categories": "--category", "file": "FILE", "kind": "--kind"}[option]
            takers = [r.name for r in TASKS.values() if option in r.options]
            raise ConfigError(
                f"{flag} was given, and {name} has none; only {', '.join(takers)} has.",
                param=option,
            )
    module, _, class_name = row.place.partition(":")
    found = getattr(importlib.import_module(f"lingflash.evals.tasks.{module}"), class_name)
    return found(**{option: value for option, value in given.items() if value is not None})
