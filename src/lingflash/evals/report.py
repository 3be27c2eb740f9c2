"""The page of evidence: each claim of the announcement beside what was measured here, if it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.records.page import Chart, Html, Line, page, table
from lingflash.records.record import SCHEMA

Record = Mapping[str, Any]
_NOT_MEASURED = Html('<span class="no">not measured</span>')
_MODEL = "Ling-2.6-flash"
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of the announcement.

    Args:
        announced: its figure.
        find: our figures for it in a record, in words; none if it has none.
        command: what measures it, where nothing has.
    """

    what: str
    announced: str
    find: Callable[[Record], list[str]]
    command: str


def _single_stream(record: Record) -> list[str]:
    case = record.get("derived", {}).get("decode b1 c1024")
    if record["case"] != "latency" or not isinstance(case, dict):
        return []
    settings = record["settings"]
    ranks = settings.get("tensor_parallel_size", 1)
    return [
        f"{case['tokens_per_s']:,.0f} tokens/s, {settings['format']}, "
        f"{ranks}x {settings['gpu']['name']}, random weights of the true shapes"
    ]


def _curve(phase: str) -> Callable[[Record], list[str]]:
    def find(record: Record) -> list[str]:
        if record["case"] != "curves":
            return []
        settings = record["settings"]
        if settings["kind"] == "measured":
            series = record["results"].get(f"{phase} {'c' * (phase == 'decode')}65536")
            if series is None:
                return []
            base = record["results"].get(f"{phase} GLM-4.5-Air vllm 65536")
            said = "alone, without a peer beside it, which gives no ratio"
            if base is not None:
                said = f"{series['median'] / base['median']:.2f}x GLM-4.5-Air in vLLM"
            return [f"{series['median']:,.0f} tokens/s of one rank's slice, {said}"]
        ours, base = (
            record["results"].get(f"{phase} {name} 65536") for name in (_MODEL, "GLM-4.5-Air")
        )
        if ours is None or base is None:
            return []
        return [f"roofline {ours['median'] / base['median']:.2f}x (computed, {settings['device']})"]

    return find


def _score(task: str) -> Callable[[Record], list[str]]:
    """Of the tasks whose whole name is this regular expression; a user's file is file-NAME."""

    def find(record: Record) -> list[str]:
        settings = record["settings"]
        if record["case"] != "eval" or not re.fullmatch(task, settings["task"], re.IGNORECASE):
            return []
        name = "" if settings["task"] == task else f"{settings['task']}, "
        return [f"{name}{score_text(record)}, by {settings['model']}"]

    return find


def _tokens(record: Record) -> list[str]:
    if record["case"] != "eval":
        return []
    per_solved = record["derived"]["all"].get("completion_tokens_per_solved")
    if per_solved is None:
        return []
    settings = record["settings"]
    return [f"{per_solved:,.0f} a solved task, {settings['task']}, by {settings['model']}"]


def _nothing(record: Record) -> list[str]:
    return []


