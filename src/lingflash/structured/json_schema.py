"""Checks a client's JSON Schema and brings it into the form that is compiled.

llguidance refuses what it cannot enforce. Here is what it would pass over or pay too much for:
sizes, references to other documents, options of its own. Two things are decided here as well:

- Numbers of items and characters are bounded; a schema that asks for a million of anything would
  only end in an answer that is cut off.
- An object with `properties` that says nothing of others gets no others, and an integer without
  bounds stays within 53 bits. That is a part of what the schema admits, and what whoever writes it
  means; a small model would go on inventing keys and digits. Schemas that combine parts (allOf,
  or keywords beside anyOf, oneOf or $ref) stay as they are, since that could leave nothing, and
  so does an object that requires a property which it does not list.

`oneOf` whose branches exclude each other is compiled as `anyOf`: it admits the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from lingflash.core.errors import InvalidRequestError
from lingflash.structured.one_of import are_disjoint
from lingflash.structured.references import circular_references, is_local
from lingflash.structured.regex_size import check_regex

MAX_SCHEMA_CHARS = 256 * 1024
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_COUNT = 100_000

# The form that the model writes JSON in; free white space would let it go on for ever.
_GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

COUNTS = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
)
_COMBINING = frozenset(("anyOf", "oneOf", "$ref"))
_DESCRIBING = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$defs", "definitions", "discriminator"),
    )
)
HOLDS_VALUES = frozenset(("enum", "const", "default", "examples", "example"))
HOLDS_NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions"))
# Dates that exist: llguidance's own patterns admit the year 0 and 30 February.
_DAY = (
    r"([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-"
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_DAY = r"[0-9]{2}(0[48]|[2468][048]|[13579][26])-02-29"
_DATE = f"({_DAY}|{_LEAP_DAY})"
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_FORMATS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}"}
_BOUNDED_BY = frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const")
)
_MAX_INTEGER = 2**53 - 1
_CLOSED_BY = frozenset(("additionalProperties", "patternProperties", "unevaluatedProperties"))


def prepare_schema(schema: Any, where: str) -> dict[str, Any]:
    """Check a schema; return a copy to be compiled.

    Raises:
        InvalidRequestError: it is no schema, or asks for what cannot be enforced; the message names
            the keyword.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        refuse(where, f"is {type(schema).__name__}; a JSON Schema object is needed")
    checker = _Checker(where, schema)
    checker.check(schema, "", 0)
    result = _copy(schema, schema, close=not checker.combines)
    result.pop("$schema", None)
    result.pop("$id", None)
    result["x-guidance"] = _GUIDANCE
    return result


class _Checker:
    """Walks a schema's keywords, leaving out the values and names in it."""

    def __init__(self, where: str, root: Mapping[str, Any]) -> None:
        self._where = where
        self._circular = circular_references(root)
        self._num_nodes = 0
        self.combines = False

    def check(self, schema: Any, path: str, depth: int) -> None:
        self._num_nodes += 1
        refuse_size(self._where, depth, self._num_nodes, path)
        if isinstance(schema, list):
            for i, part in enumerate(schema):
                self.check(part, f"{path}[{i}]", depth + 1)
        if not isinstance(schema, Mapping):
            return
        self._keywords(schema, path)
        for key, value in schema.items():
            here = f"{path}.{key}" if path else str(key)
            if key in HOLDS_VALUES:
                self._num_nodes += len(value) if isinstance(value, list) else 1
            elif key in HOLDS_NAMES and isinstance(value, Mapping):
                for name, part in value.items():
                    self.check(part, f"{here}.{name}", depth + 1)
            else:
                self.check(value, here, depth + 1)

    def _keywords(self, schema: Mapping[str, Any], path: str) -> None:
        at = f" at {path[:200]}" if path else ""
        if "x-guidance" in schema:
            refuse(self._where, f"has the keyword 'x-guidance'{at}; it is not supported")
        if path and "$id" in schema:
            refuse(self._where, f"has the keyword '$id'{at}; only '#/...' references are supported")
        if isinstance(schema.get("pattern"), str):
            check_regex(schema["pattern"], self._where, f"the keyword 'pattern'{at}")
        reference = schema.get("$ref")
        if reference is not None and not is_local(reference):
            refuse(
                self._where,
                f"has the keyword '$ref'{at} with {reference!r}; only references within the schema "
                "('#/$defs/...') are supported",
            )
        if id(schema) in self._circular:
            refuse(self._where, f"has the keyword '$ref'{at} that leads back to itself")
        for key in COUNTS & schema.keys():
            value = schema[key]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= MAX_COUNT:
                refuse(
                    self._where,
                    f"has the keyword {key!r}{at} with {value!r}; allowed: 0 to {MAX_COUNT}",
                )
        combining = _COMBINING & schema.keys()
        others = schema.keys() - _DESCRIBING - combining - {"$schema", "$id"}
        self.combines |= "allOf" in schema or bool(combining and others) or len(combining) > 1


def _copy(schema: Any, root: Mapping[str, Any], *, close: bool) -> Any:
    if isinstance(schema, list):
        return [_copy(part, root, close=close) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in HOLDS_VALUES:
            result[key] = value
        elif key in HOLDS_NAMES and isinstance(value, Mapping):
            result[key] = {name: _copy(part, root, close=close) for name, part in value.items()}
        elif key == "uniqueItems" and value is False:
            continue  # says nothing
        else:
            result[key] = _copy(value, root, close=close)
    if close and _may_be_closed(schema):
        result["additionalProperties"] = False
    if "oneOf" in schema and "anyOf" not in schema and are_disjoint(schema["oneOf"], root):
        result["anyOf"] = result.pop("oneOf")
    if schema.get("format") in _FORMATS and "pattern" not in schema:
        result["pattern"] = f"^{_FORMATS[result.pop('format')]}$"
    if close and schema.get("type") == "integer" and not (_BOUNDED_BY & schema.keys()):
        result["minimum"], result["maximum"] = -_MAX_INTEGER, _MAX_INTEGER
    return result


def _may_be_closed(schema: Mapping[str, Any]) -> bool:
    """Whether an object lists properties, says nothing of others, and requires none of those."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or _CLOSED_BY & schema.keys():
        return False
    return not isinstance(required, list) or all(
        isinstance(name, str) and name in properties for name in required
    )


def refuse_size(where: str, depth: int, num_nodes: int, path: str | None = None) -> None:
    """Raise InvalidRequestError for a schema that is too deep or has too many parts."""
    if depth > MAX_DEPTH:
        refuse(
            where[:200],
            f"is nested over {MAX_DEPTH} levels" + (f" at {path[:100]}..." if path else ""),
        )
    if num_nodes > MAX_NODES:
        refuse(where[:200], f"has over {MAX_NODES} parts; make it smaller")


def refuse_long(text: str, where: str) -> None:
    """Raise InvalidRequestError for a grammar of too many characters."""
    if len(text) > MAX_SCHEMA_CHARS:
        refuse(where, f"has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are allowed")


def to_json(value: Any) -> str:
    """JSON in the one form."""
    return json.dumps(value, ensure_ascii=False)


def refuse(where: str, problem: str) -> NoReturn:
    """Raise InvalidRequestError for a field."""
    raise InvalidRequestError(f"{where} {problem}.", param=where)
