"""The table of all tasks of `ling eval`, and of benchmarks that cannot be run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.evals.code import require_code_runner
from lingflash.evals.helper import Helper
from lingflash.evals.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a task was asked for on the command line; None and () were not said."""

    categories: Sequence[str] = ()
    file: Path | None = None
    kind: str | None = None
    sandbox_url: str | None = None
    sandbox_key: str | None = None
    length: int | None = None
    tokenizer: str | None = None
    judge: Helper | None = None
    user: Helper | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A task.

    Args:
        place: module and class, imported when it is run.
        help: in one line.
        options: what of Choice it takes, as arguments of the class.
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
            "human-eval",
            "human_eval:HumanEval",
            "HumanEval: 164 functions, run in a sandbox",
            ("code_runner",),
        ),
        Row("aa-lcr", "aa_lcr:AaLcr", "AA-LCR: 100 questions on long documents", ("judge",)),
        Row(
            "tau2",
            "tau2:Tau2",
            "tau2-bench: agent and user, in airline, retail and telecom",
            ("user", "categories"),
        ),
        Row(
            "ruler",
            "ruler:Ruler",
            "RULER: 13 kinds of prompts of one --length, 500 each",
            ("length", "tokenizer", "categories"),
        ),
        Row(
            "file",
            "files:FileTask",
            "FILE of --kind choice (GPQA, LongBench-v2), boxed (AIME, MATH-500), multi_if or code",
            ("file", "kind", "code_runner"),
        ),
    )
}

_FLAGS = {
    "categories": "--category", "file": "FILE", "kind": "--kind", "code_runner": "--sandbox-url",
    "length": "--length", "tokenizer": "--tokenizer",
    "judge": "--judge-url or --judge-model", "user": "--user-url or --user-model",
}  # fmt: skip

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
        raise ConfigError(f"TASK is {name!r}; allowed: {', '.join(TASKS)}, index.", param="task")
    row = TASKS[name]
    given: dict[str, Any] = {
        "categories": choice.categories or None,
        "file": choice.file,
        "kind": choice.kind,
        "code_runner": choice.sandbox_url,
        "length": choice.length,
        "tokenizer": choice.tokenizer,
        # The model itself helps where nobody was named.
        "judge": None if choice.judge is None or choice.judge.is_tested else choice.judge,
        "user": None if choice.user is None or choice.user.is_tested else choice.user,
    }
    for option, value in given.items():
        if value is not None and option not in row.options:
            takers = ", ".join(r.name for r in TASKS.values() if option in r.options)
            raise ConfigError(
                f"{_FLAGS[option]} was given, and {name} takes none; these do, and only: {takers}.",
                param=option,
            )
    if "code_runner" in row.options and (name != "file" or choice.kind == "code"):
        what = name if choice.kind is None else f"--kind {choice.kind}"
        given["code_runner"] = require_code_runner(what, choice.sandbox_url, choice.sandbox_key)
    given |= {name: getattr(choice, name) for name in ("judge", "user") if name in row.options}
    module, _, class_name = row.place.partition(":")
    found = getattr(importlib.import_module(f"lingflash.evals.tasks.{module}"), class_name)
    return found(**{option: value for option, value in given.items() if value is not None})
