"""Rows of the published files of benchmarks, made into our schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One published file.

    Args:
        columns: by which its rows are known.
        convert: a row to our schema; raises ValueError, KeyError or TypeError.
    """

    name: str
    columns: frozenset[str]
    convert: Callable[[Row], dict[str, Any]]


def _gpqa(row: Row) -> dict[str, Any]:
    right = row["Correct Answer"].strip()
    choices = [right, *(row[f"Incorrect Answer {n}"].strip() for n in (1, 2, 3))]
    # The right one is always the first there; each question is shuffled, the same way each time.
    random.Random(row["Question"]).shuffle(choices)
    return {
        **({"id": row["Record ID"]} if row.get("Record ID") else {}),
        "category": row.get("High-level domain") or "choice",
        "question": row["Question"].strip(),
        "choices": choices,
        "answer": "ABCD"[choices.index(right)],
    }


def _longbench(row: Row) -> dict[str, Any]:
    return {
        "id": row["_id"],
        "category": row.get("length") or "choice",
        "context": row["context"],
        "question": row["question"],
        "choices": [row[f"choice_{letter}"] for letter in "ABCD"],
        "answer": row["answer"],
    }


def _aime(row: Row) -> dict[str, Any]:
    return {
        **({"id": str(row["id"])} if row.get("id") not in (None, "") else {}),
        "question": row["problem"],
        "answer": str(row["answer"]),
    }


def _math500(row: Row) -> dict[str, Any]:
    return {
        "id": row["unique_id"],
        "category": row.get("subject") or "boxed",
        "question": row["problem"],
        "answer": row["answer"],
    }


def _multi_if(row: Row) -> dict[str, Any]:
    turns = []
    for number in (1, 2, 3):
        prompt = _json(row.get(f"turn_{number}_prompt"))
        if not prompt:
            break
        values = [_json(each) or {} for each in _json(row[f"turn_{number}_kwargs"])]
        turns.append(
            {
                "prompt": prompt["content"] if isinstance(prompt, dict) else prompt,
                "instructions": _json(row[f"turn_{number}_instruction_id_list"]),
                "kwargs": values,
            }
        )
    key = {"id": str(row["key"])} if row.get("key") else {}
    return {**key, "category": row.get("language") or "multi_if", "turns": turns}


def _livecodebench(row: Row) -> dict[str, Any]:
    """With the public tests: the private ones are pickled, and a pickle runs what it likes."""
    return {
        "id": row["question_id"],
        "category": row.get("difficulty") or "code",
        "question": row["question_content"],
        "starter": row.get("starter_code") or "",
        "tests": _json(row["public_test_cases"]),
    }


def _json(value: Any) -> Any:
    """JSON where a column holds it as text."""
    if isinstance(value, str) and value[:1] in '[{"':
        return json.loads(value)
    return value


FORMATS: dict[str, tuple[Format, ...]] = {
    "choice": (
        Format("GPQA", frozenset({"Question", "Correct Answer", "Incorrect Answer 1"}), _gpqa),
        Format("LongBench-v2", frozenset({"_id", "context", "choice_A", "answer"}), _longbench),
    ),
    "boxed": (
        Format("MATH-500", frozenset({"problem", "answer", "unique_id"}), _math500),
        Format("AIME", frozenset({"problem", "answer"}), _aime),
    ),
    "multi_if": (
        Format(
            "Multi-IF",
            frozenset({"turn_1_prompt", "turn_1_instruction_id_list", "turn_1_kwargs"}),
            _multi_if,
        ),
    ),
    "code": (
        Format(
            "LiveCodeBench", frozenset({"question_content", "public_test_cases"}), _livecodebench
        ),
    ),
}
