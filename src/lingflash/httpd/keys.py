"""What a server may do without: keys (`api_keys`, those of `api_key_file`), and its page."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from lingflash.core.errors import ConfigError
from lingflash.core.settings import Bound

KEY = Bound(
    lambda key: key != "" and key.isascii() and key.isprintable(), "non-empty printable ASCII"
)


class _HasKeys(Protocol):
    """A dataclass with these settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def api_keys(self) -> tuple[str, ...]: ...

    @property
    def api_key_file(self) -> Path | None: ...


Config = TypeVar("Config", bound=_HasKeys)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def has_page(ui: bool | None, host: str) -> bool:
    """Whether a server that listens there has the page; None leaves it to the address."""
    return is_loopback(host) if ui is None else ui


def with_keys_of_file(config: Config) -> Config:
    """Add the keys of `api_key_file`, if there is one, to the others.

    Raises:
        ConfigError: it cannot be read, or holds no key.
    """
    path = config.api_key_file
    if path is None:
        return config
    keys = keys_of_file(path, "--api-key-file")
    return replace(config, api_keys=(*config.api_keys, *keys))


def keys_of_file(path: Path, flag: str) -> tuple[str, ...]:
    """The keys of a file, one a line.

    Args:
        flag: that named it, for messages.

    Raises:
        ConfigError: it cannot be read, or holds no key.
    """
    param = flag.lstrip("-").replace("-", "_")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {str(path)!r} cannot be read: {error}.", param=param) from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"{flag} {str(path)!r} holds no key; write one a line.", param=param)
    return keys
