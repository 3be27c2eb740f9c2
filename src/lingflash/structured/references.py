"""What `$ref` refers to, within its schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Keywords whose schemas are about the same value as the schema around them.
_SAME_VALUE = ("anyOf", "oneOf", "allOf")


def is_local(reference: Any) -> bool:
    """Whether `$ref` points into its own schema."""
    return isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))


def pointed_to(reference: Any, root: Mapping[str, Any]) -> Any:
    """What "#/..." refers to; None if there is nothing."""
    if reference == "#":
        return root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    place: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, Mapping) and key in place:
            place = place[key]
        else:
            return None
    return place


def circular_references(root: Mapping[str, Any]) -> set[int]:
    """Find references that lead back to themselves without a step into the value.

    They say nothing, and no answer would follow them.

    Args:
        root: the whole schema; what it holds must live as long as the ids are used.

    Returns:
        `id` of the schemas that hold such a `$ref`.
    """
    circular: set[int] = set()
    done: set[int] = set()
    for start in _schemas(root):
        if id(start) in done:
            continue
        # Depth first, without Python's own stack: a chain may be as long as the schema.
        path = {id(start)}
        stack = [(start, _neighbours(start, root))]
        while stack:
            schema, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                path.discard(id(schema))
                done.add(id(schema))
            elif id(following) in path:
                circular.add(id(schema))
            elif id(following) not in done:
                path.add(id(following))
                stack.append((following, _neighbours(following, root)))
    return circular


def _neighbours(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Schemas about the same value, the one referred to last."""
    for key in _SAME_VALUE:
        parts = schema.get(key)
        if isinstance(parts, list):
            yield from (part for part in parts if isinstance(part, Mapping))
    target = pointed_to(schema.get("$ref"), root)
    if isinstance(target, Mapping):
        yield target


def _schemas(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All objects of a schema, those that are no schemas too."""
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