_EVAL = "ling eval {} --base-url URL --model NAME"
_FILE = "ling eval file FILE --kind {} --base-url URL --model NAME"
_NO_FIGURE = "see the announcement's table"
CLAIMS = (
    Claim(
        "Decoding, one stream, 4x H20-3e", "up to 340 tokens/s", _single_stream,
        "ling bench latency --batch 1 --context 1024 --tensor-parallel-size 4",
    ),
    Claim(
        "Decoding at 65,536 tokens of output, batch 32, TP=4, against GLM-4.5-Air",
        "4.38x (Nemotron-3-Super 3.37x, Qwen3.5-122B-A10B 1.90x)", _curve("decode"),
        "ling bench curves --measure",
    ),
    Claim(
        "Prompts of 65,536 tokens, batch 32, TP=4, against GLM-4.5-Air",
        "4.68x (Nemotron-3-Super 2.12x)", _curve("prefill"), "ling bench curves --measure",
    ),
    Claim(
        "Output tokens for the same tasks", "a tenth (15M against 110M)", _tokens,
        _EVAL.format("TASK"),
    ),
    Claim("BFCL-V4", _NO_FIGURE, _score("bfcl"), _EVAL.format("bfcl")),
    Claim("IFBench", _NO_FIGURE, _score("ifbench"), _EVAL.format("ifbench")),
    Claim("TAU2-bench", _NO_FIGURE, _score("tau2"), _EVAL.format("tau2")),
    Claim(
        "AA-LCR, a part of the Artificial Analysis Index", "-", _score("aa-lcr"),
        _EVAL.format("aa-lcr"),
    ),
    Claim(
        "Multi-IF", _NO_FIGURE, _score("file-.*multi.?if.*"), _FILE.format("multi_if"),
    ),
    Claim(
        "LongBench-v2, GPQA-Diamond", _NO_FIGURE, _score("file-.*(longbench|gpqa).*"),
        _FILE.format("choice"),
    ),
    Claim(
        "AIME 2025, MATH-500", _NO_FIGURE, _score("file-.*(aime|math).*"), _FILE.format("boxed"),
    ),
    Claim(
        "LiveCodeBench", _NO_FIGURE, _score("file-.*live.?code.*"),
        _FILE.format("code") + " --sandbox-url URL",
    ),
    Claim(
        "RULER (not announced; stands for long prompts)", "-", _score(r"ruler-\d+"),
        _EVAL.format("ruler") + " --tokenizer FOLDER --length 65536",
    ),
    Claim(
        "HumanEval (not announced; stands for code)", "-", _score("human-eval"),
        _EVAL.format("human-eval") + " --sandbox-url URL",
    ),
    Claim("PinchBench", _NO_FIGURE, _nothing, "a running OpenClaw, pointed at the server"),
    Claim("CCAlignBench", _NO_FIGURE, _nothing, "none: it has no public source"),
)  # fmt: skip


