"""Keys of this gateway: made, looked up, changed, revoked. Only their SHA-256 is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from lingflash.core.errors import InvalidRequestError, NotFoundError, refuse
from lingflash.core.settings import nearest
from lingflash.gateway.accounts.admission import wall_ms
from lingflash.gateway.accounts.balance import Balance, balance_of
from lingflash.gateway.accounts.config import MAX_LIMIT_USD, RESETS, pico
from lingflash.store.database import Database
from lingflash.store.tables import api_key, budget

PREFIX = "sk-ling-"
MAX_NAME_CHARS = 256
_MAX_RATE = 2**31 - 1
_BUDGET_FIELDS = ("limit_pico", "limit_reset", "include_byok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as its row has it, with its budget as of now."""

    hash: str
    label: str
    name: str
    is_management: bool
    disabled: bool
    allowed_models: Sequence[str] | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    expires_at: int | None
    created_at: int
    updated_at: int | None
    balance: Balance


def hash_of(secret: str) -> str:
    """Under which a key is kept; it has 256 random bits, so that no slow hash is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def label_of(secret: str) -> str:
    """A key, masked: enough to tell one's own keys apart, too little to guess one."""
    if len(secret) < 20:
        return "..."
    return f"{secret[:11]}...{secret[-3:]}" if secret.startswith(PREFIX) else f"...{secret[-3:]}"


class Keys:
    """The table of keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, fields: Mapping[str, Any]) -> tuple[str, Key]:
        """Make a key; its text is given this once.

        Args:
            fields: see `checked`; `name` is needed.

        Raises:
            InvalidRequestError: a field is wrong.
        """
        values = checked({"name": "", **fields})
        if not values["name"]:
            refuse("name", "is empty; give the key a name to know it by")
        secret = PREFIX + secrets.token_hex(32)
        hash = hash_of(secret)
        money = {name: values.pop(name) for name in _BUDGET_FIELDS if name in values}
        row = {"is_management": False, "disabled": False, **values}
        row |= {"hash": hash, "label": label_of(secret), "created_at": wall_ms()}

        def make(connection: Connection) -> Key:
            connection.execute(insert(api_key).values(row))
            layer = {"scope": hash, "include_byok": False, **money}
            connection.execute(insert(budget).values(layer))
            return _get(connection, hash)

        return secret, await self._database.write(make)

    async def get(self, hash: str) -> Key:
        """One key.

        Raises:
            NotFoundError: there is none with this hash.
        """
        return await self._database.read(lambda connection: _get(connection, hash))

    async def find(self, name_or_hash: str) -> Key:
        """One key by its name, its hash, or the beginning of that.

        Raises:
            NotFoundError: none, or more than one.
        """
        keys = await self.all()
        found = [
            each
            for each in keys
            if each.name == name_or_hash
            or (len(name_or_hash) >= 6 and each.hash.startswith(name_or_hash))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(
                f"{len(found)} keys are {name_or_hash!r}; give the hash of one: "
                f"{', '.join(each.hash[:12] for each in found)}."
            )
        raise NotFoundError(
            f"There is no key {name_or_hash!r}{nearest(name_or_hash, [k.name for k in keys])}"
        )

    async def all(self) -> list[Key]:
        """All keys, the newest first."""
        query = _QUERY.order_by(api_key.c.created_at.desc(), api_key.c.hash)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [_key_of(row) for row in rows]

    async def update(self, hash: str, fields: Mapping[str, Any]) -> Key:
        """Change a key; what it has spent stays.

        Raises:
            NotFoundError: there is none.
            InvalidRequestError: a field is wrong.
        """
        values = checked(fields)
        money = {name: values.pop(name) for name in _BUDGET_FIELDS if name in values}
        values["updated_at"] = wall_ms()

        def change(connection: Connection) -> Key:
            # The budget first, as the ledger does: two orders would be a deadlock.
            if money:
                connection.execute(update(budget).where(budget.c.scope == hash).values(money))
            connection.execute(update(api_key).where(api_key.c.hash == hash).values(values))
            return _get(connection, hash)

        return await self._database.write(change)

    async def delete(self, hash: str) -> None:
        """Revoke a key. Its rows in the ledger stay, and its budget, for requests still running.

        Raises:
            NotFoundError: there is none.
        """

        def remove(connection: Connection) -> None:
            _get(connection, hash)
            connection.execute(delete(api_key).where(api_key.c.hash == hash))

        await self._database.write(remove)


def _get(connection: Connection, hash: str) -> Key:
    # PostgreSQL takes no NUL, not even to compare with.
    query = _QUERY.where(api_key.c.hash == hash.replace("\0", ""))
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError("There is no key with this hash.")
    return _key_of(row)


_QUERY = select(api_key, *(c for c in budget.c if c.name != "scope")).join_from(
    api_key, budget, budget.c.scope == api_key.c.hash
)
_KEY_FIELDS = tuple(column.name for column in api_key.c)


def _key_of(row: Mapping[Any, Any]) -> Key:
    balance = balance_of({**row, "scope": row["hash"]}).at(wall_ms())
    return Key(**{name: row[name] for name in _KEY_FIELDS}, balance=balance)


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a key as columns.

    Args:
        fields: name, is_management, disabled, allowed_models, rpm, tpm, concurrency, expires_at
            (milliseconds), limit (dollars), limit_reset, include_byok.

    Raises:
        InvalidRequestError: one is not what it may be.
    """
    values = dict(fields)
    if "limit" in values:
        values["limit_pico"] = _limit(values.pop("limit"))
    if values.get("limit_reset") not in (None, *RESETS):
        refuse("limit_reset", f"is {values['limit_reset']!r}; allowed: {', '.join(RESETS)}, null")
    name = values.get("name")
    if name is not None and ("\0" in name or len(name) > MAX_NAME_CHARS):
        refuse("name", f"is not up to {MAX_NAME_CHARS} printable characters")
    for rate in ("rpm", "tpm", "concurrency"):
        value = values.get(rate)
        if value is not None and not 1 <= value <= _MAX_RATE:
            refuse(rate, f"is {value}; allowed: 1 or more, or null for no limit")
    if (values.get("expires_at") or 0) < 0:
        refuse("expires_at", "is before 1970")
    return values


def _limit(dollars: float | str | None) -> int | None:
    if dollars is None:
        return None
    try:
        # Compared first: a number with a huge exponent is written out by nobody.
        amount = pico(dollars) if 0 <= Decimal(str(dollars)) <= MAX_LIMIT_USD else -1
    except (ArithmeticError, ValueError):
        raise InvalidRequestError(
            f"limit is {dollars!r}; allowed: dollars, such as 2.5.", param="limit"
        ) from None
    if amount < 0:
        refuse("limit", f"is {dollars}; allowed: 0 to {MAX_LIMIT_USD} dollars, or null")
    return amount
