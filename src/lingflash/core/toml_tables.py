"""TOML files to settings classes: every key is one of its fields, within its bound, or refused.

    reader = TableReader(str(path), path.parent, os.environ)
    config = reader.read(Config, read_toml(path), "")

Secrets are no values of such a file: it names the variable or the file that holds one.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lingflash.core.errors import ConfigError
from lingflash.core.settings import nearest, settings_of

Table = TypeVar("Table")
# So far floats, sums and columns of the database hold whatever is made of it.
_MAX_NUMBER = 10**12
# Far above any file that a person keeps; not /dev/zero.
_MAX_BYTES = 4 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """A file's tables, its floats as decimals.

    Raises:
        ConfigError: it cannot be read, is too large, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8-sig")  # some editors put a mark before
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.", param="config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8.", param="config") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: is over {_MAX_BYTES >> 20} MiB.", param="config")
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:  # the last two of numbers and nests without end
        raise ConfigError(f"{path}: is not TOML: {error}.", param="config") from None


class TableReader:
    """Reads tables of one file; its messages name the file and the key.

    Args:
        file: as messages call it.
        folder: where files lie that it names.
        environ: has the variables that it names.
    """

    def __init__(
        self, file: str, folder: Path = Path(), environ: Mapping[str, str] | None = None
    ) -> None:
        self.file = file
        self._folder = folder
        self._environ = environ or {}

    def refuse(self, where: str, problem: str) -> ConfigError:
        """What is wrong with one key, to be raised."""
        return ConfigError(f"{self.file}: {where} {problem}", param=where)

    def read(self, cls: type[Table], given: Any, where: str) -> Table:
        """One table.

        Args:
            where: its name, such as `upstream[1]`.

        Raises:
            ConfigError: a key is unknown, missing, of the wrong type or outside of its bound.
        """
        if not isinstance(given, Mapping):
            raise self.refuse(where, f"is {_shown(given)}; it must be a table.")
        hints = get_type_hints(cls)
        names = [each.name for each in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]  # all callers' are
        settings = settings_of(cls)
        values: dict[str, Any] = {}
        for key, value in given.items():
            path = f"{where}.{key}" if where else key
            if key not in names:
                raise self.refuse(path, f"is not a known key{nearest(key, names)}")
            told = settings.get(key)
            shown = "..." if told is not None and told.is_secret else _shown(value)
            values[key] = self._value(hints[key], value, path, shown)
            if told is not None and told.bound is not None:
                items = values[key] if isinstance(values[key], tuple) else (values[key],)
                if not all(map(told.bound.holds, items)):
                    raise self.refuse(path, f"is {shown}; allowed: {told.bound.text}.")
        for name, told in settings.items():
            if told.default is dataclasses.MISSING and name not in values:
                raise self.refuse(where or name, f"lacks the key {name!r}: {told.help}")
        return cls(**values)

    def secret(self, where: str, variable: str | None, file: Path | None) -> str | None:
        """What a variable or a file holds; None if neither is named.

        Args:
            where: what the keys `..._variable` and `..._file` begin with.

        Raises:
            ConfigError: both are named, or the one that is holds no key.
        """
        if variable is not None and file is not None:
            raise self.refuse(f"{where}_variable", f"and {where}_file are two sources; keep one.")
        if variable is not None:
            value, named = self._environ.get(variable, "").strip(), f"{where}_variable"
            if not value:
                raise self.refuse(named, f"names {variable}, which is not set or empty.")
        elif file is not None:
            named = f"{where}_file"
            try:
                value = (self._folder / file).read_text("utf-8").strip()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise self.refuse(named, f"names {file}, which cannot be read: {why}.") from None
            if not value:
                raise self.refuse(named, f"names {file}, which is empty.")
        else:
            return None
        if not value.isascii() or not value.isprintable() or " " in value:
            raise self.refuse(named, "leads to a key with characters that no HTTP header holds.")
        return value

    def _value(self, hint: Any, value: Any, path: str, shown: str) -> Any:
        origin = get_origin(hint)
        if origin in (types.UnionType, typing.Union):
            hint = next(each for each in get_args(hint) if each is not type(None))
            origin = get_origin(hint)
        if origin is tuple:
            if not isinstance(value, list):
                raise self.refuse(path, f"is {shown}; it must be an array.")
            item = get_args(hint)[0]
            if dataclasses.is_dataclass(item):
                kind = typing.cast(type, item)
                return tuple(self.read(kind, v, f"{path}[{i}]") for i, v in enumerate(value))
            return tuple(self._value(item, each, path, shown) for each in value)
        if dataclasses.is_dataclass(hint):
            return self.read(typing.cast(type, hint), value, path)
        if origin is Literal:
            hint = str
        if _is_huge(value):
            raise self.refuse(path, f"is {shown}; no setting takes so much.")
        made = _converted(hint, value)
        if made is None:
            raise self.refuse(path, f"is {shown}; it must be {_KINDS[hint]}.")
        return made


def _is_huge(value: Any) -> bool:
    if isinstance(value, Decimal) and not value.is_finite():
        return False
    return isinstance(value, int | Decimal) and not -_MAX_NUMBER <= value <= _MAX_NUMBER


def _converted(kind: Any, value: Any) -> Any:
    """The value as this type; None if it is another."""
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str or kind is Path:
        return kind(value) if isinstance(value, str) and value else None
    if kind is int:
        return value if isinstance(value, int) else None
    if kind is date:
        return value if isinstance(value, date) and not isinstance(value, datetime) else None
    # Numbers: TOML's floats were read as decimals, so that a price is what was written.
    if isinstance(value, str) and kind is Decimal:
        try:
            value = Decimal(value)
        except ArithmeticError:
            return None
    is_number = isinstance(value, int | Decimal) and Decimal(value).is_finite()
    return kind(value) if is_number else None


_KINDS = {
    bool: "true or false",
    str: "a text that is not empty",
    Path: "the path of a file",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    date: "a date such as 2026-11-30",
}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal | date):
        return str(value)
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return "too long to be shown"  # Python writes no number of more than 4,300 digits