def load_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The records of `ling eval --record` in a folder, by name; none if there is no folder.

    Raises:
        ConfigError: a file is no such record.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            ok = data["schema"] == SCHEMA and data["case"] == "eval" and data["derived"]["all"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            ok, data = False, {}
        if not ok:
            raise ConfigError(f"{path} is no record of `ling eval --record`.", param="folder")
        found.append(
            {**data, "file": path.name, "title": f"Evaluation: {data['settings']['task']}"}
        )
    return found


def evidence_page(
    records: Sequence[Record], evaluations: Sequence[Record], curves: Sequence[str]
) -> str:
    """The whole page.

    Args:
        records: of benchmarks, each with its file and title.
        evaluations: the same of `ling eval`.
        curves: parts of the page about the two curves, HTML.
    """
    every = [*evaluations, *records]
    return page(
        "Evidence",
        [
            "<p>Each claim of the announcement, what it says, and what was measured here. What is "
            "announced is never joined with what is ours; figures of another model, such as "
            "ling-nano, are named as that model's.</p>",
            "<h2>Claims</h2>",
            _claims(every),
            *_evaluations(evaluations),
            *curves,
            "<h2>Records</h2>",
            _records(every),
        ],
    )


def _claims(records: Sequence[Record]) -> str:
    rows: list[list[str | Html]] = []
    for claim, found in _found(records):
        if not found:
            rows.append([claim.what, claim.announced, _NOT_MEASURED, _code(claim.command), "-"])
        for number, (text, record) in enumerate(found):
            head = [claim.what, claim.announced] if number == 0 else ["", ""]
            rows.append([*head, text, _code(record["command"]), _machine(record)])
    return table(["claim", "announced", "here", "command", "machine"], rows)


def _found(records: Sequence[Record]) -> list[tuple[Claim, list[tuple[str, Record]]]]:
    """Each claim with what was measured of it."""
    return [
        (claim, [(text, record) for record in records for text in claim.find(record)])
        for claim in CLAIMS
    ]


def evidence_json(records: Sequence[Record], evaluations: Sequence[Record]) -> dict[str, Any]:
    """The same claims and records for a screen; a claim that nothing measured has a command alone.

    Args:
        records, evaluations: as of evidence_page().
    """
    every = [*evaluations, *records]
    claims = [
        {
            "claim": claim.what,
            "announced": claim.announced,
            "command": claim.command,
            "here": [
                {"text": text, "command": record["command"], "machine": _machine(record)}
                for text, record in found
            ],
        }
        for claim, found in _found(every)
    ]
    return {"claims": claims, "records": [_record(each) for each in every]}


def _record(record: Record) -> dict[str, str]:
    return {
        "title": record["title"],
        "command": record["command"],
        "machine": _machine(record),
        "when": f"{record['date'][:10]}, {record['commit'][:12]}" + ", dirty" * record["dirty"],
        "file": record["file"],
    }


def _code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def _machine(record: Record) -> str:
    gpu = record["settings"].get("gpu")
    if record["settings"].get("kind") == "roofline":
        return "computed"
    return gpu["name"] if gpu else record["machine"]["cpu"].split(" (")[0]


def score_text(record: Record) -> str:
    """A score, its interval, and of how many items."""
    found = record["derived"]["all"]
    low, high = found["score_interval"]
    whole = record["settings"].get("items_of_the_task", found["items"])
    of = f" of {whole:,}" if whole > found["items"] else ""
    return f"{found['score']:.1f} ({low:.1f} to {high:.1f}) on {found['items']:,}{of} items"


def _evaluations(evaluations: Sequence[Record]) -> list[str]:
    """Each evaluation's table of categories, and all of them as score against tokens."""
    if not evaluations:
        return ["<h2>Evaluations</h2>", '<p class="no">None is committed.</p>']
    parts = ["<h2>Evaluations</h2>"]
    metered = [r for r in evaluations if r["derived"]["all"].get("metered", True)]
    if metered:
        lines = [
            Line(
                f"{record['settings']['model']}, {record['settings']['task']}", "sample", n % 6,
                [(record["derived"]["all"]["completion_tokens_per_item"],
                  record["derived"]["all"]["score"])],
            )
            for n, record in enumerate(metered)
        ]  # fmt: skip
        chart = Chart(
            title="Score against output tokens", x_name="output tokens an item, failures included",
            y_name="score", lines=lines, is_log_x=False,
        )  # fmt: skip
        parts.append(chart.figure())
    for record in evaluations:
        settings = record["settings"]
        parts.append(
            f"<h2>{escape(settings['task'])}, {escape(settings['model'])}: "
            f"{escape(score_text(record))}</h2>"
        )
        parts.append(_categories(record))
        reasons = list(record["derived"].get("reasons", {}).items())[:_MOST_REASONS]
        if reasons:
            said = ", ".join(f"{escape(why) or 'no reason'} ({count:,})" for why, count in reasons)
            parts.append(f"<p>Not solved, most often: {said}.</p>")
        notes = "; ".join(map(escape, record["notes"]))
        parts.append(f'<p class="dim">{notes}.</p>')
    return parts


def _categories(record: Record) -> str:
    derived = record["derived"]
    names = ["score", "prompt_tokens", "cached_tokens", "completion_tokens",
             "completion_tokens_per_solved", "cost_usd"]  # fmt: skip
    names = [name for name in names if name in derived["all"]]
    rows = []
    for category, found in [*derived["categories"].items(), ("all", derived["all"])]:
        numbers = [found.get(name) for name in names]
        cells = ["-" if x is None else f"{x:,.1f}" if isinstance(x, float) else f"{x:,}"
                 for x in numbers]  # fmt: skip
        rows.append([category, f"{found['solved']} of {found['items']}", *cells])
    heads = [name.replace("_", " ").replace("completion", "output") for name in names]
    return table(["category", "solved", *heads], rows, numbers=len(names) + 1)


def _records(records: Sequence[Record]) -> str:
    rows: list[list[str | Html]] = []
    for each in map(_record, records):
        command = _code(each["command"])
        rows.append([each["title"], command, each["machine"], each["when"], each["file"]])
    return table(["what", "command", "machine", "when, commit", "file"], rows)
