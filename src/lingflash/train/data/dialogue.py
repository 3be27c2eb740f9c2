"""Whole training dialogues: a set of tools and some turns over them."""

from __future__ import annotations

import random
from typing import Any

from lingflash.train.data import answers
from lingflash.train.data.fillers import filler
from lingflash.train.data.library import frame_tool, library_tool
from lingflash.train.data.phrases import (
    Chosen,
    choose,
    choose_arguments,
    request,
    sentence,
)
from lingflash.train.data.quantities import integer
from lingflash.train.data.render import Dialogue, Message
from lingflash.train.data.tables import VERB_GROUPS, WORDINGS
from lingflash.train.data.tools import Tool, make_tool, to_json_tool
from lingflash.train.data.values import KINDS, phrase
from lingflash.train.data.words import Words, random_string


def _system(rng: random.Random, words: Words) -> str:
    text = " ".join(rng.choice(WORDINGS["system"]) for _ in range(rng.choice((1, 1, 2))))
    if rng.random() < 0.15:
        text += "\n" + phrase(rng, words, 5, 60)
    for key, kind in (
        ("{w}", "word"),
        ("{d}", "date"),
        ("{p}", "person"),
        ("{c}", "city"),
        ("{t}", "time"),
    ):
        while key in text:
            text = text.replace(key, KINDS[kind].make(rng, words), 1)
    return text


def _call(name: str, arguments: list[Chosen]) -> dict[str, Any]:
    order = {c[0].name: c[1] for c in arguments}
    return {"type": "function", "function": {"name": name, "arguments": order}}


def draw_tools(rng: random.Random, words: Words, count: int) -> list[Tool]:
    """Draw tools that can be offered together: names differ, topics do not meet."""
    tools: list[Tool] = []
    library = rng.random() < 0.5
    topics: set[str] = set()
    names: set[str] = set()
    siblings = rng.random() < 0.2
    while len(tools) < count:
        x = rng.random()
        if library and x < 0.75:
            tool = (
                frame_tool(rng, words) if rng.random() < 0.6 else library_tool(rng, words, topics)
            )
        elif x < 0.08:
            tool = frame_tool(rng, words)
        elif tools and tools[0].verb >= 0 and siblings:
            # The same things, another verb: only the verb tells them apart.
            verb = rng.randrange(len(VERB_GROUPS))
            if any(set(VERB_GROUPS[verb]) & set(VERB_GROUPS[t.verb]) for t in tools if t.verb >= 0):
                continue
            tool = make_tool(rng, words, 0.25, verb, tools[0].nouns[0])
        elif tools and tools[-1].verb >= 0 and x < 0.45:
            shared = tools[-1].nouns[0].split()
            noun = words.word(rng) + " " + rng.choice(shared) if rng.random() < 0.5 else ""
            tool = make_tool(
                rng, words, 0.25, tools[-1].verb if not noun or rng.random() < 0.3 else -1, noun
            )
        else:
            tool = make_tool(rng, words, 0.25)
        if tool.name in names or (tool.topic and tool.topic in topics):
            continue
        names.add(tool.name)
        if tool.topic:
            topics.add(tool.topic)
        tools.append(tool)
    rng.shuffle(tools)
    return tools


def foreign_request(rng: random.Random, words: Words, tools: list[Tool]) -> str:
    """Word a request that none of the tools fits."""
    x = rng.random()
    if x < 0.25:
        return answers.general_request(rng, words)
    if x < 0.55:
        tool = (
            frame_tool(rng, words)
            if rng.random() < 0.5
            else library_tool(rng, words, {t.topic for t in tools})
        )
    else:
        # Shares the verb or a parameter's name with an offered tool now and then.
        near = rng.choice(tools)
        tool = make_tool(rng, words, 0.25, near.verb if rng.random() < 0.2 else -1)
        if near.params and rng.random() < 0.3 and near.verb >= 0:
            tool.params = near.params
    return request(rng, tool, choose_arguments(rng, words, tool), tools)


