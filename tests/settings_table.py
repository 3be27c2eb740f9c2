"""The tables of settings in the docs, made from the fields; a test compares them."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from lingflash.core.settings import settings_of


def settings_table(*classes: Any) -> str:
    """A row for each setting of these classes, in Markdown."""
    rows = ["| flag | variable | default | what it is |", "|---|---|---|---|"]
    for each in (each for cls in classes for each in settings_of(cls).values()):
        flag, default = f"`{each.flag}`", each.default
        if each.type in (bool, bool | None):
            flag += f", `--no{each.flag[1:]}`" if default is not False else ""
            shown = {None: "", True: "on", False: "off"}[default]
        elif default is None or default is MISSING or isinstance(default, tuple):
            shown = ""
        else:
            shown = f"`{each.as_typed(default)}`"
        rows.append(f"| {flag} | `{each.variable}` | {shown} | {each.help} |")
    return "\n".join(rows)


def keys_table(name: str, cls: Any) -> str:
    """A table of a TOML file: its heading and a row for each key."""
    rows = [f"### `{name}`", "| key | default | what it is |", "|---|---|---|"]
    for each in settings_of(cls).values():
        rows.append(f"| `{each.name}` | {_default_of_key(each.default)} | {each.help} |")
    return "\n".join(rows)


def _default_of_key(default: Any) -> str:
    if default is MISSING:
        return "needed"
    if default is None or default in ((), ""):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{', '.join(default)}`" if isinstance(default, tuple) else f"`{default}`"
