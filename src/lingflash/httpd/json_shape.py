"""How deep and how large a JSON text is, told from its bytes, before anything is made of it.

A decoded body takes up to fifty times its bytes, so one that is too large must be known before.
Strings are cut out first; what they hold is not the text's shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOKEN = re.compile(_STRING.pattern + rb"|[][{}]", re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DELTA = tuple({ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}.get(i, 0) for i in range(256))


@dataclass(frozen=True, slots=True)
class Shape:
    """Bounds of what a JSON text holds.

    Args:
        depth: of objects and arrays within each other.
        containers: objects and arrays.
        values: separated by commas, those of objects with their names.
        strings: names included.
    """

    depth: int
    containers: int
    values: int
    strings: int


def exceeded(body: bytes, limits: Shape) -> str | None:
    """What of a text is over its limits, or None; a text that is no JSON may pass.

    Takes at most a few nanoseconds a byte and as much memory as the text.
    """
    if body.count(b'"') - body.count(b'\\"') > 2 * limits.strings:
        return f"more than {limits.strings} strings"
    num_open = body.count(b"{") + body.count(b"[")
    if num_open <= min(limits.depth, limits.containers) and body.count(b",") <= limits.values:
        return None
    outside = _STRING.sub(b"", body)
    if outside.count(b",") > limits.values:
        return f"more than {limits.values} values"
    brackets = outside.translate(None, _ALL_BUT_BRACKETS)
    if len(brackets) > 2 * limits.containers:
        return f"more than {limits.containers} objects and arrays"
    if max(accumulate(map(_DELTA.__getitem__, brackets)), default=0) > limits.depth:
        return f"more than {limits.depth} levels within each other"
    return None


def deep_field(body: bytes, depth: int) -> str | None:
    """The field of the outermost object that is deeper than this, if one is."""
    level = 0
    name = None
    for token in _TOKEN.finditer(body):
        text = token.group()
        if text.startswith(b'"'):
            if level == 1:
                name = text[1:-1].decode("utf-8", "replace")
        else:
            level += _DELTA[text[0]]
            if level > depth + 1:
                return name
    return None
