"""Says whether the branches of `oneOf` exclude each other; then `anyOf` admits exactly the same.

Two branches are told apart by their types, by the values that they list (`const`, `enum`), or by a
property that one of them requires: the other lists other values for it, or may not have it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lingflash.structured.references import pointed_to

# Branches are compared in pairs; more than this many say nothing of each other.
MAX_BRANCHES = 300
_MAX_STEPS = 16  # of references, and of properties within properties

_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))
_Values = frozenset[str]


def are_disjoint(branches: Any, root: Mapping[str, Any]) -> bool:
    """Whether no value can satisfy two of the branches.

    Args:
        branches: of `oneOf`.
        root: the schema that `$ref` counts from.
    """
    if not isinstance(branches, list) or len(branches) > MAX_BRANCHES:
        return False
    found = [_resolve(branch, root) for branch in branches]
    return all(
        _exclude(one, other, root, _MAX_STEPS)
        for i, one in enumerate(found)
        for other in found[i + 1 :]
    )


def _resolve(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(_MAX_STEPS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        # What stands beside a reference only excludes more.
        schema = pointed_to(schema["$ref"], root)
    return schema


def _exclude(one: Any, other: Any, root: Mapping[str, Any], steps: int) -> bool:
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping) or not steps:
        return False
    for schema, against in ((one, other), (other, one)):
        for key in ("anyOf", "oneOf"):
            parts = schema.get(key)
            if isinstance(parts, list) and all(
                _exclude(_resolve(part, root), against, root, steps - 1) for part in parts
            ):
                return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not values & others
    types, other_types = _types(one, values), _types(other, others)
    if not types & other_types:
        return True
    if types != {"object"} and other_types != {"object"}:
        return False
    return any(
        _differ_in(name, one, other, root, steps)
        for name in dict.fromkeys([*_required(one), *_required(other)])
    )


def _differ_in(
    name: str, one: Mapping[str, Any], other: Mapping[str, Any], root: Mapping[str, Any], steps: int
) -> bool:
    """Whether no object with this property, which one of the two requires, satisfies both."""
    return _exclude(_property(one, name, root), _property(other, name, root), root, steps - 1)


def _property(schema: Mapping[str, Any], name: str, root: Mapping[str, Any]) -> Any:
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        return _resolve(properties[name], root)
    if "patternProperties" in schema:
        return True
    return schema.get("additionalProperties", True)


def _required(schema: Mapping[str, Any]) -> list[str]:
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _values(schema: Mapping[str, Any]) -> _Values | None:
    """The only values that a schema admits, each in one spelling; None if it lists none."""
    if "const" in schema:
        return frozenset((_spelling(schema["const"]),))
    if isinstance(schema.get("enum"), list):
        return frozenset(map(_spelling, schema["enum"]))
    return None


def _types(schema: Mapping[str, Any], values: _Values | None) -> frozenset[str]:
    if values is not None:
        return frozenset(_type_of(json.loads(value)) for value in values)
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list):
        return _TYPES
    # Every integer is a number, and some numbers are integers.
    return frozenset("number" if name == "integer" else str(name) for name in names)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _spelling(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """The same value with 1.0 as 1: JSON Schema has one kind of number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value
