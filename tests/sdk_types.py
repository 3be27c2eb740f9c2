"""Values of the official clients' own types, generated from their annotations."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import typing_extensions

_WRAPPERS = (Required, typing_extensions.Required, typing_extensions.NotRequired)


def is_object(hint: Any) -> bool:
    """Whether it is a TypedDict."""
    return isinstance(hint, type) and hasattr(hint, "__total__")


def fields_of(cls: Any) -> dict[str, tuple[Any, bool]]:
    """A TypedDict's fields: type, and whether it must be there."""
    fields = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        is_required = get_origin(hint) in (Required, typing_extensions.Required)
        fields[name] = (_unwrapped(hint), is_required)
    return fields


def objects_in(hint: Any) -> Iterator[Any]:
    """The TypedDicts that a value of this type may be, or that a list of it may hold."""
    hint = _unwrapped(hint)
    if is_object(hint):
        yield hint
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from objects_in(part)


def value_of(hint: Any, depth: int = 0, *, full: bool = False) -> Any:
    """A filled value; objects have the fields that they must have, or all that there are."""
    hint = _unwrapped(hint)
    origin, args = get_origin(hint), get_args(hint)
    if is_object(hint):
        return {
            name: value_of(field, depth + 1, full=full)
            for name, (field, is_required) in fields_of(hint).items()
            if is_required or (full and depth < 3)
        }
    if origin is Literal:
        return args[0]
    if origin in (Union, types.UnionType):
        return value_of(next(arg for arg in args if arg is not type(None)), depth, full=full)
    if _is_list(hint):
        return [value_of(args[0], depth + 1, full=full)] if args and depth < 6 else []
    if _is_mapping(hint):
        return {"a": value_of(args[1], depth + 1, full=full)} if args else {"a": "x"}
    return {str: "x", int: 1, float: 0.5, bool: True, type(None): None}.get(hint, "x")


def empty_of(hint: Any) -> Any:
    """The empty value of this type, or None if it has none."""
    hint = _unwrapped(hint)
    if get_origin(hint) in (Union, types.UnionType):
        found = [empty_of(arg) for arg in get_args(hint)]
        return next((value for value in found if value is not None), None)
    if get_origin(hint) is Literal:
        return None
    if is_object(hint) or _is_mapping(hint):
        return {}
    if _is_list(hint):
        return []
    return "" if hint is str else None


def variants(cls: Any) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Objects of a TypedDict: without optional fields, and each of these null, empty and filled."""
    base = value_of(cls)
    yield None, base
    for name, (hint, is_required) in fields_of(cls).items():
        if not is_required:
            empty = empty_of(hint)
            for value in (None, empty, value_of(hint, full=True)):
                yield name, {**base, name: value}


def _unwrapped(hint: Any) -> Any:
    while get_origin(hint) in _WRAPPERS or hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    alias = getattr(hint, "__value__", None)
    return hint if alias is None else _unwrapped(alias)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    is_class = isinstance(origin, type) and not issubclass(origin, str | bytes)
    return is_class and (origin is Iterable or issubclass(origin, Sequence))


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Mapping)
