"""How a made-up request is worded in training; the held-out test uses other code."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

from lingflash.train.data.fillers import adverb, filler, lead, switch_phrase, value_phrase
from lingflash.train.data.tables import VERB_GROUPS, WORDINGS
from lingflash.train.data.tools import LONG_KINDS, Param, Tool, draw_value
from lingflash.train.data.words import Words

# A chosen argument: its parameter, JSON value, and surface text (inner list for objects and rows).
Chosen = tuple[Param, Any, Any]


def quoted(rng: random.Random, text: str, always: bool = False) -> str:
    """Put a text into quotes of some kind, mostly, unless it is sure to be clear without."""
    if '"' in text:
        return text
    x = rng.random()
    if not always and x < 0.15:
        return text
    if x < 0.75 or "'" in text:
        return f'"{text}"'
    return f"'{text}'" if x < 0.95 else f"“{text}”"


def is_long(param: Param, surface: str) -> bool:
    """Tell whether a value may run into the words around it."""
    return " " in surface and param.kind in {"str:" + k for k in LONG_KINDS}


def scalar_phrase(
    rng: random.Random, param: Param, value: Any, surface: str, last: bool, clash: bool
) -> str:
    """Word one argument.

    Args:
        last: nothing follows, so that an unquoted text is clear.
        clash: another argument is of the same kind, so that a label is needed.
    """
    label = rng.choice(param.labels)
    kind = param.kind
    if kind == "bool" and rng.random() < 0.5:
        return switch_phrase(rng, label, bool(value))
    if kind == "bool":
        return rng.choice(WORDINGS["true" if value else "false"]).format(l=label)
    if kind == "enum" and not clash and rng.random() < 0.35:
        return rng.choice(WORDINGS["choice"]).format(l=label, s=surface)
    if kind in ("int", "num") and rng.random() < 0.3:
        return rng.choice(WORDINGS["numbered"]).format(l=label, s=surface)
    if is_long(param, surface) or (kind.startswith("str:") and rng.random() < 0.12):
        if not (last and rng.random() < 0.35 and surface[-1] not in ".?!,"):
            surface = quoted(rng, surface, always="," in surface or surface[-1] in ".?!")
        elif rng.random() < 0.5:
            return f"{label}: {surface}"
    if param.preps and not clash and rng.random() < 0.45:
        prep = rng.choice(param.preps)
        return f"{prep} {surface}"
    if rng.random() < 0.5:
        if is_long(param, surface) and surface[0] not in "\"'“":
            surface = quoted(rng, surface, always=True)
        return value_phrase(rng, label, surface)
    return rng.choice(WORDINGS["labelled"]).format(l=label, s=surface)


def choose(rng: random.Random, words: Words, param: Param) -> Chosen:
    """Draw a value for any parameter, objects and rows included."""
    if param.kind == "object":
        inner = [choose(rng, words, f) for f in param.fields if f.required or rng.random() < 0.5]
        inner = inner or [choose(rng, words, param.fields[0])]
        return param, {c[0].name: c[1] for c in inner}, inner
    if param.kind == "rows":
        rows = [[choose(rng, words, f) for f in param.fields] for _ in range(rng.randint(1, 3))]
        return param, [{c[0].name: c[1] for c in row} for row in rows], rows
    value, surface = draw_value(rng, words, param)
    return param, value, surface


def choose_arguments(
    rng: random.Random, words: Words, tool: Tool, optional: float = 0.45
) -> list[Chosen]:
    """Draw arguments for a call: the required ones, and some of the optional."""
    if rng.random() < 0.15:
        optional = 0.0
    return [choose(rng, words, p) for p in tool.params if p.required or rng.random() < optional]


def slot_phrase(rng: random.Random, chosen: Chosen, last: bool, clash: bool) -> str:
    """Word one argument of any type."""
    param, value, surface = chosen
    if param.kind == "object":
        parts = [slot_phrase(rng, c, False, True) for c in surface]
        label = rng.choice(param.labels)
        inner = rng.choice((", ", " and ", ", ")).join(parts)
        return rng.choice(
            ("{l}: {i}", "{l} with {i}", "the {l} has {i}", "{l} ({i})", "and as {l} {i}")
        ).format(l=label, i=inner)
    if param.kind == "rows":
        rows = [", ".join(slot_phrase(rng, c, False, True) for c in row) for row in surface]
        return f"{rng.choice(param.labels)}: " + "; ".join(rows)
    return scalar_phrase(rng, param, value, surface, last, clash)


def _nameless(tool: Tool, arguments: list[Chosen]) -> Chosen | None:
    """Return the argument that needs no label because no other parameter could take its value."""
    texts = [p for p in tool.params if p.kind.startswith(("str:", "list:", "object", "rows"))]
    numbers = [p for p in tool.params if p.kind in ("int", "num")]
    for chosen in arguments:
        param = chosen[0]
        if (texts == [param] and param.kind.startswith("str:")) or (
            numbers == [param] and not texts
        ):
            return chosen
    return None


@cache
def _plain_words() -> tuple[str, ...]:
    return Words(held_out=False).plain


def _noise(rng: random.Random) -> list[str]:
    """Draw words without meaning here: real requests are full of them."""
    x = rng.random()
    return [rng.choice(_plain_words()) for _ in range(0 if x < 0.4 else 1 if x < 0.8 else 2)]


def _words_of(tools: list[Tool]) -> set[str]:
    text = " ".join(t.name + " " + t.description for t in tools)
    return set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r" \1", text).lower()))


def core_phrase(rng: random.Random, tool: Tool, rivals: list[Tool]) -> tuple[str, bool]:
    """Word what the tool does. Returns the text and whether it is a question by itself."""
    rival_words = _words_of(rivals)
    noun = rng.choice(tool.nouns)
    if not set(noun.split()) - rival_words:
        noun = tool.nouns[0]
    clear = bool(set(noun.split()) - rival_words)
    if tool.verb < 0:
        plain = tool.description.rstrip(".").lower() if tool.description else noun
        return rng.choice(("use {n}", "call {n}", "{o}", "{d}", "{d}")).format(
            n=tool.name, o=noun, d=plain
        ), True
    if rng.random() < 0.12 and not noun.endswith("s"):
        noun += "s"
    group = VERB_GROUPS[tool.verb]
    if (tool.verb < 3 and rng.random() < 0.5) or rng.random() < 0.08:
        return rng.choice(WORDINGS["askers"]).format(o=noun), True
    if rng.random() < 0.04:
        return rng.choice(("use {n}", "call {n}", "run {n}", "{n}", "invoke the {n} tool")).format(
            n=tool.name
        ), True
    verb = rng.choice(group).replace("-", " ")
    x = rng.random()
    verbs = {w for v in group for w in v.split("-")}
    if x < 0.06 and not verbs & rival_words:  # nothing but the verb
        return verb + rng.choice(("", "", " it", " this", " one", " something")), False
    if x < 0.2 and clear:  # the verb is no help
        verb = filler(rng, 1, 2)
        if rng.random() < 0.5:
            verb = "-".join(rng.choice(_plain_words()) for _ in range(rng.choice((1, 1, 2))))
            verb += rng.choice(("", "", " " + filler(rng, 1, 1)))
        return f"{verb} {rng.choice(WORDINGS['determiners'])}{noun}", False
    if " " in verb and rng.random() < 0.5:
        head, tail = verb.split(" ", 1)
        return f"{head} {rng.choice(WORDINGS['determiners'])}{noun} {tail}", False
    return f"{verb} {rng.choice(WORDINGS['determiners'])}{noun}", False


def sentence(rng: random.Random, text: str) -> str:
    """Capitalise the start, mostly."""
    return text[0].upper() + text[1:] if text and rng.random() < 0.75 else text


def request(
    rng: random.Random, tool: Tool, arguments: list[Chosen], rivals: list[Tool], bare: bool = False
) -> str:
    """Word a request for one call.

    Args:
        rivals: the other tools, from which the request must tell it apart.
        bare: leave out openers and closers, to join requests.
    """
    if tool.templates and rng.random() < 0.85:
        text = fill_template(rng, tool, arguments)
        if text:
            return text
    core, asks = core_phrase(rng, tool, rivals)
    opener = "" if bare or asks else rng.choice(WORDINGS["openers"])
    if not asks and rng.random() < 0.4:
        opener, core = "", lead(rng, core, _noise(rng))
    closer = "" if bare else rng.choice(WORDINGS["closers"])
    slots = list(arguments)
    plain = _nameless(tool, arguments)
    if plain and rng.random() < 0.3:
        surface = str(plain[2])
        if is_long(plain[0], surface):
            surface = quoted(rng, surface, always=True)
        slots = [c for c in slots if c[0] is not plain[0]]
        if (
            tool.verb >= 0
            and rng.random() < 0.2
            and not {w for v in VERB_GROUPS[tool.verb] for w in v.split("-")} & _words_of(rivals)
        ):
            core = opener + rng.choice(VERB_GROUPS[tool.verb]).replace("-", " ")
            opener = ""
        core = (
            f"{core} {surface}"
            if rng.random() < 0.8 or asks
            else f"{surface}{rng.choice((':', ',', '', ' -'))} {core}"
        )
    if rng.random() < 0.5:
        rng.shuffle(slots)
    x = rng.random()
    first = x < 0.18 and slots
    if slots and not plain and rng.random() < 0.15:
        switches = [c for c in slots if c[0].kind == "bool" and c[1] and " " not in c[0].labels[0]]
        if switches:  # the verb's own adverb, or the switch as a verb: force it
            label = switches[0][0].labels[0]
            slots = [c for c in slots if c is not switches[0]]
            how = adverb(label) if rng.random() < 0.6 else label
            core = f"{how} {core}" if rng.random() < 0.6 else f"{core} {how}"
    kinds = [c[0].kind for c in slots]
    parts = [
        slot_phrase(
            rng,
            c,
            i == len(slots) - 1 and not first and closer in ("", "."),
            kinds.count(c[0].kind) > 1,
        )
        for i, c in enumerate(slots)
    ]
    if not parts:
        return sentence(rng, opener + core + closer)
    joined = _join(rng, parts)
    if x > 0.96 and len(parts) > 1 and not rivals:  # only the arguments
        return sentence(rng, joined + closer)
    if first:
        if rng.random() < 0.5:
            joined = filler(rng, 1, 6) + rng.choice((": ", ": ", ", ", " ", " - ")) + joined
        if rng.random() < 0.4:  # a sentence of its own, and yet one request
            end = rng.choice((". ", ". ", "! ", "? ", "\n", ".\n"))
            return sentence(rng, joined) + end + sentence(rng, opener + core) + closer
        return sentence(
            rng,
            joined
            + rng.choice((": ", ", ", " - ", ". ", "; ", ", so ", ", then "))
            + sentence(rng, opener + core)
            + closer,
        )
    if x < 0.3 and len(parts) > 1:  # some before, some after
        return sentence(rng, f"{parts[0]}, {opener}{core} {_join(rng, parts[1:])}{closer}")
    if x < 0.5:  # a second sentence
        if rng.random() < 0.3:
            joined = filler(rng, 1, 5) + rng.choice((": ", ", ", " ")) + joined
        rest = [sentence(rng, p) for p in parts] if rng.random() < 0.3 else [sentence(rng, joined)]
        return (
            sentence(rng, opener + core)
            + rng.choice((". ", ". ", "? ", "! ", "\n", ": "))
            + ". ".join(rest)
            + ("." if closer == "." else "")
        )
    if x < 0.56:
        return (
            sentence(rng, opener + core)
            + ":\n"
            + "\n".join(rng.choice(("- ", "", "* ")) + p for p in parts)
        )
    glue = rng.choice((" ", " ", " ", ", ", " with ", ": ", " - ", " and "))
    return sentence(rng, opener + core + glue + joined + closer)


def _join(rng: random.Random, parts: list[str]) -> str:
    x = rng.random()
    if len(parts) == 1:
        return parts[0]
    if x < 0.1:
        return (", " + filler(rng, 1, 2) + " ").join(parts)
    if x < 0.5:
        return (
            ", ".join(parts[:-1])
            + rng.choice((" and ", ", ", ", and ", " with ", ", with "))
            + parts[-1]
        )
    if x < 0.7:
        return ", ".join(parts)
    if x < 0.85:
        return " and ".join(parts)
    if x < 0.93:
        return " ".join(parts)
    return "; ".join(parts)


def fill_template(rng: random.Random, tool: Tool, arguments: list[Chosen]) -> str:
    """Fill one of the tool's own templates, or return "" if none takes exactly these arguments."""
    given = {c[0].name: c for c in arguments}
    keys = {p.name: f"{{{i}}}" for i, p in enumerate(tool.params)}
    templates = list(tool.templates)
    rng.shuffle(templates)
    for template in templates:
        pieces = template.replace("]", "[").split("[")
        kept = [
            piece
            for i, piece in enumerate(pieces)
            if i % 2 == 0 or any(keys[name] in piece for name in given)
        ]
        text = "".join(kept)
        if text.count("{") != len(given) or not all(keys[name] in text for name in given):
            continue
        for name, (param, _value, surface) in given.items():
            shown = str(surface)
            at = text.index(keys[name])
            at_end = at + len(keys[name]) >= len(text.rstrip("?.!"))
            if is_long(param, shown) and text[at - 1 : at] != '"' and not at_end:
                shown = quoted(rng, shown)
            elif at_end and shown[-1] in ".?!" and text[-1] in ".?!":
                shown = quoted(rng, shown, always=True)
            text = text.replace(keys[name], shown, 1)
        if rng.random() < 0.15:
            text = (
                rng.choice(("Hi! ", "Hello, ", "Please ", "Hey, ", "Quick question: ", "Ok, "))
                + text
            )
        elif rng.random() < 0.15:
            text = text[0].lower() + text[1:]
        if rng.random() < 0.15 and text[-1] in ".?":
            text = text[:-1]
        return text
    return ""
