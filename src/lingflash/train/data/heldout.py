"""The held-out test: tools, arguments, values and phrasings that training never sees.

Words come from the held-out part of the pools; every argument has an invented name. Requests are
worded by the grammar in this file, which shares no code with `phrases.py`.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

from lingflash.train.data.library import entries
from lingflash.train.data.tables import NAMES, POOLS, read_table, read_text
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import Words, digits, random_string

Case = dict[str, Any]

_TEXTS = read_table("heldout.toml")


@cache
def _training_names() -> frozenset[str]:
    """Return the words of all argument and tool names that are written out in the training data."""
    names = [*NAMES["integer"], *NAMES["number"], *NAMES["boolean"], *NAMES["enum"]]
    names += POOLS["list_names"]
    for kind in KINDS.values():
        names += kind.names
    for entry in (*entries(), *entries("frames.txt")):
        names += [*entry.names, *(n for choices, _, _ in entry.params for n in choices)]
    return frozenset(re.findall("[a-z]+", " ".join(names).lower()))


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.words = Words(held_out=True)

    def word(self) -> str:
        while (word := self.words.word(self.rng)) in _training_names():
            pass
        return word

    def value(self) -> tuple[dict[str, Any], Any, str]:
        """Return a schema without description, a value, and its text in the request."""
        rng = self.rng
        x = rng.random()
        if x < 0.16:
            word = self.word()
            return {"type": "string"}, word, word
        if x < 0.24:
            text = random_string(rng)
            return {"type": "string"}, text, text
        if x < 0.34:
            name = self.words.made_up(rng).capitalize()
            if rng.random() < 0.6:
                name += " " + self.words.made_up(rng).capitalize()
            return {"type": "string"}, name, name
        if x < 0.42:
            text = " ".join(self.word() for _ in range(rng.randint(2, 5)))
            return {"type": "string"}, text, f'"{text}"'
        if x < 0.48:
            date = f"{rng.randint(2001, 2032)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
            return {"type": "string"}, date, date
        if x < 0.54:
            mail = f"{self.word()}@{self.word()}.com"
            return {"type": "string"}, mail, mail
        if x < 0.68:
            whole = int(digits(rng, rng.randint(1, 4)))
            return {"type": "integer"}, whole, str(whole)
        if x < 0.75:
            real = rng.randint(1, 999) / 10 + 0.05
            real = round(real, 2)
            return {"type": "number"}, real, str(real)
        if x < 0.84:
            truth = rng.random() < 0.5
            return {"type": "boolean"}, truth, ""
        if x < 0.94:
            choices = list(dict.fromkeys(self.word() for _ in range(rng.randint(2, 4))))
            chosen = rng.choice(choices)
            return {"type": "string", "enum": choices}, chosen, chosen
        items = [self.word() for _ in range(rng.randint(2, 3))]
        return (
            {"type": "array", "items": {"type": "string"}},
            items,
            ", ".join(items[:-1]) + " and " + items[-1],
        )

    def tool(self) -> dict[str, Any]:
        """Return a tool's schema with, under "_", what is needed to word requests for it."""
        rng = self.rng
        verb, third, ask = rng.choice(_TEXTS["verbs"])
        nouns = [self.word() for _ in range(rng.randint(1, 2))]
        separator = rng.choice(("_", "_", "_", "-", "camel"))
        parts = [verb, *nouns] if rng.random() < 0.85 else nouns
        name = (
            parts[0] + "".join(p.capitalize() for p in parts[1:])
            if separator == "camel"
            else separator.join(parts)
        )
        about = " ".join(nouns)
        description = f"{third} {rng.choice(('the', 'a', 'the given'))} {about}" + rng.choice(
            ("", ".", f" of the {self.word()}.", f", based on {self.word()}.")
        )
        properties: dict[str, Any] = {}
        values: dict[str, tuple[Any, str, str]] = {}
        required: list[str] = []
        for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4))):
            key = self.word() + ("_" + self.word() if rng.random() < 0.3 else "")
            if key in properties:
                continue
            schema, value, text = self.value()
            label = key.replace("_", " ")
            if rng.random() < 0.7:
                schema["description"] = rng.choice(
                    ("The {0}.", "{0} of it", "What {0} to take")
                ).format(label)
            properties[key] = schema
            values[key] = (value, text, label)
            if rng.random() < 0.65:
                required.append(key)
        return {
            "function": {
                "name": name,
                "description": description,
                "parameters": {"type": "object", "properties": properties, "required": required},
            },
            "_": (ask, about, values, required),
        }

    def _clause(self, value: Any, text: str, label: str) -> str:
        if isinstance(value, bool):
            return self.rng.choice(_TEXTS["yes" if value else "no"]).format(l=label)
        return self.rng.choice(_TEXTS["state"]).format(l=label, s=text)

    def request(self, tool: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Word a request for one call. Returns the text and the call."""
        rng = self.rng
        ask, about, values, required = tool["_"]
        used = {k: v for k, v in values.items() if k in required or rng.random() < 0.5}
        clauses = [self._clause(*v) for v in used.values()]
        if rng.random() < 0.3:
            rng.shuffle(clauses)
        lead = rng.choice(_TEXTS["leads"]).format(v=ask, V=ask[0].upper() + ask[1:], n=about)
        if not clauses:
            text = lead + rng.choice((".", ""))
        elif rng.random() < 0.2:
            text = f"Here is what matters: {rng.choice(_TEXTS['joins']).join(clauses)}. {lead}."
        else:
            text = (
                lead
                + rng.choice((". ", ": ", "; ", " - ", ", and "))
                + rng.choice(_TEXTS["joins"]).join(clauses)
                + "."
            )
        call = {"name": tool["function"]["name"], "arguments": {k: v[0] for k, v in used.items()}}
        return text, call


def heldout_cases(n: int, seed: int) -> list[Case]:
    """Make the generated held-out test.

    Args:
        seed: the same cases for the same seed and n.

    Returns:
        Each with messages, tools (OpenAI form), category, and expected:
        {"calls": [{"name", "arguments"}]} or {"refusal": true}.
    """
    rng = random.Random(f"held-out/{seed}")
    maker = _Maker(rng)
    cases: list[Case] = []
    while len(cases) < n:
        tools: list[dict[str, Any]] = []
        nouns: set[str] = set()
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
            tool = maker.tool()
            mine = set(tool["_"][1].split())
            if not mine & nouns:
                nouns |= mine
                tools.append(tool)
        x = rng.random()
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.15:
            messages.append({"role": "system", "content": f"You assist the {maker.word()} office."})
        if rng.random() < 0.12:
            text, call = maker.request(rng.choice(tools))
            key, value = maker.word(), maker.word()
            messages += [
                {"role": "user", "content": text},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": call}],
                },
                {"role": "tool", "content": json.dumps({key: value})},
                {"role": "assistant", "content": f"The {key} is {value}."},
            ]
        expected: dict[str, Any]
        if x < 0.16:
            category = "refusal"
            foreign = maker.tool()
            while set(foreign["_"][1].split()) & nouns:
                foreign = maker.tool()
            text = (
                rng.choice(_TEXTS["off_topic"]) if rng.random() < 0.3 else maker.request(foreign)[0]
            )
            expected = {"refusal": True}
        elif x < 0.30:
            category = "two calls"
            picked = rng.sample(tools, 2) if len(tools) > 1 else [tools[0]]
            pairs = [maker.request(t) for t in picked]
            category = category if len(pairs) > 1 else "one call"
            text = rng.choice((" Next: ", " On top of that: ", "\n")).join(p[0] for p in pairs)
            expected = {"calls": [p[1] for p in pairs]}
        else:
            category = "one call"
            text, call = maker.request(rng.choice(tools))
            expected = {"calls": [call]}
        messages.append({"role": "user", "content": text})
        rng.shuffle(tools)
        cases.append(
            {
                "messages": messages,
                "tools": [{"type": "function", "function": t["function"]} for t in tools],
                "expected": expected,
                "category": category,
            }
        )
    return cases


def handwritten_cases() -> list[Case]:
    """Return the hand-written test, in the form of `heldout_cases`."""
    raw = json.loads(read_text("handwritten.json"))
    return [
        {
            "messages": [{"role": "user", "content": case["user"]}],
            "tools": [
                {"type": "function", "function": raw["tools"][name]} for name in case["tools"]
            ],
            "expected": {"refusal": True} if case["calls"] is None else {"calls": case["calls"]},
            "category": "refusal"
            if case["calls"] is None
            else "one call"
            if len(case["calls"]) == 1
            else "two calls",
        }
        for case in raw["cases"]
    ]
