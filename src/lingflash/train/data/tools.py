"""Made-up function signatures: parameters of every JSON type, names in every style."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from lingflash.train.data.quantities import integer, number
from lingflash.train.data.tables import NAMES, POOLS, VERB_GROUPS, WORDINGS
from lingflash.train.data.values import KINDS
from lingflash.train.data.words import Words

# Kinds whose values hold spaces and may run into their surroundings.
LONG_KINDS = frozenset({"text", "title", "query", "address", "unicode"})
ENUMS = tuple((name, tuple(choices)) for name, choices in NAMES["enum"].items())
_KIND_NAMES = tuple(KINDS)
_KIND_WEIGHTS = tuple(
    {"word": 3, "text": 2, "title": 2, "city": 2, "person": 2, "random": 2, "id": 2}.get(k, 1)
    for k in _KIND_NAMES
)


@dataclass(slots=True)
class Param:
    """One parameter of a function.

    Args:
        kind: "str:<kind>", "int", "num", "bool", "enum", "list:<kind>", "list:int", "object" or
            "rows".
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
        text = rng.choice(WORDINGS["descriptions"]).format(label, words.word(rng))
    elif x < 0.8:
        # The description brings a name of its own, which requests may use too.
        other = words.word(rng) + (" " + words.word(rng) if rng.random() < 0.3 else "")
        labels.append(other)
        text = rng.choice(WORDINGS["renamed_descriptions"]).format(other, words.word(rng))
    else:
        text = rng.choice(bases) + ", " + words.word(rng) + " " + words.word(rng)
    return text[0].upper() + text[1:] + ("." if rng.random() < 0.25 else "")


def _draw_structure(
    rng: random.Random, words: Words, kind: str, style: str, random_names: float
) -> tuple[str, list[Param], dict[str, Any]]:
    """Draw an "object" or a list of such, "rows": name, fields and schema."""
    base = rng.choice(POOLS["object_names" if kind == "object" else "rows_names"])
    inner: set[str] = set()
    fields = [
        make_param(rng, words, inner, style, random_names, 1) for _ in range(rng.randint(2, 3))
    ]
    for f in fields:
        f.required = kind == "rows" or f.required
    shape = {"type": "object", "properties": {f.name: f.schema for f in fields}}
    if rng.random() < 0.5 or kind == "rows":
        shape["required"] = [f.name for f in fields if f.required]
    return base, fields, shape if kind == "object" else {"type": "array", "items": shape}


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
        taken: names in use; changed.
        random_names: probability of a name made of random words.
        depth: 1 inside an object, where only scalars are drawn.
    """
    x = rng.random()
    schema: dict[str, Any] = {}
    choices: tuple[str, ...] = ()
    preps: tuple[str, ...] = ()
    fields: list[Param] = []
    random_name = rng.random() < random_names
    bases: tuple[str, ...] = ("Value", "The value to use", "Option")
    if x < 0.52:
        kind_name = rng.choices(_KIND_NAMES, _KIND_WEIGHTS)[0]
        kind, base, schema["type"] = (
            "str:" + kind_name,
            rng.choice(KINDS[kind_name].names),
            "string",
        )
        preps, bases = KINDS[kind_name].preps, KINDS[kind_name].descriptions
    elif x < 0.66:
        kind, base, schema["type"] = "int", rng.choice(NAMES["integer"]), "integer"
        bases = ("How many", "Number", "Whole number", "Maximum number")
    elif x < 0.73:
        kind, base, schema["type"] = "num", rng.choice(NAMES["number"]), "number"
        bases = ("Amount", "Decimal number", "Value")
    elif x < 0.81:
        kind, base, schema["type"] = "bool", rng.choice(NAMES["boolean"]), "boolean"
        bases = ("Whether to do it", "Switch", "True or false")
    elif x < 0.91:
        kind = "enum"
        if random_name or rng.random() < 0.4:
            base = words.word(rng)
            choices = tuple(dict.fromkeys(words.word(rng) for _ in range(rng.randint(2, 5))))
        else:
            base, choices = rng.choice(ENUMS)
        schema["type"] = "string"
        bases = ("One of the choices", "Which kind", "Choice")
    elif depth or x < 0.96:
        item = (
            "int"
            if rng.random() < 0.25
            else rng.choice(
                ("word", "person", "email", "city", "random", "filename", "word", "title")
            )
        )
        kind = "list:" + item
        base = rng.choice(POOLS["list_names"])
        schema["type"], schema["items"] = (
            "array",
            {"type": "integer" if item == "int" else "string"},
        )
        bases = ("List of values", "The list", "All of them")
    else:
        kind = "object" if x < 0.985 else "rows"
        base, fields, schema = _draw_structure(rng, words, kind, style, random_names)
        bases = ("Details", "A structured value", "Settings")
    if random_name:
        base = words.word(rng) + (" " + words.word(rng) if rng.random() < 0.35 else "")
        if kind == "bool" and rng.random() < 0.5:
            base = rng.choice(("include ", "use ", "is ", "with ", "enable ")) + base
        preps = preps if rng.random() < 0.4 else ()
    elif rng.random() < 0.12:
        base = words.word(rng) + " " + base
    while (name := in_style(base.split(), style)) in taken:
        base += " " + words.word(rng)
    taken.add(name)
    label = base
    if kind == "bool":
        head, _, rest = base.partition(" ")
        if rest and head in ("include", "use", "is", "with", "enable"):
            label = rest
    labels = [label]
    if rng.random() < 0.8:
        schema["description"] = _describe(rng, words, labels, bases)
    if choices:
        schema["enum"] = list(choices)
    return Param(name, kind, schema, rng.random() < 0.62, labels, preps, choices, fields)


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
            return whole, POOLS["number_words"][whole - 1]
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


def make_tool(
    rng: random.Random, words: Words, random_names: float = 0.2, verb: int = -1, noun: str = ""
) -> Tool:
    """Draw a function signature.

    Args:
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
        filler = rng.choice(WORDINGS["fillers"]).format(w=extra[0], w2=extra[1])
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
