"""Reads single fields of Connect messages, which have no schema of ours."""

from __future__ import annotations

from typing import Any

from lingflash.core.errors import refuse


def text(message: dict[str, Any], name: str, default: str | None = None) -> str:
    """A field that is a string.

    Raises:
        InvalidRequestError: it is missing without a default, or something else.
    """
    value = message.get(name, default)
    if not isinstance(value, str):
        refuse(name, "must be a string")
    if "\0" in value:
        refuse(name, "holds a zero byte")
    return value


def path_of(message: dict[str, Any], name: str = "path") -> str:
    """A field that is a path.

    Raises:
        InvalidRequestError: it is none, or empty, or too long.
    """
    value = text(message, name)
    if not 0 < len(value.encode("utf-8", "surrogatepass")) < 4096:
        refuse(name, "must have 1 to 4095 bytes")
    return value


def flag(message: dict[str, Any], name: str, default: bool = False) -> bool:
    """A field that is true or false."""
    value = message.get(name, default)
    if not isinstance(value, bool):
        refuse(name, "must be true or false")
    return value


def number(message: dict[str, Any], name: str, default: int, most: int) -> int:
    """A field that is a whole number, not negative; JSON's mapping may write it as a string."""
    value = message.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        refuse(name, f"must be a number from 0 to {most}")
    return value


def child(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A field that is an object; an empty one if it is not there."""
    value = message.get(name) or {}
    if not isinstance(value, dict):
        refuse(name, "must be an object")
    return value


def texts(message: dict[str, Any], name: str) -> list[str]:
    """A field that is a list of strings."""
    value = message.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        refuse(name, "must be a list of strings")
    return value


def text_map(message: dict[str, Any], name: str) -> dict[str, str]:
    """A field that is an object of strings."""
    value = child(message, name)
    if not all(isinstance(each, str) for each in value.values()):
        refuse(name, "must be an object of strings")
    return value
