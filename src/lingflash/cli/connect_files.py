"""Puts a program's settings into its files, beside what its user has there."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingflash.cli.connect_program import Program, Settings
from lingflash.core.errors import ConfigError


@dataclass(slots=True)
class _Change:
    path: Path
    old: str
    new: str
    # Names of settings that are there already, with another value.
    replaced: list[str] = field(default_factory=list)


def home_path(name: str) -> Path:
    """Where a file of the table lies: in the home, or where the user moved .config to."""
    config = os.environ.get("XDG_CONFIG_HOME")
    if config and name.startswith(".config/"):
        return Path(config, name.removeprefix(".config/"))
    return Path.home() / name


def write_settings(
    program: Program, settings: Settings, *, force: bool, say: Callable[[str], None]
) -> None:
    """Add the settings to the program's files; what is there stays.

    Args:
        force: settings that are there with another value are changed; the file as it was is kept
            beside it, with ".before-lingflash" at the end of its name.
        say: told what is changed, as a diff.

    Raises:
        ConfigError: the program has no file, or a setting would be changed without force; nothing
            was written then.
    """
    if not program.files:
        raise ConfigError(
            f"{program.title} keeps no settings in a file; use what is printed without --write.",
            param="write",
        )
    changes = [_plan(home_path(name), settings.fill(text)) for name, text in program.files.items()]
    for change in changes:
        if change.replaced and not force:
            say("\n".join(_diff(change)))
            raise ConfigError(
                f"{change.path} has other settings: {', '.join(change.replaced)}. Nothing was "
                "written; --force changes them and keeps the old file beside the new one.",
                param="force",
            )
    for change in changes:
        if change.new == change.old:
            say(f"{change.path} says so already.")
            continue
        say("\n".join(_diff(change)))
        if change.replaced:
            _write(change.path.with_name(change.path.name + ".before-lingflash"), change.old)
        _write(change.path, change.new)
        say(f"{change.path} was written.")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)  # it may hold a key
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}.", param="write") from None


def _diff(change: _Change) -> list[str]:
    name = str(change.path)
    old, new = change.old, change.new
    if change.path.suffix == ".json":
        # What only stands on other lines is no difference.
        with contextlib.suppress(ValueError):
            old = json.dumps(json.loads(old), indent=2)
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm=""))


def _plan(path: Path, text: str) -> _Change:
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        old = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", param="write") from None
    if path.suffix == ".json":
        text = json.dumps(json.loads(text), indent=2) + "\n"
    if not old.strip():
        return _Change(path, old, text)
    plan = {".json": _plan_json, ".toml": _plan_toml}.get(path.suffix, _plan_text)
    return plan(path, old, text)


def _plan_json(path: Path, old: str, text: str) -> _Change:
    try:
        known = json.loads(old)
    except ValueError:
        known = None
    if not isinstance(known, dict):  # such as JSON with comments, which would be lost
        return _Change(path, old, text, ["all of it, for it is no plain JSON object"])
    replaced: list[str] = []
    merged = _merge(known, json.loads(text), "", replaced)
    return _Change(
        path, old, old if merged == known else json.dumps(merged, indent=2) + "\n", replaced
    )


def _merge(old: Any, new: Any, name: str, replaced: list[str]) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        merged = dict(old)
        for key, value in new.items():
            inner = f"{name}.{key}" if name else key
            merged[key] = _merge(old[key], value, inner, replaced) if key in old else value
        return merged
    if isinstance(old, list) and isinstance(new, list):
        return _merge_lists(old, new, name, replaced)
    if old != new:
        replaced.append(name)
    return new


def _merge_lists(old: list[Any], new: list[Any], name: str, replaced: list[str]) -> list[Any]:
    """Objects with the same id are one; everything else is added if it is not there."""
    merged = list(old)
    for value in new:
        same = (
            index
            for index, other in enumerate(merged)
            if other == value
            or (isinstance(other, dict) and "id" in other and other["id"] == value.get("id"))
        )
        index = next(same, None)
        if index is None:
            merged.append(value)
        else:
            merged[index] = _merge(merged[index], value, f"{name}[{index}]", replaced)
    return merged


def _plan_toml(path: Path, old: str, text: str) -> _Change:
    try:
        known = tomllib.loads(old)
    except tomllib.TOMLDecodeError:
        return _Change(path, old, text, ["all of it, for it is no TOML"])
    replaced: list[str] = []
    wanted = tomllib.loads(text)
    merged = _merge(known, wanted, "", replaced)
    if replaced:
        # There is no writer of TOML that would keep the rest as it is.
        return _Change(path, old, text, replaced)
    if merged == known:
        return _Change(path, old, old)
    # Keys of no table come before the first table; tables may come at the end.
    head, _, tables = text.partition("\n[")
    fresh = [line for line in head.splitlines() if line and line.split(" = ")[0] not in known]
    joined = "\n".join([*fresh, old.rstrip(), "", "[" + tables])
    try:
        if tomllib.loads(joined) == merged:
            return _Change(path, old, joined)
    except tomllib.TOMLDecodeError:
        pass  # a table that is there in part
    return _Change(path, old, text, ["a table that is there in part"])


def _plan_text(path: Path, old: str, text: str) -> _Change:
    if text.strip() in old:
        return _Change(path, old, old)
    first = text.splitlines()[0]
    if first in old.splitlines():  # an entry of the same name
        return _Change(path, old, text, [first.removeprefix("- ")])
    return _Change(path, old, old.rstrip() + "\n" + text)
