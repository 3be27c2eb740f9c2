"""Settings of the accounts; the gateway's file and its reference page are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from lingflash.core.errors import ConfigError
from lingflash.core.settings import at_least, between, check_settings, one_of, setting
from lingflash.gateway.accounting import MAX_PICO, PICO_PER_USD

Reset = Literal["daily", "weekly", "monthly"]
RESETS: tuple[Reset, ...] = ("daily", "weekly", "monthly")

MAX_LIMIT_USD = MAX_PICO // PICO_PER_USD


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsConfig:
    """Where accounts are kept, and what a key may do that nothing else was said of."""

    database: str = setting(
        "sqlite:///gateway.db",
        "Where keys, budgets and the ledger are: sqlite:///FILE, or for several gateways "
        "postgresql://USER@HOST/NAME.",
        is_secret=True,
    )
    database_variable: str | None = setting(
        None, "Variable with the URL of the database, in which there may be a password."
    )
    redis: str | None = setting(
        None,
        "Redis that counts requests and tokens per minute for several gateways, "
        "redis://HOST:PORT/NUMBER; without it each counts for itself.",
        is_secret=True,
    )
    redis_variable: str | None = setting(None, "Variable with the URL of Redis.")
    master_key_variable: str | None = setting(
        None,
        "Variable with the key that encrypts stored keys of vendors: 32 bytes as base64 or hex. "
        "Several, with spaces between: the first encrypts, the others still decrypt.",
    )
    master_key_file: Path | None = setting(None, "The same in a file, one key a line.")
    budget_usd: float | None = setting(
        None,
        "What all keys together may spend in a window; none if empty.",
        bound=between(0, MAX_LIMIT_USD),
    )
    budget_reset: Reset | None = setting(
        None,
        "When that budget begins anew, in UTC: daily, weekly (on Monday), monthly; never if empty.",
        bound=one_of(RESETS),
    )
    rpm: int | None = setting(
        None, "Requests per minute of a key without a limit of its own.", bound=at_least(1)
    )
    tpm: int | None = setting(
        None, "Tokens per minute of a key without a limit of its own.", bound=at_least(1)
    )
    concurrency: int | None = setting(
        None, "Requests at once of a key without a limit of its own.", bound=at_least(1)
    )
    free_rpm: int = setting(
        20, "Requests per minute of a key to models ending in :free.", bound=at_least(1)
    )
    free_per_day: int = setting(
        50, "Requests per day (UTC) of a key to models ending in :free.", bound=at_least(1)
    )
    pin_ttl_s: float = setting(
        3600.0,
        "A session stays at its endpoint for so long after its last turn.",
        bound=at_least(0),
    )
    lease_s: float = setting(
        10.0,
        "A gateway that gave no sign for so long is dead; another settles what it left.",
        bound=between(1, 600),
    )
    progress_s: float = setting(
        1.0,
        "How often what streams have made is written down, for the bill of a killed gateway.",
        bound=between(0.05, 60),
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def secret(self, name: str, environ: Mapping[str, str]) -> str | None:
        """The value of `database` or `redis`, or of the variable that is named for it.

        Raises:
            ConfigError: the variable holds nothing.
        """
        variable: str | None = getattr(self, f"{name}_variable")
        if variable is None:
            return getattr(self, name, None)
        value = environ.get(variable, "").strip()
        if not value:
            raise ConfigError(
                f"{name}_variable names {variable}, which is not set or empty.",
                param=f"{name}_variable",
            )
        return value

    def database_url(self, environ: Mapping[str, str], folder: Path) -> str:
        """The database's URL; a file without a full path lies in the folder.

        Raises:
            ConfigError: the variable that is named for it holds nothing.
        """
        url = self.secret("database", environ) or ""
        name = url.removeprefix("sqlite:///")
        is_file = name not in (url, "", ":memory:")
        return f"sqlite:///{folder / name}" if is_file else url

    @property
    def budget_pico(self) -> int | None:
        """The house's budget, exact to a millionth of a dollar."""
        return None if self.budget_usd is None else pico(self.budget_usd)


def pico(usd: float | int | str) -> int:
    """Pico-dollars of a number of dollars as people write it, such as 0.1, exactly."""
    # Through the shortest text of the number: 0.1 is a tenth of a dollar, not a float near it.
    return int(Decimal(str(usd)) * PICO_PER_USD)


def usd(amount: int) -> float:
    """Dollars for an answer's JSON; the only place where money is a float."""
    return amount / PICO_PER_USD
