"""Loops of an agent: steps that need the result before them, errors, one field of a long result."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from lingflash.train.data import answers, chinese
from lingflash.train.data.dialogue import draw_tools, foreign_request
from lingflash.train.data.phrases import Chosen, choose_arguments, request
from lingflash.train.data.quantities import integer, number
from lingflash.train.data.render import Dialogue, Message
from lingflash.train.data.tables import POOLS, read_table
from lingflash.train.data.tools import to_json_tool
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import Words

_TEXTS = read_table("agent.toml")
_LONG = (
    "str:text",
    "str:title",
    "str:query",
    "str:address",
    "str:unicode",
    "text",
    "title",
    "query",
)
_MENDED = {
    "str:" + k for k in ("city", "person", "id", "word", "filename", "email", "date", "path")
}
_MENDED |= {"city", "person", "id", "word", "filename", "email", "date", "day"}


class _Agent:
    """One dialogue's language, tools and messages so far."""

    def __init__(self, rng: random.Random, words: Words, is_chinese: bool, scale: int) -> None:
        self.rng, self.words, self.is_chinese, self.scale = rng, words, is_chinese, scale
        self.texts: dict[str, Any] = _TEXTS["zh" if is_chinese else "en"]
        count = rng.choice((1, 2, 2, 3, 3, 4, 5))
        self.tools: list[Any] = (chinese.draw_tools if is_chinese else draw_tools)(
            rng, words, count
        )
        self.messages: list[Message] = []

    def plain(self, tool: Any) -> Any:
        return tool.tool if self.is_chinese else tool

    def arguments(self, tool: Any) -> list[Chosen]:
        if self.is_chinese:
            return tool.choose(self.rng, self.words)
        return choose_arguments(self.rng, self.words, tool, 0.3)

    def ask(self, tool: Any, chosen: list[Chosen]) -> str:
        if self.is_chinese:
            return tool.request(self.rng, self.words, chosen, True)
        rivals = [t for t in self.tools if t is not tool]
        return request(self.rng, tool, chosen, rivals, bare=True).rstrip(" .?!")

    def say(self, key: str, **fields: Any) -> str:
        texts = self.texts[key]
        text = texts if isinstance(texts, str) else self.rng.choice(texts)
        return text.format(**fields)

    def user(self, text: str) -> None:
        if not self.is_chinese and self.rng.random() < 0.6:
            text = text[0].upper() + text[1:]
        end = ("。", "", "？") if self.is_chinese else (".", "", "", ".")
        if text[-1] not in ".?!。？！":
            text += self.rng.choice(end)
        self.messages.append({"role": "user", "content": text})

    def call(self, *calls: tuple[Any, list[Chosen]]) -> None:
        made = [
            {
                "type": "function",
                "function": {
                    "name": self.plain(tool).name,
                    "arguments": {c[0].name: c[1] for c in chosen},
                },
            }
            for tool, chosen in calls
        ]
        self.messages.append({"role": "assistant", "content": "", "tool_calls": made})

    def result(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.messages.append({"role": "tool", "content": text})

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def failed(self, error: str) -> str:
        if self.is_chinese:
            return chinese.TEXTS["failed"].format(s=error.rstrip("。"))
        return f"{answers.FAILED}{error.rstrip('.')}."

    def report(self) -> None:
        """A last result of any kind, and its report."""
        draw = chinese.draw_result if self.is_chinese else answers.draw_result
        text, said = draw(self.rng, self.words)
        self.result(text)
        self.answer(said)

    def key(self, name: str = "") -> tuple[str, str]:
        """A key of a result, and what it is called."""
        rng = self.rng
        if self.is_chinese:
            english, label = rng.choice(chinese.TEXTS["results"]["keys"])
            if rng.random() < 0.4:
                label = chinese.noun(rng, self.words)
                return label, label
            return (english if rng.random() < 0.5 else label), label
        if name and rng.random() < 0.5:
            return name, name.replace("_", " ")
        key = rng.choice(POOLS["result_keys"]) if rng.random() < 0.5 else self.words.word(rng)
        if rng.random() < 0.2:
            key += rng.choice(("_", "_", " ")) + self.words.word(rng)
        return key, key.replace("_", " ")

    def value(self) -> Any:
        rng = self.rng
        x = rng.random()
        if x < 0.3:
            return integer(rng) if x < 0.2 else number(rng)
        if x < 0.36:
            return rng.random() < 0.5
        if self.is_chinese and x < 0.8:
            return chinese.noun(rng, self.words)
        return KINDS[rng.choice(POOLS["result_kinds"])].make(rng, self.words)

    def told(self, value: Any) -> str:
        if isinstance(value, bool):
            return ("是" if value else "否") if self.is_chinese else ("yes" if value else "no")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def record(self, size: int, depth: int = 2) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        """A nested result of about `size` fields, and its labels with their scalar values."""
        rng = self.rng
        body: dict[str, Any] = {}
        fields: list[tuple[str, Any]] = []
        while size > 0:
            key, label = self.key()
            if key in body or any(label == known for known, _ in fields):
                size -= 1
                continue
            x = rng.random()
            if depth and x < 0.15 and size > 3:
                inner, known = self.record(rng.randint(2, size), depth - 1)
                fields += [f for f in known if all(f[0] != g[0] for g in fields)]
                body[key] = inner
                size -= len(inner)
            elif x < 0.22:
                body[key] = [self.value() for _ in range(rng.randint(1, 4))]
            else:
                body[key] = self.value()
                fields.append((label, body[key]))
            size -= 1
        return body, fields


def _referable(agent: _Agent, chosen: list[Chosen]) -> list[int]:
    return [
        i
        for i, (p, value, _) in enumerate(chosen)
        if p.kind not in (*_LONG, "enum")
        and isinstance(value, (str, int, float))
        and not isinstance(value, bool)
    ]


def _chain(agent: _Agent) -> bool:
    """Steps each of which takes a value from the result before it."""
    rng = agent.rng
    count = rng.choice((2, 2, 2, 3, 3, 4))
    picked = [rng.choice(agent.tools) for _ in range(count)]
    steps: list[tuple[Any, list[Chosen]]] = []
    results: list[dict[str, Any]] = []
    text = surface = ""
    for i, tool in enumerate(picked):
        chosen = agent.arguments(tool)
        shown = list(chosen)
        if i:
            places = _referable(agent, chosen)
            if not places:
                return False
            at = rng.choice(places)
            param, value, _ = chosen[at]
            key, label = agent.key(param.name)
            body, _ = agent.record(rng.choice((0, 1, 2, 3, 5)) * agent.scale)
            body[key] = value
            results.append(dict(rng.sample(list(body.items()), len(body))))
            surface = agent.say("references", k=label)
            shown[at] = (replace(param, kind="ref", preps=()), value, surface)
        asked = agent.ask(tool, shown)
        if surface not in asked:
            return False
        lowered = asked[0].lower() + asked[1:] if rng.random() < 0.8 else asked
        text += agent.say("then" if i else "first", r=lowered)
        steps.append((tool, chosen))
    agent.user(text)
    for i, step in enumerate(steps):
        agent.call(step)
        if i < len(results):
            if rng.random() < 0.06:
                error = agent.say("hopeless", l=agent.key()[1], a=agent.told(agent.value()))
                agent.result({"error": error})
                agent.answer(agent.failed(error))
                return True
            agent.result(results[i])
    agent.report()
    return True


def _each(agent: _Agent) -> bool:
    """A list, then a call for each of its items."""
    rng = agent.rng
    lister, worker = rng.choice(agent.tools), rng.choice(agent.tools)
    chosen = agent.arguments(worker)
    places = [i for i in _referable(agent, chosen) if isinstance(chosen[i][1], str)]
    if lister is worker or not places:
        return False
    at = rng.choice(places)
    param = chosen[at][0]
    values = list(dict.fromkeys(
        [chosen[at][1], *(c[1] for _ in range(rng.choice((1, 1, 2, 3)))
                          for c in agent.arguments(worker) if c[0] is param)]
    ))  # fmt: skip
    shown = list(chosen)
    shown[at] = (replace(param, kind="ref", preps=()), "", agent.say("each"))
    first = agent.arguments(lister)
    asked = agent.ask(worker, shown)
    if shown[at][2] not in asked:
        return False
    agent.user(
        agent.say("first", r=agent.ask(lister, first))
        + agent.say("then", r=asked[0].lower() + asked[1:])
    )
    agent.call((lister, first))
    wrapped: Any = values if rng.random() < 0.6 else {agent.key()[0]: values}
    agent.result(wrapped)
    agent.call(*(
        (worker, [(p, v if i == at else old, s) for i, (p, old, s) in enumerate(chosen)])
        for v in values
    ))  # fmt: skip
    draw = chinese.draw_result if agent.is_chinese else answers.draw_result
    done = [draw(rng, agent.words) for _ in values]
    for result, _ in done:
        agent.result(result)
    agent.answer("\n".join(said for _, said in done))
    return True


def _mend(agent: _Agent) -> bool:
    """An error comes back: one that says what is right, one to try again, or one without help."""
    rng = agent.rng
    tool = rng.choice(agent.tools)
    chosen = agent.arguments(tool)
    agent.user(agent.ask(tool, chosen))
    agent.call((tool, chosen))
    places = [i for i, c in enumerate(chosen) if c[0].kind in _MENDED]
    x = rng.random()
    if places and x < 0.5:
        at = rng.choice(places)
        param, wrong, _ = chosen[at]
        others = [c[1] for c in agent.arguments(tool) if c[0] is param]
        right = others[0] if others else wrong + "1"
        quote = rng.choice(("{}", "'{}'", '"{}"'))
        error = agent.say(
            "hints", l=param.name.replace("_", " "), a=quote.format(wrong), b=quote.format(right)
        )
        agent.result({"error": error} if rng.random() < 0.7 else f"Error: {error}")
        agent.call((tool, [(p, right if i == at else v, s) for i, (p, v, s) in enumerate(chosen)]))
    elif x < 0.65:
        agent.result({"error": agent.say("again")})
        agent.call((tool, chosen))
    if x < 0.15 or x >= 0.65 or (not places and x < 0.5):
        about = rng.choice(chosen) if chosen else None
        label = about[0].name.replace("_", " ") if about else "id"
        shown = str(about[1]) if about else "id"
        error = agent.say("hopeless", l=label, a=shown)
        style = rng.random()
        agent.result(
            {"error": error} if style < 0.5
            else {"status": "error", "message": error} if style < 0.7
            else {"ok": False, "error": error} if style < 0.8
            else f"Error: {error}"
        )  # fmt: skip
        agent.answer(agent.failed(error))
        return True
    agent.report()
    return True


def _field(agent: _Agent) -> bool:
    """A result of many fields, of which the user wants some, one after the other."""
    rng = agent.rng
    tool = rng.choice(agent.tools)
    chosen = agent.arguments(tool)
    body, fields = agent.record(rng.choice((2, 3, 4, 6, 8, 12, 20, 30)) * agent.scale)
    if not fields:
        return False
    label, value = rng.choice(fields)
    request_text = agent.ask(tool, chosen)
    agent.user(agent.say("only", r=request_text, k=label))
    agent.call((tool, chosen))
    agent.result(body)
    agent.answer(agent.say("say_field", k=label, s=agent.told(value)))
    for _ in range(rng.choice((0, 1, 1, 2))):
        label, value = rng.choice(fields)
        agent.user(agent.say("follow", k=label))
        agent.answer(agent.say("say_field", k=label, s=agent.told(value)))
    return True


def _rows(agent: _Agent) -> bool:
    """A list of objects, of one of which the user wants a field."""
    rng = agent.rng
    tool = rng.choice(agent.tools)
    chosen = agent.arguments(tool)
    keys = [agent.key() for _ in range(rng.randint(1, 5))]
    keys = list({label: (key, label) for key, label in keys}.values())
    kind = rng.choice(("person", "city", "word", "title", "id", "filename"))
    names = [
        chinese.noun(rng, agent.words) if agent.is_chinese and rng.random() < 0.7
        else KINDS[kind].make(rng, agent.words)
        for _ in range(rng.randint(2, 8) * agent.scale)
    ]  # fmt: skip
    names = list(dict.fromkeys(names))
    head = rng.choice(("name", "title", "id", "item")) if not agent.is_chinese else "名称"
    rows = [{head: n, **{key: agent.value() for key, _ in keys if key != head}} for n in names]
    keys = [k for k in keys if k[0] != head]
    if not keys:
        return False
    (key, label), row = rng.choice(keys), rng.choice(rows)
    request_text = agent.ask(tool, chosen)
    agent.user(agent.say("row", r=request_text, k=label, i=row[head]))
    agent.call((tool, chosen))
    agent.result(rows if rng.random() < 0.6 else {"results": rows})
    agent.answer(agent.say("say_row", k=label, i=row[head], s=agent.told(row[key])))
    for _ in range(rng.choice((0, 0, 1, 2))):
        (key, label), row = rng.choice(keys), rng.choice(rows)
        agent.user(agent.say("row_follow", k=label, i=row[head]))
        agent.answer(agent.say("say_row", k=label, i=row[head], s=agent.told(row[key])))
    return True


def _foreign(agent: _Agent) -> bool:
    """A request that no tool fits, between the others."""
    if agent.is_chinese:
        agent.user(chinese.foreign_request(agent.rng, agent.words, agent.tools))
        agent.answer(chinese.TEXTS["refusal"])
    else:
        agent.user(foreign_request(agent.rng, agent.words, agent.tools))
        agent.answer(answers.REFUSAL)
    return True


_LOOPS = (_chain, _chain, _chain, _each, _mend, _mend, _field, _field, _rows, _foreign)


def agent_dialogue(rng: random.Random, words: Words, scale: int = 1) -> Dialogue:
    """Draw one to three loops over the same tools, one dialogue in seven in Chinese.

    Args:
        scale: multiplies the size of results, for long documents.
    """
    agent = _Agent(rng, words, rng.random() < 0.15, scale)
    loops = rng.choice((1, 1, 2, 3))
    tries = 0
    while loops and tries < 12:
        tries += 1
        loops -= rng.choice(_LOOPS)(agent)
    if not agent.messages:
        return agent_dialogue(rng, words, scale)
    return Dialogue(agent.messages, [to_json_tool(rng, agent.plain(t)) for t in agent.tools])
