"""Generated requests whose grammars are large, deep, ambiguous or plainly wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]


def _form(schema: Any) -> Fields:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


def _outputs(**form: Any) -> Fields:
    return {"structured_outputs": form}


def _nested(rng: random.Random) -> Fields:
    schema: Any = {"type": "integer"}
    for _ in range(rng.choice([20, 60, 300])):
        schema = rng.choice(
            [
                {"type": "object", "properties": {"a": schema, "b": {"type": "string"}}},
                {"type": "array", "items": schema},
                {"anyOf": [schema, {"type": "null"}]},
            ]
        )
    return _form(schema)


def _count(rng: random.Random) -> Fields:
    key = rng.choice(["minItems", "maxItems", "minLength", "maxLength", "minProperties"])
    kind = {"I": "array", "L": "string", "P": "object"}[key[3]]
    return _form({"type": kind, key: rng.choice([10**3, 10**5, 10**9, -1])})


def _multiple(rng: random.Random) -> Fields:
    kind = rng.choice(["integer", "number"])
    return _form(
        {"type": kind, "multipleOf": rng.choice([10**6 + 3, 100_000_007, 0.0000007, 1e-9])}
    )


def _patterns(rng: random.Random) -> Fields:
    parts = {f"^{'a' * i}[a-z]*{i}$": {"type": "string"} for i in range(rng.choice([50, 400]))}
    return _form({"type": "object", "patternProperties": parts})


def _enum(rng: random.Random) -> Fields:
    count, length = rng.choice([(15_000, 4), (200, 900), (3000, 60)])
    return _form({"enum": [f"{i}" + chr(97 + i % 26) * length for i in range(count)]})


def _choice(rng: random.Random) -> Fields:
    return _outputs(choice=[f"{rng.random()}" for _ in range(rng.choice([5000, 10_000, 12_000]))])


def _lark(rng: random.Random) -> Fields:
    alternatives = rng.sample(["s s", '"a"', "s s s", "/[a-z]+/", '""', '"b" s', "s s s s"], 4)
    grammar = f"start: s\ns: {' | '.join(alternatives)}"
    if rng.random() < 0.4:
        rules = range(rng.choice([50, 500]))
        grammar = f'start: "x"? s\ns: {" | ".join(f"r{i}" for i in rules)}\n' + "\n".join(
            f'r{i}: "a" s? | /[a-z]/' for i in rules
        )
    return {**_outputs(grammar=grammar), "ignore_eos": True}


def _regex(rng: random.Random) -> Fields:
    count = rng.choice([12, 30, 400])
    return _outputs(
        regex=rng.choice(
            [
                f"(.*a){{{count}}}.*",
                f"(a|b)*a(a|b){{{count}}}",
                f"((a{{{count}}}){{{count}}}){{9}}",
                "(" * count + "a" + ")+" * count,
                f"[a-z]{{{count * 100}}}",
                "(?=a)b",
            ]
        )
    )


def _tools(rng: random.Random) -> Fields:
    parameters = _form_schema(rng.choice([_nested, _multiple, _patterns, _enum])(rng))
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": parameters}}}
    tools = [
        {"type": "function", "function": {**tool, "name": f"f{i}", "strict": rng.random() < 0.5}}
        for i in range(rng.choice([1, 4]))
    ]
    return {"tools": tools, "tool_choice": "required"}


def _form_schema(fields: Fields) -> Any:
    return fields["response_format"]["json_schema"]["schema"]


def _combined(rng: random.Random) -> Fields:
    parts = [_form_schema(_multiple(rng)) for _ in range(rng.choice([2, 8]))]
    return _form({rng.choice(["allOf", "anyOf", "oneOf"]): parts})


def _references(rng: random.Random) -> Fields:
    count = rng.choice([30, 2000])
    definitions = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(count)}
    definitions[f"d{count}"] = {"$ref": "#/$defs/d0"} if rng.random() < 0.5 else {"type": "null"}
    return _form({"$ref": "#/$defs/d0", "$defs": definitions})


KINDS: tuple[Callable[[random.Random], Fields], ...] = (
    *(_nested, _count, _multiple, _patterns, _enum, _choice, _lark, _regex, _tools, _combined),
    _references,
)


def hostile_requests(count: int, seed: int = 0) -> list[bytes]:
    """Bodies for /v1/chat/completions, each kind as often as the others."""
    rng = random.Random(seed)
    bodies = []
    for i in range(count):
        fields = KINDS[i % len(KINDS)](rng)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, **fields}
        bodies.append(json.dumps(body).encode())
    return bodies
