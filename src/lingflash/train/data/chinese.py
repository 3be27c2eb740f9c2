"""Dialogues in Chinese: everyday and made-up tools, requests, results, answers.

Function and argument names stay in Latin letters, as they are in the field; what a request calls
them comes from the descriptions, or is the name itself.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

from lingflash.train.data.chinese_values import (
    LOOSE_KINDS,
    TEXTS,
    ZH_POOLS,
    draw_value,
    noun,
    string,
    text_value,
)
from lingflash.train.data.render import Dialogue, Message
from lingflash.train.data.tools import Param, Tool, draw_style, in_style, to_json_tool
from lingflash.train.data.words import Words

_KINDS: dict[str, list[list[str]]] = TEXTS["kinds"]


def _describe(rng: random.Random, words: Words, label: str) -> str:
    return rng.choice(TEXTS["renamed"]).format(l=label, n=noun(rng, words))


def make_param(rng: random.Random, words: Words, taken: set[str]) -> Param:
    """Draw a parameter with a Chinese label, which stands in its description, mostly."""
    choices: tuple[str, ...] = ()
    if rng.random() < 0.12:
        kind = "enum"
        name = rng.choice(tuple(TEXTS["enums"]))
        label, *options = TEXTS["enums"][name]
        if rng.random() < 0.5:
            label, options = noun(rng, words), [noun(rng, words) for _ in range(rng.randint(2, 4))]
        choices = tuple(dict.fromkeys(options))
    else:
        kind = rng.choices(tuple(_KINDS), [3, 3, 2, 1, 2, 1, 1, 3, 2, 1, 1, 1, 1, 3, 2, 2, 1])[0]
        name, label = rng.choice(_KINDS[kind])
    if rng.random() < 0.45:
        label = noun(rng, words)
        name = words.word(rng) + ("_" + words.word(rng) if rng.random() < 0.2 else "")
    while name in taken:
        name += "_" + words.word(rng)
    taken.add(name)
    json_type = {
        "int": "integer", "num": "number", "bool": "boolean", "onoff": "boolean", "list": "array",
    }.get(kind, "string")  # fmt: skip
    schema: dict[str, Any] = {"type": json_type}
    if kind == "list":
        schema["items"] = {"type": "string"}
    labels = [label]
    if rng.random() < 0.88:
        schema["description"] = _describe(rng, words, label)
        if rng.random() < 0.15:
            labels.append(name.replace("_", " "))
    else:
        labels = [name.replace("_", " ")]
    if choices:
        schema["enum"] = list(choices)
    return Param(name, kind, schema, rng.random() < 0.65, labels, (), choices)


@dataclass(slots=True)
class ChineseTool:
    """A tool and what is needed to ask for it."""

    tool: Tool
    verbs: list[str] = field(default_factory=list)

    def choose(self, rng: random.Random, words: Words) -> list[tuple[Param, Any, str]]:
        """Draw arguments for a call: the required ones and some of the others."""
        return [
            (p, *draw_value(rng, words, p))
            for p in self.tool.params
            if p.required or rng.random() < 0.4
        ]

    def request(
        self, rng: random.Random, words: Words, chosen: list[tuple[Param, Any, str]], bare: bool
    ) -> str:
        """Word a request for a call with these arguments."""
        if self.tool.templates:
            return _everyday(rng, self.tool, chosen, bare)
        return _worded(rng, words, self, chosen, bare)


def make_tool(rng: random.Random, words: Words) -> ChineseTool:
    """Draw a made-up tool."""
    english, described, asked = rng.choice(TEXTS["verbs"])
    about = noun(rng, words)
    style = draw_style(rng, True)
    parts = [rng.choice(english.split())] if rng.random() < 0.85 else []
    name = in_style([*parts, *(words.word(rng) for _ in range(rng.choice((1, 1, 2))))], style)
    ending = rng.choice(TEXTS["endings"]).format(n=noun(rng, words))
    description = (
        rng.choice(described.split()) + rng.choice(("", "", "指定的", "一个")) + about + ending
    )
    taken: set[str] = set()
    params = [make_param(rng, words, taken) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 3, 4)))]
    return ChineseTool(Tool(name, description, params, -1, [about]), asked.split())


def everyday_tool(rng: random.Random, words: Words) -> ChineseTool:
    """Draw one of the tools of chinese.toml."""
    entry = rng.choice(TEXTS["tools"])
    params = []
    for name, label, kind, required in entry["params"]:
        json_type = {"int": "integer", "num": "number", "onoff": "boolean"}.get(kind, "string")
        schema: dict[str, Any] = {"type": json_type}
        x = rng.random()
        if x < 0.75:
            schema["description"] = _describe(rng, words, label) if x < 0.6 else name
        params.append(Param(name, kind, schema, required, [label]))
    return ChineseTool(
        Tool(
            in_style(re.sub(r"([A-Z])", r"_\1", rng.choice(entry["names"])).lower().split("_"),
                     "snake" if rng.random() < 0.7 else draw_style(rng, True)),
            rng.choice(entry["about"]), params, -1, [entry["names"][0]],
            tuple(entry["ask"]), entry["names"][0],
        )
    )  # fmt: skip


def _quote(rng: random.Random, text: str) -> str:
    return rng.choice(("“{}”", "“{}”", "「{}」", '"{}"', "《{}》", "'{}'")).format(text)


def _everyday(
    rng: random.Random, tool: Tool, chosen: list[tuple[Param, Any, str]], bare: bool
) -> str:
    given = {f"{{{i}}}": c for i, p in enumerate(tool.params) for c in chosen if c[0] is p}
    optional = {f"{{{i}}}" for i, p in enumerate(tool.params) if not p.required}
    template = rng.choice(tool.templates)

    def keep(match: re.Match[str]) -> str:
        inner = match[1]
        key = re.search(r"\{\d\}", inner)
        return inner if key and key[0] in given else ""

    text = re.sub(r"\[([^\]]*)\]", keep, template)
    for key, (_, _, surface) in given.items():
        if key in optional and key not in text:
            text += f"，{given[key][0].labels[0]}{surface}"
        text = text.replace(key, surface, 1)
    if bare:
        return text.rstrip("。？！")
    x = rng.random()
    if x < 0.12:
        text = rng.choice(("你好，", "请", "嗨，", "麻烦", "好的，", "请问", "帮个忙，")) + text
    elif x < 0.2:
        text += rng.choice(("谢谢", "。", "，谢谢！", "吧"))
    return text


def _filler(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(ZH_POOLS["filler"], k=rng.randint(low, high)))


def _slot(rng: random.Random, words: Words, chosen: tuple[Param, Any, str]) -> str:
    param, value, surface = chosen
    label = rng.choice(param.labels)
    if param.kind in ("bool", "onoff"):
        text = rng.choice(TEXTS["yes" if value else "no"]).format(l=label)
        return _filler(rng, 0, 1) + text if rng.random() < 0.3 else text
    if param.kind in LOOSE_KINDS and rng.random() < 0.85:
        surface = _quote(rng, surface)
    elif param.kind in ("int", "num") and rng.random() < 0.25:
        return rng.choice(TEXTS["numbered"]).format(l=label, s=surface)
    elif param.kind != "ref" and rng.random() < 0.12:
        surface = _quote(rng, surface)
    x = rng.random()
    if x < 0.25:  # any words between: only their being common tells
        joint = rng.choice(("", "，", "：", " "))
        return _filler(rng, 0, 2) + label + joint + _filler(rng, 1, 2) + surface
    text = rng.choice(TEXTS["labelled"]).format(l=label, s=surface)
    return _filler(rng, 1, 2) + text if x < 0.4 else text


def _worded(
    rng: random.Random, words: Words, tool: ChineseTool, chosen: list[tuple[Param, Any, str]],
    bare: bool,
) -> str:  # fmt: skip
    about = tool.tool.nouns[0]
    x = rng.random()
    if x < 0.2:
        core = rng.choice(TEXTS["askers"]).format(n=about)
    else:
        verb = rng.choice(tool.verbs) if x < 0.85 else _filler(rng, 1, 1)
        core = verb + rng.choice(TEXTS["determiners"]) + about
        if rng.random() < 0.1:
            core = f"把{about}{verb}"
        if not bare:
            core = rng.choice(TEXTS["openers"]) + core
        if rng.random() < 0.25:
            core = _filler(rng, 1, 2) + core
    closer = "" if bare else rng.choice(TEXTS["closers"])
    slots = list(chosen)
    if rng.random() < 0.5:
        rng.shuffle(slots)
    parts = [_slot(rng, words, c) for c in slots]
    if not parts:
        return core + closer
    joined = parts[0]
    for part in parts[1:]:
        joined += rng.choice(TEXTS["glue"]) + part
    if rng.random() < 0.3:
        joint = rng.choice(("，", "：", "。", "；", "，所以", "，那就", "\n"))
        return joined + joint + core + closer
    joint = rng.choice(("，", "，", "，", "：", "。", "，其中", "，注意", " ", "；"))
    return core + joint + joined + closer


def _call(name: str, chosen: list[tuple[Param, Any, str]]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "arguments": {p.name: v for p, v, _ in chosen}},
    }


def draw_tools(rng: random.Random, words: Words, count: int) -> list[ChineseTool]:
    """Draw tools that can be offered together."""
    tools: list[ChineseTool] = []
    taken: set[str] = set()
    everyday = rng.random() < 0.5
    while len(tools) < count:
        make = everyday_tool if everyday and rng.random() < 0.75 else make_tool
        tool = make(rng, words)
        if tool.tool.name in taken or tool.tool.nouns[0] in taken:
            continue
        taken |= {tool.tool.name, tool.tool.nouns[0]}
        tools.append(tool)
    return tools


def call_turn(
    rng: random.Random, words: Words, tools: list[ChineseTool]
) -> tuple[str, list[dict[str, Any]]]:
    """Draw a request and the one or more calls that answer it."""
    x = rng.random()
    count = 1 if x < 0.76 else 2 if x < 0.95 else 3
    picked = rng.sample(tools, count) if len(tools) >= count else [rng.choice(tools)] * count
    texts, calls = [], []
    for tool in picked:
        chosen = tool.choose(rng, words)
        texts.append(tool.request(rng, words, chosen, count > 1))
        calls.append(_call(tool.tool.name, chosen))
    if len({json.dumps(c, ensure_ascii=False) for c in calls}) < len(calls):
        return texts[0], calls[:1]
    text = texts[0]
    for other in texts[1:]:
        text += rng.choice(TEXTS["requests_glue"]) + other
    return text, calls


def _say(value: Any) -> str:
    if isinstance(value, bool):
        return "是" if value else "否"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def draw_result(rng: random.Random, words: Words) -> tuple[str, str]:
    """Draw what a tool returns and the Chinese answer that reports it."""
    x = rng.random()
    if x < 0.1:
        message = text_value(rng, words)
        return json.dumps({rng.choice(("error", "错误")): message}, ensure_ascii=False), TEXTS[
            "failed"
        ].format(s=message)
    if x < 0.17:
        return rng.choice(("ok", "null", '{"status": "ok"}', "{}", "成功", "", "done")), TEXTS[
            "done"
        ]
    if x < 0.25:
        text = text_value(rng, words)
        return text, text
    if x < 0.37:
        sort = rng.choice(("word", "person", "city", "title", "filename"))
        items = [string(rng, words, sort) for _ in range(rng.randint(1, 5))]
        return json.dumps(items, ensure_ascii=False), TEXTS["found"][0].format(s="、".join(items))
    result: dict[str, Any] = {}
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        english, label = rng.choice(TEXTS["results"]["keys"])
        y = rng.random()
        key = english if y < 0.55 else label
        if y > 0.85:
            key = label = noun(rng, words) if rng.random() < 0.5 else words.word(rng)
        if key in result:
            continue
        kind = rng.choice(("word", "person", "city", "day", "clock", "id", "text", "int", "num"))
        param = Param("", kind, {}, True, [])
        value = rng.random() < 0.5 if rng.random() < 0.06 else draw_value(rng, words, param)[0]
        result[key] = value
        parts.append(f"{label}是{_say(value)}")
    return json.dumps(result, ensure_ascii=False), "，".join(parts) + "。"


def small_talk(rng: random.Random) -> tuple[str, str]:
    """Draw a greeting, thanks, farewell or a question about the model, and its answer."""
    kind = rng.choice(("hello", "who", "thank", "bye", "can"))
    answer = TEXTS[
        {"hello": "greeting", "who": "identity", "thank": "thanks", "bye": "goodbye",
         "can": "ability"}[kind]
    ]  # fmt: skip
    text = rng.choice(TEXTS[kind])
    return text + rng.choice(("", "", "。", "！", "？", "呀", "啊")), answer


def _fill(rng: random.Random, words: Words, text: str) -> str:
    for key, kind in (("{n}", "word"), ("{c}", "city"), ("{p}", "person"), ("{d}", "day")):
        while key in text:
            text = text.replace(key, string(rng, words, kind), 1)
    return text


def foreign_request(rng: random.Random, words: Words, tools: list[ChineseTool]) -> str:
    """Word a request that none of the tools fits."""
    if rng.random() < 0.4:
        text = _fill(rng, words, rng.choice(TEXTS["general"]))
        return text + rng.choice(("", "。", "？", "吧", "，谢谢"))
    taken = {t.tool.nouns[0] for t in tools}
    while True:
        tool = rng.choice((everyday_tool, make_tool))(rng, words)
        if tool.tool.nouns[0] not in taken:
            return tool.request(rng, words, tool.choose(rng, words), False)


def chinese_dialogue(rng: random.Random, words: Words, max_turns: int = 4) -> Dialogue:
    """Draw a dialogue in Chinese, one time in twelve without tools."""
    plain = rng.random() < 0.08
    tools = (
        [] if plain else draw_tools(rng, words, rng.choices((1, 2, 3, 4, 6), (3, 4, 3, 2, 1))[0])
    )
    messages: list[Message] = []
    if rng.random() < 0.3:
        messages.append(
            {"role": "system", "content": _fill(rng, words, rng.choice(TEXTS["system"]))}
        )
    turns = rng.randint(1, max_turns)
    for turn in range(turns):
        x = rng.random()
        if plain or x < 0.05:
            if not plain or rng.random() < 0.5:
                text, answer = small_talk(rng)
            else:
                text, answer = foreign_request(rng, words, []), TEXTS["no_tools"]
        elif x < 0.17:
            text, answer = foreign_request(rng, words, tools), TEXTS["refusal"]
        elif x < 0.2:
            tool = rng.choice(tools)
            chosen = tool.choose(rng, words)
            needed = [c for c in chosen if c[0].required]
            if not needed or tool.tool.templates:
                continue
            gone = rng.choice(needed)
            text = tool.request(rng, words, [c for c in chosen if c is not gone], False)
            answer = TEXTS["missing"].format(s=gone[0].labels[0])
        else:
            text, calls = call_turn(rng, words, tools)
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "", "tool_calls": calls},
            ]
            if turn == turns - 1 and rng.random() < 0.4:
                break
            results = [draw_result(rng, words) for _ in calls]
            messages += [{"role": "tool", "content": r[0]} for r in results]
            messages.append({"role": "assistant", "content": "\n".join(r[1] for r in results)})
            continue
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    if len(messages) < 2:
        return chinese_dialogue(rng, words, max_turns)
    return Dialogue(messages, [to_json_tool(rng, t.tool) for t in tools])
