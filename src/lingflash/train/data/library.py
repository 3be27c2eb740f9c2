"""The everyday tools of library.txt and the sentence frames of frames.txt, renamed at random."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from lingflash.train.data.tables import read_text
from lingflash.train.data.tools import Param, Tool, draw_style, in_style
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import Words


@dataclass(slots=True)
class _Entry:
    topic: str
    names: list[str]
    descriptions: list[str]
    params: list[tuple[list[str], list[str], bool]]
    templates: tuple[str, ...]


@cache
def entries(file: str = "library.txt") -> tuple[_Entry, ...]:
    """Parse library.txt or frames.txt."""
    text = read_text(file)
    found: list[_Entry] = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        entry = found[-1] if found else None
        if line.startswith("@"):
            found.append(_Entry(line[1:], [], [], [], ()))
        elif entry is None:
            raise ValueError(f"{file}: {line!r} stands before the first topic")
        elif line.startswith("N "):
            entry.names = line[2:].split()
        elif line.startswith("D "):
            entry.descriptions = [d.strip() for d in line[2:].split(" / ")]
        elif line.startswith("P "):
            names, _, kind = line[2:].partition(" = ")
            parts = kind.split()
            required = parts[-1] == "!"
            entry.params.append((names.split(), parts[: -1 if required else None], required))
        else:
            template = re.sub(r"\{(\d)\}", lambda m: f"{{{int(m[1]) - 1}}}", line)
            entry.templates += (template,)
    return tuple(found)


def library_tool(rng: random.Random, words: Words, avoid: set[str]) -> Tool:
    """Draw an everyday tool of a topic not in `avoid`."""
    while True:
        entry = rng.choice(entries())
        if entry.topic not in avoid:
            break
    return _instance(rng, words, entry, {})


def frame_tool(rng: random.Random, words: Words) -> Tool:
    """Draw a tool for an invented thing, with everyday sentences about it."""
    entry = rng.choice(entries("frames.txt"))
    return _instance(rng, words, entry, {"<n>": words.word(rng), "<m>": words.word(rng)})


def _instance(rng: random.Random, words: Words, entry: _Entry, things: dict[str, str]) -> Tool:
    def put(text: str, named: dict[str, str] | None = None) -> str:
        for key, thing in (named or things).items():
            text = text.replace(key, thing)
        return text

    # Now and then the thing is in the name only, or in the description only.
    x = rng.random()
    in_name = {**things, "<n>": words.word(rng)} if things and x < 0.2 else things
    in_text = {**things, "<n>": words.word(rng)} if things and 0.2 < x < 0.35 else things

    style = draw_style(rng, True) if rng.random() < 0.5 else "snake"
    name = in_style(
        re.sub(r"([A-Z])", r"_\1", put(rng.choice(entry.names), in_name)).lower().split("_"), style
    )
    description = put(rng.choice(entry.descriptions), in_text)
    description = description[0].upper() + description[1:]
    x = rng.random()
    if x < 0.1 and in_name is things:
        description = ""
    elif x < 0.2:
        description = (
            description.rstrip(".")
            + rng.choice((" with ", " for ", " from the ", " using "))
            + words.word(rng)
        )
    params: list[Param] = []
    for names, kind, required in entry.params:
        base = put(rng.choice(names)).replace("_", " ")
        while any(p.labels[0] == base for p in params):
            base = words.word(rng)
        schema: dict[str, Any] = {}
        choices: tuple[str, ...] = ()
        preps: tuple[str, ...] = ()
        sort = kind[0]
        bases: tuple[str, ...] = (f"The {base}", base.capitalize())
        if sort.startswith("str:"):
            schema["type"] = "string"
            preps = KINDS[sort[4:]].preps
            bases += KINDS[sort[4:]].descriptions
        elif sort == "enum":
            schema["type"], choices = "string", tuple(kind[1:])
        elif sort.startswith("list:"):
            schema["type"], schema["items"] = "array", {"type": "string"}
        else:
            schema["type"] = {"int": "integer", "num": "number", "bool": "boolean"}[sort]
        if rng.random() < 0.75:
            schema["description"] = rng.choice(bases) + rng.choice(("", "", "."))
        if choices:
            schema["enum"] = list(choices)
        label = in_style(base.split(), "camel" if style == "camel" else "snake")
        params.append(Param(label, sort, schema, required, [base], preps, choices))
    spoken = re.sub(r"[_.-]+", " ", re.sub(r"([A-Z])", r" \1", name)).lower().strip()
    templates = tuple(_start_large(put(t)) for t in entry.templates) if things else entry.templates
    topic = "" if things else entry.topic
    return Tool(name, description, params, -1, [spoken], templates, topic)


def _start_large(text: str) -> str:
    return text[0].upper() + text[1:]
