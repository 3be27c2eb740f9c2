"""The final test of ling-nano: cases made after training, with words and wordings of their own.

Only what code does is shared with the training's generator (the code that answers a question, what
a family of questions asks for); words, names and every wording are those of final_set.toml.
"""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

from lingflash.train.data.answers import REFUSAL
from lingflash.train.data.chinese import TEXTS as CHINESE
from lingflash.train.data.python_code import FAMILIES, run
from lingflash.train.data.words import Words

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NOUNS, PEOPLE, FAMILY, TOWNS = (TEXTS[k].split() for k in ("nouns", "people", "family", "towns"))
Case = dict[str, Any]
PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python code and return what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The code to run"}},
            "required": ["code"],
        },
    },
}


class Maker:
    """Draws tools, requests and calls."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"final/{seed}")

    def value(self) -> tuple[dict[str, Any], Any, str]:
        """A schema, a value, and its text in a request."""
        rng = self.rng
        kind = rng.choice(
            ("word", "person", "town", "date", "code", "int", "int", "number", "enum", "text")
        )
        if kind == "int":
            whole = rng.randint(2, 4000)
            return {"type": "integer"}, whole, str(whole)
        if kind == "number":
            real = rng.randint(11, 9999) / 10
            return {"type": "number"}, real, str(real)
        if kind == "enum":
            choices = rng.sample(NOUNS, 3)
            return {"type": "string", "enum": choices}, choices[1], choices[1]
        text = {
            "word": rng.choice(NOUNS),
            "person": f"{rng.choice(PEOPLE)} {rng.choice(FAMILY)}",
            "town": rng.choice(TOWNS),
            "date": f"{rng.randint(2024, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            "code": f"{rng.choice('QXZVK')}{rng.randint(10, 99)}-"
            f"{rng.choice(NOUNS)[:2].upper()}{rng.randint(1, 9)}",
            "text": " ".join(rng.sample(NOUNS, 3)),
        }[kind]
        return {"type": "string"}, text, f'"{text}"' if kind == "text" else text

    def tool(self, taken: set[str]) -> Case:
        """A tool; under "_" what its requests need."""
        rng = self.rng
        verb, third, ask = rng.choice(TEXTS["verbs"])
        while (noun := rng.choice(NOUNS)) in taken:
            pass
        taken.add(noun)
        properties: dict[str, Any] = {}
        known: dict[str, tuple[Any, str, str]] = {}
        for key in rng.sample([n for n in NOUNS if n not in taken], rng.choice((1, 2, 2, 3))):
            schema, value, text = self.value()
            if rng.random() < 0.7:
                schema["description"] = rng.choice(("The {0}", "{0} that is wanted")).format(key)
            properties[key], known[key] = schema, (value, text, key)
        if rng.random() < 0.3:
            key, adverb = rng.choice(TEXTS["adverbs"])
            properties[key] = {"type": "boolean", "description": f"Whether to be {key}"}
            known[key] = (True, adverb, "")
        elif rng.random() < 0.25:
            key = rng.choice([n for n in NOUNS if n not in properties])
            properties[key] = {"type": "boolean"}
            known[key] = (rng.random() < 0.5, "", key)
        function = {
            "name": f"{verb}_{noun}",
            "description": f"{third} the {noun}.",
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [*list(known)[:1]],
            },
        }
        return {"function": function, "_": (ask, noun, known)}

    def request(
        self, tool: Case, shown: dict[str, str] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """A request for one call, and the call.

        Args:
            shown: texts that stand for values.
        """
        rng = self.rng
        ask, noun, known = tool["_"]
        lead = rng.choice(TEXTS["leads"]).format(v=ask, V=ask[0].upper() + ask[1:], n=noun)
        clauses = []
        for value, text, label in known.values():
            if not label:
                lead += " " + text
            elif isinstance(value, bool):
                clauses.append(rng.choice(TEXTS["yes" if value else "no"]).format(l=label))
            else:
                surface = (shown or {}).get(label, text)
                clauses.append(rng.choice(TEXTS["state"]).format(l=label, s=surface))
        joined = clauses[0] if clauses else ""
        for clause in clauses[1:]:
            joined += rng.choice(TEXTS["joins"]) + clause
        text = lead + (rng.choice((": ", ". ", "; ", ", ")) + joined if clauses else "")
        return text, {
            "name": tool["function"]["name"],
            "arguments": {k: v[0] for k, v in known.items()},
        }

    def tools(self) -> list[Case]:
        """One to four tools about different things."""
        taken: set[str] = set()
        return [self.tool(taken) for _ in range(self.rng.choice((1, 2, 2, 3, 3, 4)))]


def _json_tools(tools: list[Case]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": t["function"]} for t in tools]


def _case(
    category: str, text: str, tools: list[Case], expected: dict[str, Any], **more: Any
) -> Case:
    messages = [{"role": "user", "content": text}]
    return {
        "category": category,
        "messages": messages,
        "tools": tools,
        "expected": expected,
        **more,
    }


def calls(n: int, seed: int) -> list[Case]:
    """One call."""
    make = Maker(seed)
    found = []
    for _ in range(n):
        tools = make.tools()
        text, call = make.request(make.rng.choice(tools))
        found.append(_case("one call", text + ".", _json_tools(tools), {"calls": [call]}))
    return found


def parallel(n: int, seed: int) -> list[Case]:
    """Two calls."""
    make = Maker(seed + 1)
    found = []
    while len(found) < n:
        tools = make.tools()
        if len(tools) > 1:
            (a, first), (b, second) = (make.request(t) for t in make.rng.sample(tools, 2))
            text = a + make.rng.choice(TEXTS["second"]) + b[0].lower() + b[1:] + "."
            found.append(_case("parallel", text, _json_tools(tools), {"calls": [first, second]}))
    return found


def refusals(n: int, seed: int) -> list[Case]:
    """No tool fits."""
    make = Maker(seed + 2)
    found = []
    for i in range(n):
        taken: set[str] = set()
        tools = [make.tool(taken) for _ in range(make.rng.choice((1, 2, 3)))]
        other = make.request(make.tool(taken))[0] + "."
        text = make.rng.choice(TEXTS["off_topic"]) if i % 3 == 0 else other
        found.append(_case("refusal", text, _json_tools(tools), {"text": REFUSAL}))
    return found


def loops(n: int, seed: int) -> list[Case]:
    """Dialogues of several turns; each assistant message is a case that needs those before."""
    make = Maker(seed + 3)
    kinds = (_steps, _field, _error)
    return [kinds[i % 3](make) for i in range(n)]


def _turns(tools: list[Case], *turns: Any) -> Case:
    """A dialogue of texts (the user's), calls, ("result", value) and ("says", parts)."""
    return {"category": "loop", "tools": _json_tools(tools), "turns": list(turns)}


def _steps(make: Maker) -> Case:
    rng = make.rng
    taken: set[str] = set()
    tools = [make.tool(taken) for _ in range(3)]
    rng.shuffle(tools)
    first, second = tools[:2]
    strings = {
        label: value
        for value, text, label in second["_"][2].values()
        if label
        and isinstance(value, str)
        and "enum" not in second["function"]["parameters"]["properties"][label]
    }
    if not strings:
        return _steps(make)
    label, value = rng.choice(list(strings.items()))
    a, call = make.request(first)
    b, then = make.request(second, {label: rng.choice(TEXTS["reference"]).format(k=label)})
    text = rng.choice(TEXTS["steps"]).format(a=a, b=b[0].lower() + b[1:], k=label)
    body = {
        rng.choice(NOUNS): rng.choice(TOWNS),
        label: value,
        rng.choice(NOUNS): rng.randint(3, 99),
    }
    last = rng.choice(TOWNS)
    return _turns(
        tools, text + ".", [call], ("result", body), [then], ("result", {"state": last}),
        ("says", [last]),
    )  # fmt: skip


def _field(make: Maker) -> Case:
    rng = make.rng
    tools = make.tools()
    text, call = make.request(rng.choice(tools))
    keys = rng.sample(NOUNS, 8)
    body: dict[str, Any] = {k: make.value()[1] for k in keys[:5]}
    body[keys[5]] = {keys[6]: make.value()[1], keys[7]: make.value()[1]}
    wanted, again = rng.choice(keys[:5]), keys[6]
    told = [str(body[wanted])]
    return _turns(
        tools, rng.choice(TEXTS["field"]).format(r=text, k=wanted) + ".", [call], ("result", body),
        ("says", told), rng.choice(TEXTS["follow"]).format(k=again),
        ("says", [str(body[keys[5]][again])]),
    )  # fmt: skip


def _error(make: Maker) -> Case:
    rng = make.rng
    tools = make.tools()
    tool = rng.choice(tools)
    text, call = make.request(tool)
    known = tool["_"][2]
    strings = [k for k, (v, _, label) in known.items() if label and isinstance(v, str)]
    words = {"l": "id", "a": rng.choice(TOWNS)}
    if strings and rng.random() < 0.5:
        key = rng.choice(strings)
        right = rng.choice(TOWNS)
        hint = rng.choice(TEXTS["hint"]).format(l=key, a=known[key][0], b=right)
        mended = {"name": call["name"], "arguments": {**call["arguments"], key: right}}
        last = rng.choice(NOUNS)
        return _turns(
            tools, text + ".", [call], ("result", {"error": hint}), [mended],
            ("result", {"state": last}), ("says", [last]),
        )  # fmt: skip
    error = rng.choice(TEXTS["error"]).format(**words)
    return _turns(tools, text + ".", [call], ("result", {"error": error}), ("says", [error]))


def questions(n: int, seed: int) -> list[Case]:
    """Questions for the python tool; expected is what right code prints."""
    rng = random.Random(f"final/{seed}/questions")
    words = Words(held_out=True)
    found = []
    names = sorted(TEXTS["questions"])
    for i in range(n):
        name = names[i % len(names)]
        fields, code = FAMILIES[name](rng, words)
        if "math.gcd" in code:
            code = "import math\n" + code
        text = rng.choice(TEXTS["questions"][name]).format(**fields)
        found.append(_case("code", text, [PYTHON], {"printed": run(code)}))
    return found


def chinese(n: int, seed: int) -> list[Case]:
    """Requests in Chinese: calls, and one in six that no tool fits."""
    rng = random.Random(f"final/{seed}/chinese")
    nouns, people, towns = (TEXTS[f"chinese_{k}"].split() for k in ("nouns", "people", "places"))
    found = []
    for i in range(n):
        tools = []
        for noun in rng.sample(nouns, rng.choice((1, 2, 3))):
            verb, third, ask = rng.choice(TEXTS["chinese_verbs"])
            labels = rng.sample(TEXTS["chinese_labels"], rng.choice((1, 2, 2, 3)))
            properties: dict[str, Any] = {}
            clauses, arguments = [], {}
            for key, label in labels:
                value: Any = rng.choice((
                    rng.choice(people), rng.choice(towns), rng.choice(nouns), rng.randint(2, 900),
                    f"{rng.randint(2025, 2030)}年{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
                    f"{rng.choice('QXZ')}{rng.randint(100, 999)}",
                ))  # fmt: skip
                kind = "integer" if isinstance(value, int) else "string"
                properties[key] = {"type": kind, "description": label}
                arguments[key] = value
                clauses.append(rng.choice(TEXTS["chinese_state"]).format(l=label, s=value))
            function = {
                "name": f"{verb}_{rng.choice(NOUNS)}",
                "description": third + noun,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                },
            }
            text = (
                rng.choice(TEXTS["chinese_leads"]).format(v=ask, n=noun)
                + "，"
                + "，".join(clauses)
                + "。"
            )
            tools.append((function, text, {"name": function["name"], "arguments": arguments}))
        chosen = rng.choice(tools)
        offered = [{"type": "function", "function": t[0]} for t in tools]
        if i % 6 == 0:
            text = rng.choice(TEXTS["chinese_off_topic"])
            found.append(_case("chinese refusal", text, offered, {"text": CHINESE["refusal"]}))
        else:
            found.append(_case("chinese", chosen[1], offered, {"calls": [chosen[2]]}))
    return found


def long_prompts(n: int, seed: int, chars: int, category: str, prose: str) -> list[Case]:
    """One call behind a system prompt of about so many characters of the prose."""
    found = calls(n, seed + 4)
    for i, case in enumerate(found):
        start = (i * 7919) % max(1, len(prose) - chars)
        case["messages"].insert(0, {"role": "system", "content": prose[start : start + chars]})
        case["category"] = category
    return found


def thinking(n: int, seed: int) -> list[Case]:
    """One call, with thinking on."""
    return [{**case, "category": "thinking", "thinking": True} for case in calls(n, seed + 5)]


def unseen() -> list[str]:
    """Words of the set that the training's lists have."""
    from lingflash.train.data.words import all_words

    return sorted(set(all_words()) & {w.lower() for w in [*NOUNS, *PEOPLE, *FAMILY, *TOWNS]})


if __name__ == "__main__":
    made = [
        *calls(3, 1),
        *parallel(3, 1),
        *refusals(3, 1),
        *loops(6, 1),
        *questions(6, 1),
        *chinese(4, 1),
    ]
    for case in made:
        print(json.dumps(case.get("messages") or case["turns"], ensure_ascii=False))
        print("   ", json.dumps(case.get("expected"), ensure_ascii=False))
    print(unseen())
