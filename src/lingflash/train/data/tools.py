"""Made-up function signatures: parameters of every JSON type, names in every style."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from lingflash.train.data.fillers import table
from lingflash.train.data.names import (
    BOOLEAN_NAMES,
    ENUMS,
    INTEGER_NAMES,
    NUMBER_NAMES,
    NUMBER_WORDS,
)
from lingflash.train.data.quantities import integer, number
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import VERB_GROUPS, Words

# Kinds whose values hold spaces and may run into their surroundings.
LONG_KINDS = frozenset({"text", "title", "query", "address", "unicode"})
LIST_NAMES = table(
    """
tags items names recipients ids labels numbers fields files members keywords columns options
filter settings config profile details metadata entries rows lines orders
"""
)
_KIND_NAMES = tuple(KINDS)
_KIND_WEIGHTS = tuple(
    {"word": 3, "text": 2, "title": 2, "city": 2, "person": 2, "random": 2, "id": 2}.get(k, 1)
    for k in _KIND_NAMES
)


@dataclass(slots=True)
class Param:
    """One parameter of a function.

    Args:
        name: as in the schema.
        kind: "str:<kind>", "int", "num", "bool", "enum", "list:<kind>", "list:int", "object" or
            "rows".
        schema: its JSON schema.
        required: whether the schema requires it.
        labels: what a request may call it.
        preps: prepositions that can stand before the value instead of a label.
        choices: values of an enum.
        fields: inner parameters of an object, or of the rows of an array of objects.
    """

    name: str
    kind: str
    schema: dict[str, Any]
    required: bool
    labels: list[str]
    preps: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    fields: list[Param] = field(default_factory=list)


@dataclass(slots=True)
class Tool:
    """A function that can be offered.

    Args:
        name: as in the schema.
        description: may be empty.
        params: in schema order.
        verb: index of the group of verbs it belongs to, -1 for none.
        nouns: what it is about, as a request may call it.
        templates: requests written for it, with {name} fields and optional [parts].
        topic: tools of one topic are never offered beside each other by chance.
    """

    name: str
    description: str
    params: list[Param]
    verb: int
    nouns: list[str]
    templates: tuple[str, ...] = ()
    topic: str = ""


_OBJECT_NAMES = (
    "options", "filter", "address", "settings", "config", "customer", "profile", "details",
    "metadata",
)  # fmt: skip
_ROWS_NAMES = ("items", "entries", "rows", "lines", "orders")


def in_style(words: list[str], style: str) -> str:
    """Join words into an identifier: snake, camel, pascal, kebab or dotted."""
    if style == "camel":
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if style == "pascal":
        return "".join(w.capitalize() for w in words)
    return {"kebab": "-", "dotted": "."}.get(style, "_").join(words)


def draw_style(rng: random.Random, function: bool) -> str:
    """Draw a naming style; kebab and dotted are for function names only."""
    x = rng.random()
    if x < 0.68:
        return "snake"
    if x < 0.86:
        return "camel"
    if not function:
        return "snake"
    return "kebab" if x < 0.91 else "dotted" if x < 0.96 else "pascal"


def _describe(rng: random.Random, words: Words, labels: list[str], bases: tuple[str, ...]) -> str:
    x = rng.random()
    label = labels[0]
    if x < 0.3:
        text = rng.choice(bases)
    elif x < 0.6:
        text = rng.choice(
            (
                "The {0}",
                "{0} to use",
                "Which {0}",
                "{0} of the {1}",
                "Desired {0}",
                "The {0} that applies",
                "Value of {0}",
            )
        ).format(label, words.word(rng))
    elif x < 0.8:
        # The description brings a name of its own, which requests may use too.
        other = words.word(rng) + (" " + words.word(rng) if rng.random() < 0.3 else "")
        labels.append(other)
        text = rng.choice(
            (
                "The {0}",
                "{0} to use",
                "Sets the {0}",
                "The {0} of the {1}",
                "{0}, if any",
                "Optional {0}",
                "Specifies the {0}",
            )
        ).format(other, words.word(rng))
    else:
        text = rng.choice(bases) + ", " + words.word(rng) + " " + words.word(rng)
    return text[0].upper() + text[1:] + ("." if rng.random() < 0.25 else "")


@dataclass(slots=True)
class _Form:
    """What a parameter takes, before it has a name.

    Args:
        kind: as in Param.
        base: words of a usual name.
        bases: usual descriptions.
        schema: JSON schema without description and choices.
        preps, choices, fields: as in Param.
    """

    kind: str
    base: str
    bases: tuple[str, ...]
    schema: dict[str, Any]
    preps: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    fields: list[Param] = field(default_factory=list)


def _draw_form(rng: random.Random, words: Words, x: float, random_name: bool) -> _Form:
    """A scalar or a list; x in [0, 1) chooses."""
    if x < 0.52:
        kind = rng.choices(_KIND_NAMES, _KIND_WEIGHTS)[0]
        base = rng.choice(KINDS[kind].names)
        schema = {"type": "string"}
        return _Form("str:" + kind, base, KINDS[kind].descriptions, schema, KINDS[kind].preps)
    if x < 0.66:
        bases = ("How many", "Number", "Whole number", "Maximum number")
        return _Form("int", rng.choice(INTEGER_NAMES), bases, {"type": "integer"})
    if x < 0.73:
        bases = ("Amount", "Decimal number", "Value")
        return _Form("num", rng.choice(NUMBER_NAMES), bases, {"type": "number"})
    if x < 0.81:
        bases = ("Whether to do it", "Switch", "True or false")
        return _Form("bool", rng.choice(BOOLEAN_NAMES), bases, {"type": "boolean"})
    if x < 0.91:
        if random_name or rng.random() < 0.4:
            base = words.word(rng)
            choices = tuple(dict.fromkeys(words.word(rng) for _ in range(rng.randint(2, 5))))
        else:
            base, choices = rng.choice(ENUMS)
        bases = ("One of the choices", "Which kind", "Choice")
        return _Form("enum", base, bases, {"type": "string"}, choices=choices)
    item = (
        "int"
        if rng.random() < 0.25
        else rng.choice(("word", "person", "email", "city", "random", "filename", "word", "title"))
    )
    items = {"type": "integer" if item == "int" else "string"}
    bases = ("List of values", "The list", "All of them")
    schema = {"type": "array", "items": items}
    return _Form("list:" + item, rng.choice(LIST_NAMES), bases, schema)


def _draw_structure(
    rng: random.Random, words: Words, style: str, random_names: float, kind: str
) -> _Form:
    """An object of scalars, or rows of them."""
    base = rng.choice(_OBJECT_NAMES if kind == "object" else _ROWS_NAMES)
    inner: set[str] = set()
    fields = [
        make_param(rng, words, inner, style, random_names, 1) for _ in range(rng.randint(2, 3))
    ]
    for f in fields:
        f.required = kind == "rows" or f.required
    shape: dict[str, Any] = {"type": "object", "properties": {f.name: f.schema for f in fields}}
    if rng.random() < 0.5 or kind == "rows":
        shape["required"] = [f.name for f in fields if f.required]
    schema = shape if kind == "object" else {"type": "array", "items": shape}
    return _Form(kind, base, ("Details", "A structured value", "Settings"), schema, fields=fields)


def make_param(
    rng: random.Random,
    words: Words,
    taken: set[str],
    style: str,
    random_names: float,
    depth: int = 0,
) -> Param:
    """Draw a parameter whose name is not among `taken`, and add it there.

    Args:
        words: pools to draw from.
        random_names: probability of a name made of random words.
        depth: 1 inside an object, where only scalars and lists are drawn.
    """
    x = rng.random()
    random_name = rng.random() < random_names
    if depth or x < 0.96:
        form = _draw_form(rng, words, x, random_name)
    else:
        kind = "object" if x < 0.985 else "rows"
        form = _draw_structure(rng, words, style, random_names, kind)
    base, preps, schema = form.base, form.preps, form.schema
    if random_name:
        base = words.word(rng) + (" " + words.word(rng) if rng.random() < 0.35 else "")
        if form.kind == "bool" and rng.random() < 0.5:
            base = rng.choice(("include ", "use ", "is ", "with ", "enable ")) + base
        preps = preps if rng.random() < 0.4 else ()
    elif rng.random() < 0.12:
        base = words.word(rng) + " " + base
    while (name := in_style(base.split(), style)) in taken:
        base += " " + words.word(rng)
    taken.add(name)
    label = base
    if form.kind == "bool":
        head, _, rest = base.partition(" ")
        if rest and head in ("include", "use", "is", "with", "enable"):
            label = rest
    labels = [label]
    if rng.random() < 0.8:
        schema["description"] = _describe(rng, words, labels, form.bases)
    if form.choices:
        schema["enum"] = list(form.choices)
    is_required = rng.random() < 0.62
    return Param(name, form.kind, schema, is_required, labels, preps, form.choices, form.fields)


def draw_value(rng: random.Random, words: Words, param: Param) -> tuple[Any, str]:
    """Draw a value for a scalar or list parameter.

    Returns:
        The JSON value and how a request writes it.
    """
    kind = param.kind
    if kind.startswith("str:"):
        value = KINDS[kind[4:]].make(rng, words)
        return value, value
    if kind == "int":
        whole = integer(rng)
        if 1 <= whole <= 12 and rng.random() < 0.15:
            return whole, NUMBER_WORDS[whole - 1]
        if 1 <= whole <= 60 and rng.random() < 0.05:
            suffix = (
                "th"
                if whole % 100 in (11, 12, 13)
                else {1: "st", 2: "nd", 3: "rd"}.get(whole % 10, "th")
            )
            return whole, f"{whole}{suffix}"
        return whole, str(whole)
    if kind == "num":
        real = number(rng)
        if isinstance(real, float) and rng.random() < 0.15 and real == round(real, 1):
            return real, f"{real:.2f}"
        return real, str(real)
    if kind == "bool":
        truth = rng.random() < 0.6
        return truth, "true" if truth else "false"
    if kind == "enum":
        chosen = rng.choice(param.choices)
        return chosen, chosen
    item = kind[5:]
    values: list[Any] = [
        integer(rng) if item == "int" else KINDS[item].make(rng, words).replace(",", "")
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4)))
    ]
    texts = [str(v) for v in values]
    joiner = rng.choice((" and ", " and ", ", and ", ", "))
    surface = texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + joiner + texts[-1]
    return values, surface


_FILLERS = (
    "",
    "",
    "",
    " for the user",
    " in the system",
    " from the {w}",
    " of the {w}",
    " using the {w} {w2}",
    " and return it",
    " by {w}",
    " with optional {w}",
    " (see {w})",
    ". Supports {w} and {w2}",
    ". Use it when {w} is needed",
    ". Returns the {w}",
)


def make_tool(
    rng: random.Random, words: Words, random_names: float = 0.2, verb: int = -1, noun: str = ""
) -> Tool:
    """Draw a function signature.

    Args:
        rng: source of randomness.
        words: pools to draw from.
        random_names: probability of a random name, per parameter.
        verb: verb group to use, -1 draws one.
        noun: what it is about, "" draws it.
    """
    if verb < 0:
        verb = rng.randrange(len(VERB_GROUPS))
    nouns = noun.split() if noun else [words.word(rng) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    group = VERB_GROUPS[verb]
    about = " ".join(nouns)
    style = draw_style(rng, True)
    x = rng.random()
    name_nouns = list(nouns)
    described = about
    if x < 0.2:  # named after something else, the description tells
        name_nouns = [words.word(rng) for _ in range(rng.choice((1, 2)))]
    elif x < 0.4:  # the description speaks of something else as well
        described = (
            about + " " + words.word(rng) if rng.random() < 0.5 else words.word(rng) + " " + about
        )
    elif x < 0.5 and len(nouns) > 1:
        name_nouns = nouns[-1:] if rng.random() < 0.5 else nouns[:1]
    verb_part = [] if rng.random() < 0.15 else rng.choice(group).split("-")
    name = in_style(verb_part + name_nouns, style)
    if style == "dotted" and rng.random() < 0.5:
        name = in_style([*name_nouns, *verb_part], style)
    if rng.random() < 0.05:
        name += rng.choice(("_v2", "_tool", "2", "_api", "_fn"))
    description = ""
    extra: list[str] = []
    filler = ""
    if x < 0.2 or x >= 0.6 or rng.random() < 0.85:
        plural = "s" if rng.random() < 0.2 and not described.endswith("s") else ""
        article = rng.choice(("the ", "a ", "", "", "an existing ", "all ", "one "))
        verb_text = rng.choice(group).replace("-", " ")
        if rng.random() < 0.25:
            verb_text += "s"
        extra = [words.word(rng), words.word(rng)]
        filler = rng.choice(_FILLERS).format(w=extra[0], w2=extra[1])
        description = f"{verb_text.capitalize()} {article}{described}{plural}{filler}"
        if rng.random() < 0.06:
            sort = rng.choice(("service", "tool", "helper", "API"))
            description = f"{described.capitalize()} {sort}{filler}"
        if rng.random() < 0.5:
            description += "."
    taken: set[str] = set()
    param_style = (
        "camel" if style in ("camel", "pascal") and rng.random() < 0.7 else draw_style(rng, False)
    )
    params = [
        make_param(rng, words, taken, param_style, random_names)
        for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6)))
    ]
    if rng.random() < 0.7:
        params.sort(key=lambda p: not p.required)
    names = [about]
    if len(nouns) > 1 and rng.random() < 0.3:
        names.append(
            " ".join(nouns[::-1])
            if rng.random() < 0.3
            else f"{nouns[-1]} of the {' '.join(nouns[:-1])}"
        )
    # A request may also mention only part of it, or what only the description or the name says.
    if rng.random() < 0.3:
        names += [n for n in nouns if len(nouns) > 1]
        names += [e for e in extra if e in filler]
        if name_nouns != nouns:
            names.append(" ".join(name_nouns))
    return Tool(name, description, params, verb, names)


def to_json_tool(rng: random.Random, tool: Tool) -> dict[str, Any]:
    """Return the tool in OpenAI form, now and then with the extras that clients add."""
    x = rng.random()
    properties: dict[str, Any] = {}
    for p in tool.params:
        schema = p.schema
        if x > 0.93:
            schema = {"title": p.name.replace("_", " ").title(), **schema}
        elif x > 0.8 and "description" in schema and rng.random() < 0.5:
            rest = {k: v for k, v in schema.items() if k != "description"}
            schema = {"description": schema["description"], **rest}
        elif x > 0.75 and not p.required and p.kind == "int":
            schema = {**schema, "default": 10}
        elif x > 0.72 and p.choices:
            schema = {
                "type": "string",
                "enum": list(p.choices),
                **({"description": schema["description"]} if "description" in schema else {}),
            }
        properties[p.name] = schema
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    required = [p.name for p in tool.params if p.required]
    if required or rng.random() < 0.7:
        parameters["required"] = required
    if x > 0.88:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.params or rng.random() < 0.7:
        function["parameters"] = parameters
    if x > 0.95:
        function["strict"] = True
    if 0.3 < x < 0.33:
        function = dict(sorted(function.items()))
    return {"type": "function", "function": function}
