"""Settings, each written once: a dataclass field that carries help, flag, variable and bounds.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ServerConfig:
        port: int = setting(8000, "0 takes a free one.", bound=between(0, 65535))

        def __post_init__(self) -> None:
            check_settings(self)

From the field come `--port`, `LINGFLASH_PORT` and their line in `--help` (`cli/options.py`), the
row of the docs' table and, for the engine, the keyword of `LLM`. A field made without `setting` can
be set from Python alone. A class whose flags are also another's sets VARIABLE_PREFIX, a ClassVar.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from lingflash.core.errors import ConfigError

PREFIX = "LINGFLASH_"

P = ParamSpec("P")
Config = TypeVar("Config")
Self = TypeVar("Self")


@dataclass(frozen=True, slots=True)
class Bound:
    """What a value may be.

    Args:
        test: may raise TypeError on a value of a wrong type, which then is not allowed.
        text: ends the sentence "allowed: ...".
    """

    test: Callable[[Any], bool]
    text: str

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed; a number that is not finite never is."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        try:
            return self.test(value)
        except TypeError:
            return False


def between(low: float, high: float, note: str = "") -> Bound:
    return Bound(lambda value: low <= value <= high, f"{low} to {high}{note}")


def at_least(low: float, meaning: str = "") -> Bound:
    """No less than `low`, which may have a meaning of its own, such as "no host tier"."""
    return Bound(lambda value: value >= low, f"{low}{meaning and f' ({meaning})'} or more")


def above(low: float) -> Bound:
    return Bound(lambda value: value > low, f"above {low}")


def one_of(values: Collection[Any]) -> Bound:
    return Bound(lambda value: value in values, ", ".join(map(str, values)))


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field tells of itself (see `setting`), and from `settings_of` the rest of it.

    Args:
        type: the field's annotation.
        default: dataclasses.MISSING where a value must be given.
    """

    help: str
    flag: str
    bound: Bound | None
    parse: Callable[[str], Any] | None
    unit: int
    metavar: str | None
    is_secret: bool
    name: str = ""
    variable: str = ""
    type: Any = None
    default: Any = None

    def as_typed(self, value: Any) -> Any:
        """What one would type on the flag to get this value."""
        is_counted = self.unit != 1 and isinstance(value, int | float)
        return value / self.unit if is_counted else value


def setting(
    default: Any,
    help: str,
    *,
    flag: str = "",
    bound: Bound | None = None,
    parse: Callable[[str], Any] | None = None,
    unit: int = 1,
    metavar: str | None = None,
    is_secret: bool = False,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: None is a value that no bound forbids; dataclasses.MISSING for no default.
        help: one line.
        flag: the field's name with dashes if empty; a word without dashes is an argument instead.
        bound: of the value; of a tuple, which is a flag that can be repeated, of each item.
        parse: text to value, where the field's type is none that a command line knows.
        unit: the flag counts these, the field ones: 2**20 for a flag in MiB of a field in bytes.
        metavar: what `--help` writes for the value.
        is_secret: no message may hold it.
    """
    told = Setting(help, flag, bound, parse, unit, metavar, is_secret)
    return field(default=default, metadata={"setting": told})


@functools.cache
def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings of a dataclass by their fields' names."""
    hints = get_type_hints(cls)
    prefix = getattr(cls, "VARIABLE_PREFIX", PREFIX)
    found = {}
    for each in fields(cls):
        if told := each.metadata.get("setting"):
            flag = told.flag or "--" + each.name.replace("_", "-")
            found[each.name] = replace(
                told,
                name=each.name,
                flag=flag,
                variable=prefix + flag.lstrip("-").replace("-", "_").upper(),
                type=hints[each.name],
                default=each.default,
            )
    return found


def check_settings(config: Any) -> None:
    """Hold every setting of a dataclass to its bound; for its __post_init__.

    Raises:
        ConfigError: what was given, what is allowed; `param` is the flag's name.
    """
    for each in settings_of(type(config)).values():
        value = getattr(config, each.name)
        if each.bound is None or (value is None and each.default is None):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if not each.bound.holds(item):
                raise _refused(each, item, each.bound.text)


def require(config: Any, ok: bool, name: str, allowed: str) -> None:
    """Refuse a setting for what others are, where no bound of its own can say it.

    Raises:
        ConfigError: not `ok`.
    """
    if not ok:
        raise _refused(settings_of(type(config))[name], getattr(config, name), allowed)


def _refused(setting: Setting, value: Any, allowed: str) -> ConfigError:
    is_hidden = setting.is_secret and value is not None
    given = "..." if is_hidden else setting.as_typed(value)
    return ConfigError(
        f"{setting.flag} is {given!r}; allowed: {allowed}.",
        param=setting.flag.lstrip("-").replace("-", "_"),
    )


def takes_settings(
    cls: Callable[P, Config], *, without: Collection[str] = ()
) -> Callable[[Callable[[Self, Config], None]], Callable[Concatenate[Self, P], None]]:
    """Let a method take the fields of a settings class as keywords instead of the class itself.

    Editors, type checkers and `help()` show the keywords with their types and defaults; they are
    those of the class's own constructor, so that nothing is typed twice.

    Args:
        without: settings that this method does not take.
    """
    settings = settings_of(cls)
    allowed = [name for name in settings if name not in without]
    signature = inspect.signature(cls)
    shown = [p for p in signature.parameters.values() if p.name in allowed]

    def decorate(
        method: Callable[[Self, Config], None],
    ) -> Callable[Concatenate[Self, P], None]:
        @functools.wraps(method)
        def take(self: Self, *args: P.args, **given: P.kwargs) -> None:
            for name in given:
                if name not in allowed:
                    taker = type(self).__name__
                    raise ConfigError(
                        f"{name} is no keyword of {taker}{nearest(name, allowed)}", param=name
                    )
            method(self, cls(*args, **given))

        own = next(iter(inspect.signature(method).parameters.values()))
        take.__signature__ = inspect.Signature([own, *shown])  # pyright: ignore[reportAttributeAccessIssue]  # what inspect reads
        return take

    return decorate


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the nearest known one, if any is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."