def _spread(
    rng: random.Random, words: Words, tool: Tool, rivals: list[Tool]
) -> tuple[str, list[dict[str, Any]]] | None:
    """Word one request that asks for a call for each of several values of one argument."""
    candidates = [
        p
        for p in tool.params
        if p.kind.startswith("str:") and p.kind not in ("str:text", "str:address") and p.required
    ]
    if not candidates:
        return None
    param = rng.choice(candidates)
    values = [choose(rng, words, param) for _ in range(rng.choice((2, 2, 2, 3)))]
    texts = [v[2] for v in values]
    if any("," in t or " and " in t for t in texts) or len(set(texts)) < len(texts):
        return None
    others = [c for c in choose_arguments(rng, words, tool, 0.25) if c[0] is not param]
    order = {p.name: i for i, p in enumerate(tool.params)}

    def arguments(chosen: Chosen) -> list[Chosen]:
        return sorted([chosen, *others], key=lambda c: order[c[0].name])

    joined = (
        ", ".join(texts[:-1]) + rng.choice((" and ", " and ", ", and ", " and also ")) + texts[-1]
    )
    text = request(rng, tool, arguments((param, joined, joined)), rivals)
    if joined not in text:
        return None
    return text, [_call(tool.name, arguments(v)) for v in values]


def call_turn(
    rng: random.Random, words: Words, tools: list[Tool]
) -> tuple[str, list[dict[str, Any]]]:
    """Draw a request and the calls that answer it."""
    x = rng.random()
    if x < 0.09:
        tool = rng.choice(tools)
        spread = _spread(rng, words, tool, [t for t in tools if t is not tool])
        if spread:
            return spread
    if x < 0.32:
        picked = (
            rng.sample(tools, 2)
            if len(tools) > 1 and rng.random() < 0.7
            else [rng.choice(tools)] * 2
        )
        if len(tools) > 2 and rng.random() < 0.2:
            picked = rng.sample(tools, 3)
        texts, calls = [], []
        for tool in picked:
            arguments = choose_arguments(rng, words, tool, 0.3)
            rivals = [t for t in tools if t is not tool]
            texts.append(
                request(rng, tool, arguments, rivals, bare=rng.random() < 0.6).rstrip(" .")
            )
            calls.append(_call(tool.name, arguments))
        if calls[0] == calls[1]:
            return texts[0], calls[:1]
        if rng.random() < 0.15:
            text = rng.choice(("", "Please do the following:\n", "Two things:\n")) + "\n".join(
                f"{i + 1}. {t}" for i, t in enumerate(texts)
            )
        else:
            glue = rng.choice(WORDINGS["glue"])
            if rng.random() < 0.35:
                glue = (
                    rng.choice((". ", "\n", "; ", ", ", " ", "! "))
                    + filler(rng, 1, 4)
                    + rng.choice((": ", ", ", " ", " "))
                )
            text = glue.join(
                [
                    texts[0],
                    *(
                        t if glue == ". " or glue == "\n" else t[0].lower() + t[1:]
                        for t in texts[1:]
                    ),
                ]
            )
            text += rng.choice(("", ".", "", "?"))
        return text, calls
    tool = rng.choice(tools)
    arguments = choose_arguments(rng, words, tool)
    rivals = [t for t in tools if t is not tool]
    return request(rng, tool, arguments, rivals), [_call(tool.name, arguments)]


def _ask_turn(rng: random.Random, words: Words, tools: list[Tool]) -> tuple[str, str] | None:
    """Draw a request that lacks required arguments, and the question for them."""
    able = [t for t in tools if t.verb >= 0 and any(p.required for p in t.params)]
    if not able:
        return None
    tool = rng.choice(able)
    arguments = choose_arguments(rng, words, tool, 0.2)
    required = [c for c in arguments if c[0].required]
    missing = rng.sample(required, rng.choice((1, 1, len(required))))
    kept = [c for c in arguments if not any(c is m for m in missing)]
    names = [p.name for p in tool.params if any(p is m[0] for m in missing)]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return request(
        rng, tool, kept, [t for t in tools if t is not tool]
    ), f"Please tell me the {listed}."


