"""Benchmarks whose questions the user brings: one schema for each kind, docs/evidence.md has them.

    choice     GPQA, LongBench-v2: a letter
    boxed      AIME, MATH-500: a formula in \\boxed{}
    multi_if   Multi-IF: three turns of verifiable instructions
    code       LiveCodeBench: a program and its tests, in a sandbox

The published files are read as they are, too (`published.py`).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.evals.code import CodeRunner
from lingflash.evals.environment import locked_versions
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict
from lingflash.evals.tasks.published import FORMATS

# Fields of a line, with their types; `id` and `category` may be left out everywhere.
SCHEMAS: dict[str, dict[str, type]] = {
    "choice": {"question": str, "choices": list, "answer": str},
    "boxed": {"question": str, "answer": str},
    "multi_if": {"turns": list},
    "code": {"question": str, "tests": list},
}
_LETTERS = "ABCDEFGHIJ"
_CHOICE_PROMPT = """{context}{question}

{choices}

Think about it, then end with a line "Answer: X", where X is one letter of {letters}."""
_BOXED_PROMPT = "{question}\n\nReason step by step, and put the final answer within \\boxed{{}}."
_CODE_PROMPT = (
    "{question}\n\nWrite a Python program that reads standard input and prints the answer. End "
    "with the whole program in one block of code:\n```python\n...\n```"
)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_TEST_S = 10.0
_ANSWER_LINE = re.compile(r"(?i:answer)[\s:*]*(?i:is)?[\s:*$(]+([A-J])\b")
_BOXED_LETTER = re.compile(r"\\boxed\{\s*(?:\\text\{)?\(?([A-J])\b")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, a JSON list or CSV.

    Raises:
        ConfigError: it is none of them; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"FILE is {path}; it cannot be read: {error}.", param="file") from None
    if path.suffix == ".csv":
        csv.field_size_limit(len(text) + 1)  # a context is longer than the module's own limit
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise _bad_file(path, f"no CSV ({error})") from None
    is_list = text.lstrip().startswith("[")
    rows, place = [], ""
    try:
        for number, part in enumerate([text] if is_list else text.split("\n"), 1):
            place = "" if is_list else f"line {number}: "
            if part.strip():
                rows.append(json.loads(part))
    except (ValueError, RecursionError) as error:
        raise _bad_file(path, f"{place}no JSON ({error})") from None
    rows = rows[0] if is_list else rows
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise _bad_file(path, "a row is no object" if rows else "it is empty")
    return rows


def _bad_file(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"FILE is {path}: {why}; JSON lines, a JSON list or .csv is needed.", param="file"
    )


def read_items(path: Path, kind: str) -> list[Item]:
    """The questions of a file, checked.

    Raises:
        ConfigError: a row is of no schema that the kind knows; the message names row and field.
    """
    items, seen = [], set()
    for number, row in enumerate(read_rows(path), 1):
        if not SCHEMAS[kind].keys() <= row.keys():
            row = _convert(path, kind, number, row)
        row = {**row, **_lists_of_text(kind, row)}
        for name, wanted in SCHEMAS[kind].items():
            if not isinstance(row[name], wanted) or not row[name]:
                raise _bad_row(
                    path, number, f"{name} is {row[name]!r:.60}; {_words(wanted)} needed"
                )
        if problem := CHECKS[kind](row):
            raise _bad_row(path, number, problem)
        item_id = str(row.get("id", number))
        if item_id in seen:
            raise _bad_row(path, number, f"id {item_id!r} was there before")
        seen.add(item_id)
        items.append(Item(item_id, str(row.get("category") or kind), row))
    return items


def _lists_of_text(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """Lists that stand as JSON in a text, as CSV cannot write them otherwise."""
    found: dict[str, Any] = {}
    for name, wanted in SCHEMAS[kind].items():
        if wanted is list and isinstance(row[name], str):
            with contextlib.suppress(ValueError, RecursionError):
                found[name] = json.loads(row[name])
    return {name: value for name, value in found.items() if isinstance(value, list)}


def _convert(path: Path, kind: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    for form in FORMATS[kind]:
        if form.columns <= row.keys():
            try:
                return form.convert(row)
            except (ValueError, KeyError, TypeError) as error:
                raise _bad_row(path, number, f"as {form.name}: {error}") from None
    published = "; or ".join(f"{f.name}'s {', '.join(sorted(f.columns))}" for f in FORMATS[kind])
    missing = ", ".join(name for name in SCHEMAS[kind] if name not in row)
    raise _bad_row(
        path, number, f"{missing} missing for --kind {kind}; it needs {', '.join(SCHEMAS[kind])}; "
        f"or {published}",
    )  # fmt: skip


def _bad_row(path: Path, number: int, what: str) -> ConfigError:
    return ConfigError(f"FILE is {path}, row {number}: {what}.", param="file")


def _words(kind: type) -> str:
    return {str: "a text", list: "a list"}[kind]


def _check_choice(row: Mapping[str, Any]) -> str | None:
    letters = _LETTERS[: len(row["choices"])]
    if not 2 <= len(row["choices"]) <= len(_LETTERS):
        return f"{len(row['choices'])} choices; 2 to {len(_LETTERS)} are allowed"
    if row["answer"] not in letters:
        return f"answer is {row['answer']!r}; one of {', '.join(letters)} is needed"
    return None


def _check_turns(row: Mapping[str, Any]) -> str | None:
    for turn in row["turns"]:
        if not isinstance(turn, dict) or not {"prompt", "instructions", "kwargs"} <= turn.keys():
            return "a turn needs prompt, instructions and kwargs"
        if len(turn["instructions"]) != len(turn["kwargs"]):
            return "instructions and kwargs of a turn are not as many"
    return None


def _check_tests(row: Mapping[str, Any]) -> str | None:
    texts = [(t.get("input"), t.get("output")) if isinstance(t, dict) else () for t in row["tests"]]
    ok = all(len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in texts)
    return None if ok else "a test needs input and output, both texts"


def _calls_a_function(row: Mapping[str, Any]) -> bool:
    """LiveCodeBench has such, too; we have no more than standard input and output."""
    return any(test.get("testtype", "stdin") != "stdin" for test in row["tests"])


CHECKS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "choice": _check_choice,
    "boxed": lambda row: None,
    "multi_if": _check_turns,
    "code": _check_tests,
}


class FileTask:
    """Questions of one kind from a file.

    Raises:
        ConfigError: the kind is not known, or the file is not of it.
    """

    needs_tools = False

    def __init__(
        self,
        file: Path | None = None,
        kind: str | None = None,
        code_runner: CodeRunner | None = None,
    ) -> None:
        if kind not in SCHEMAS:
            raise ConfigError(f"--kind is {kind}; allowed: {', '.join(SCHEMAS)}.", param="kind")
        if file is None:
            raise ConfigError("FILE is missing: ling eval file FILE --kind ...", param="file")
        self.name = f"file-{file.stem}"
        self.notes: Sequence[str] = (f"questions of {file.name}, kind {kind}",)
        self._kind = kind
        self._items = read_items(file, kind)
        if kind == "code":
            kept = [item for item in self._items if not _calls_a_function(item.data)]
            if len(kept) < len(self._items):
                missing = len(self._items) - len(kept)
                self.notes = [*self.notes, f"{missing} items call a function: left out"]
            self._items = kept
        self._digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        self._runner = code_runner
        name = {"boxed": "math", "multi_if": "ifbench"}.get(kind)
        self._package = None if name is None else PackageProcess(name)
        self._package_name = name

    async def open(self) -> None:
        """See Task."""
        if self._kind == "code":
            await self._runner_of().check()
        if self._package is not None:
            await self._package.start()

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        own = {"file": self._digest}
        if self._package_name is None:
            return own
        shown = {"math": "math-verify", "ifbench": "lm-eval"}[self._package_name]
        return {**own, shown: locked_versions(self._package_name)[shown]}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        if self._package is not None:
            await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        match self._kind:
            case "choice":
                return judge_choice(item.data, (await ask(_user(choice_prompt(item.data)))).content)
            case "boxed":
                reply = await ask(_user(_BOXED_PROMPT.format(question=item.data["question"])))
                return await self._judge_boxed(item.data["answer"], reply.content)
            case "multi_if":
                return await self._attempt_turns(item.data["turns"], ask)
        prompt = code_prompt(item.data)
        return await self.judge_code(item.data["tests"], (await ask(_user(prompt))).content)

    def _runner_of(self) -> CodeRunner:
        assert self._runner is not None, "the command line has asked for one"
        return self._runner

    async def judge_code(self, tests: Sequence[Mapping[str, Any]], text: str) -> Verdict:
        """Whether the last block of code of an answer prints what each test wants."""
        blocks = _BLOCK.findall(text)
        if not blocks:
            return Verdict(False, "no block of code")
        for test in tests:
            ran = await self._runner_of().run(blocks[-1], _TEST_S, test["input"])
            if ran.code != 0:
                return Verdict(False, ran.why or f"exit code {ran.code}")
            if ran.stdout.split() != test["output"].split():
                return Verdict(False, "another output")
        return Verdict(True)

    async def _judge_boxed(self, gold: str, text: str) -> Verdict:
        assert self._package is not None
        ok = await self._package.call("same", gold=gold, text=text)
        return Verdict(ok, "" if ok else "another answer" if "\\boxed" in text else "nothing boxed")

    async def _attempt_turns(self, turns: Sequence[Mapping[str, Any]], ask: Ask) -> Verdict:
        """Solved is a conversation whose last turn follows all instructions, those before too."""
        assert self._package is not None
        messages: list[Mapping[str, Any]] = []
        scores: dict[str, float] = {}
        missed: list[str] = []
        for number, turn in enumerate(turns, 1):
            messages += _user(turn["prompt"])
            reply = await ask(messages)
            messages.append(reply.as_message())
            followed = await self._package.call(
                "follows", names=turn["instructions"], values=turn["kwargs"], text=reply.content
            )
            missed = [n for n, ok in zip(turn["instructions"], followed, strict=True) if not ok]
            scores[f"turn_{number}"] = float(not missed)
        return Verdict(not missed, ", ".join(missed), scores)


def _user(text: str) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": text}]


def code_prompt(row: Mapping[str, Any]) -> str:
    """What is asked of a program."""
    starter = row.get("starter")
    begin = f"\n\nBegin with:\n```python\n{starter}\n```" if starter else ""
    return _CODE_PROMPT.format(question=row["question"] + begin)


def choice_prompt(row: Mapping[str, Any]) -> str:
    """What is asked of a question with choices."""
    letters = _LETTERS[: len(row["choices"])]
    pairs = zip(letters, row["choices"], strict=True)
    return _CHOICE_PROMPT.format(
        context=f"{row['context']}\n\n" if row.get("context") else "",
        question=row["question"],
        choices="\n".join(f"{letter}) {text}" for letter, text in pairs),
        letters=", ".join(letters),
    )


def judge_choice(row: Mapping[str, Any], text: str) -> Verdict:
    """The last letter that the answer names as its own."""
    letters = _LETTERS[: len(row["choices"])]
    named = _ANSWER_LINE.findall(text) or _BOXED_LETTER.findall(text)
    found = [letter for letter in named if letter in letters]
    if not found:
        return Verdict(False, "no letter")
    ok = found[-1] == row["answer"]
    return Verdict(ok, "" if ok else "another letter")
