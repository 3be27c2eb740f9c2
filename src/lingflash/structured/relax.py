"""Takes out of a tool's schema what cannot be enforced, and says what that was.

A tool that is not `strict` asks for arguments of a form, not for a promise: what can be enforced
is, and the rest is left to the model, which reads the whole schema in its prompt. Nothing goes
silently: each keyword that was taken out is named with its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingflash.core.errors import InvalidRequestError
from lingflash.structured.json_schema import (
    COUNTS,
    HOLDS_NAMES,
    HOLDS_VALUES,
    MAX_COUNT,
    refuse_size,
)
from lingflash.structured.one_of import are_disjoint
from lingflash.structured.references import circular_references, is_local, pointed_to
from lingflash.structured.regex_size import check_regex, has_unsupported_parts

# What llguidance enforces of strings, with the dates that `json_schema` writes out.
ENFORCED_FORMATS = frozenset(
    ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
# Keywords that it has no way to follow.
_NOT_ENFORCED = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames"),
        *("uniqueItems", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$dynamicAnchor"),
        *("$recursiveRef", "$recursiveAnchor", "$vocabulary", "x-guidance"),
    )
)
_TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
# Multiples of a number are counted by its remainders: one state, and some microseconds, each.
MAX_MULTIPLE = 100_000
# Where keywords that look well fail together, these are left out first, then the next as well.
_SPELLING = frozenset(("pattern", "patternProperties", "format"))
_BOUNDS = frozenset(("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
RUNGS = (_SPELLING, _SPELLING | _BOUNDS | COUNTS)


def relax_schema(schema: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Leave out what cannot be enforced.

    Args:
        schema: of a tool's arguments.
        where: the field that it came in; paths begin with it.

    Returns:
        What can be enforced, and the paths of the keywords that were left out.

    Raises:
        InvalidRequestError: the schema is too large or too deep to be read at all.
    """
    relaxer = _Relaxer(schema, _NOT_ENFORCED)
    return relaxer.schema(schema, where, 0), relaxer.dropped


def drop_keywords(
    schema: Mapping[str, Any], where: str, keywords: frozenset[str]
) -> tuple[dict[str, Any], list[str]]:
    """Leave some keywords out, wherever they stand; the rest as relax_schema does."""
    relaxer = _Relaxer(schema, keywords | _NOT_ENFORCED)
    return relaxer.schema(schema, where, 0), relaxer.dropped


class _Relaxer:
    def __init__(self, root: Mapping[str, Any], keywords: frozenset[str]) -> None:
        self._root = root
        self._circular = circular_references(root)
        self._keywords = keywords
        self._num_nodes = 0
        self.dropped: list[str] = []

    def any(self, value: Any, path: str, depth: int) -> Any:
        """A schema, a list of them, or what is neither and stays."""
        if isinstance(value, Mapping):
            return self.schema(value, path, depth)
        if isinstance(value, list):
            return [self.any(part, f"{path}[{i}]", depth + 1) for i, part in enumerate(value)]
        return value

    def schema(self, schema: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        self._num_nodes += 1
        refuse_size(path, depth, self._num_nodes)
        result: dict[str, Any] = {}
        for key, value in schema.items():
            here = f"{path}.{key}"
            if key in self._keywords or not self._is_enforceable(key, value, schema):
                if value is not False or key != "uniqueItems":  # which says nothing
                    self.dropped.append(here)
            elif key in HOLDS_VALUES:
                result[key] = value
            elif key in HOLDS_NAMES and isinstance(value, Mapping):
                result[key] = {
                    name: self.any(part, f"{here}.{name}", depth + 1)
                    for name, part in value.items()
                }
            else:
                result[key] = self.any(value, here, depth + 1)
        self._one_of(schema, result, path)
        self._required(schema, result, path)
        return result

    def _is_enforceable(self, key: str, value: Any, schema: Mapping[str, Any]) -> bool:
        match key:
            case "format":
                # On numbers it says how they are stored, and nothing of how they are written.
                return value in ENFORCED_FORMATS or schema.get("type") in ("integer", "number")
            case "pattern":
                return isinstance(value, str) and _is_usable(value)
            case "patternProperties":
                return isinstance(value, Mapping) and all(map(_is_usable, value))
            case "$ref":
                return (
                    is_local(value)
                    and pointed_to(value, self._root) is not None
                    and id(schema) not in self._circular
                )
            case "$id" | "$schema":
                return schema is self._root
            case "type":
                names = value if isinstance(value, list) else [value]
                return bool(names) and all(
                    isinstance(name, str) and name in _TYPES for name in names
                )
            case "multipleOf":
                return _is_number(value) and 0 < value <= MAX_MULTIPLE
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                return _is_number(value)
            case "enum" | "anyOf" | "allOf" | "oneOf" | "prefixItems":
                return isinstance(value, list) and bool(value)
            case "items":
                return isinstance(value, Mapping | bool)
            case "properties":
                return isinstance(value, Mapping)
        return key not in COUNTS or (_is_number(value) and 0 <= value <= MAX_COUNT)

    def _one_of(self, schema: Mapping[str, Any], result: dict[str, Any], path: str) -> None:
        """Of branches that overlap any may be satisfied, not one alone."""
        branches = result.get("oneOf")
        if branches is None or are_disjoint(schema["oneOf"], self._root):
            return
        del result["oneOf"]
        self.dropped.append(f"{path}.oneOf")
        if "anyOf" not in result:
            result["anyOf"] = branches

    def _required(self, schema: Mapping[str, Any], result: dict[str, Any], path: str) -> None:
        """Do without names that an object which admits no others does not list."""
        names = result.get("required")
        if names is None:
            return
        known = result.get("properties", {})
        is_closed = schema.get("additionalProperties") is False and not result.get(
            "patternProperties"
        )
        ok = isinstance(names, list)
        kept = [
            name
            for name in (names if ok else ())
            if isinstance(name, str) and (not is_closed or name in known)
        ]
        if not ok or len(kept) < len(names):
            self.dropped.append(f"{path}.required")
        result["required"] = kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_usable(regex: str) -> bool:
    if has_unsupported_parts(regex):
        return False
    try:
        check_regex(regex, "")
    except InvalidRequestError:
        return False
    return True