def tool_dialogue(rng: random.Random, words: Words, max_turns: int = 4, scale: int = 1) -> Dialogue:
    """Draw a dialogue with tools.

    Args:
        scale: length of tool results, for long documents.
    """
    count = rng.choices((1, 2, 3, 4, 5, 7, 10), (20, 25, 24, 14, 10, 5, 2))[0]
    tools = draw_tools(rng, words, count)
    messages: list[Message] = []
    if rng.random() < 0.35:
        messages.append({"role": "system", "content": _system(rng, words)})
    number_turns = rng.randint(1, max_turns)
    for turn in range(number_turns):
        x = rng.random()
        last = turn == number_turns - 1
        if x < 0.18:
            messages += [
                {"role": "user", "content": foreign_request(rng, words, tools)},
                {"role": "assistant", "content": answers.REFUSAL},
            ]
            continue
        if x < 0.21:
            text, answer = answers.small_talk(rng)
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer},
            ]
            continue
        if x < 0.245:
            asked = _ask_turn(rng, words, tools)
            if asked:
                messages += [
                    {"role": "user", "content": asked[0]},
                    {"role": "assistant", "content": asked[1]},
                ]
                continue
        text, calls = call_turn(rng, words, tools)
        if rng.random() < 0.05:
            extra = sentence(rng, phrase(rng, words, 3, 12)) + "."
            text = f"{extra} {text}" if rng.random() < 0.6 else f"{text.rstrip('.?! ')}. {extra}"
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        if last and rng.random() < 0.4:
            break
        results = [answers.draw_result(rng, words, scale) for _ in calls]
        messages += [{"role": "tool", "content": r[0]} for r in results]
        messages.append({"role": "assistant", "content": "\n".join(r[1] for r in results)})
    return Dialogue(messages, [to_json_tool(rng, t) for t in tools])


def plain_dialogue(rng: random.Random, words: Words) -> Dialogue:
    """Draw a dialogue without tools."""
    messages: list[Message] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": _system(rng, words)})
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.55:
            text, answer = answers.small_talk(rng)
        else:
            tool = library_tool(rng, words, set())
            text = (
                answers.general_request(rng, words)
                if rng.random() < 0.6
                else request(rng, tool, choose_arguments(rng, words, tool), [])
            )
            answer = answers.NO_TOOLS
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Dialogue(messages)


def copy_dialogue(rng: random.Random, words: Words) -> Dialogue:
    """Draw an exercise in copying: its system message is just "copy"."""
    messages: list[Message] = [{"role": "system", "content": "copy"}]
    for _ in range(rng.randint(1, 4)):
        x = rng.random()
        if x < 0.35:
            kinds = tuple(KINDS.values())
            texts = [
                random_string(rng) if rng.random() < 0.4 else rng.choice(kinds).make(rng, words)
                for _ in range(rng.randint(1, 6))
            ]
            text = rng.choice((" ", ", ", "\n", " and ")).join(texts)
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
            continue
        tool = make_tool(rng, words, 0.5)
        tool.params = [p for p in tool.params if p.kind not in ("object", "rows")]
        chosen = [(p.name, p, *choose(rng, words, p)[1:]) for p in tool.params]
        listed = ", ".join(f"{name}={surface}" for name, _, _, surface in chosen)
        if rng.random() < 0.15:
            listed += f", n={integer(rng)}"
            continue
        calls = [
            {
                "type": "function",
                "function": {"name": tool.name, "arguments": {n: v for n, _, v, _ in chosen}},
            }
        ]
        messages += [
            {"role": "user", "content": f"{tool.name}: {listed}"},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ]
    if len(messages) == 1:
        return copy_dialogue(rng, words)
    return Dialogue(messages)
