"""Keys of vendors that users stored: AES-256-GCM under a master key that is never in the database.

A row says under which master key it was encrypted, by an id that is a hash of it. The first master
key encrypts; others only decrypt, until `rotate` has encrypted all rows anew and they can go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection

from lingflash.core.errors import (
    ConfigError,
    InvalidRequestError,
    LingflashError,
    NotFoundError,
    refuse,
)
from lingflash.gateway.accounting import Caller, ProviderKey
from lingflash.gateway.accounts.admission import wall_ms
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.keys import label_of
from lingflash.store.database import Database
from lingflash.store.tables import byok_key

_HOW = (
    "Name it in master_key_variable or master_key_file, 32 random bytes as base64 or hex, such as "
    "`openssl rand -base64 32` prints."
)
MAX_SECRET_CHARS = 4096


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The first encrypts, all decrypt; by id."""

    by_id: Mapping[str, AESGCM]

    @property
    def first(self) -> tuple[str, AESGCM]:
        """The one that encrypts.

        Raises:
            InvalidRequestError: there is none.
        """
        for id, cipher in self.by_id.items():
            return id, cipher
        raise InvalidRequestError(
            "This gateway stores no keys of vendors: it was started without a master key. " + _HOW
        )


def read_master_keys(
    config: AccountsConfig, environ: Mapping[str, str], folder: Path
) -> MasterKeys:
    """The master keys that the settings give; none is allowed while no row needs one.

    Raises:
        ConfigError: a file cannot be read, a variable is empty, or a key is none.
    """
    texts: list[str] = re.split(r"[\s,]+", config.secret("master_key", environ) or "")
    if config.master_key_file is not None:
        try:
            content = (folder / config.master_key_file.expanduser()).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(
                f"master_key_file {config.master_key_file} cannot be read: {reason}.",
                param="master_key_file",
            ) from None
        texts += re.split(r"[\s,]+", content)
    keys = [_decoded(text) for text in texts if text]
    if config.master_key_file is not None and not keys:
        raise ConfigError(
            f"master_key_file {config.master_key_file} holds no key. {_HOW}",
            param="master_key_file",
        )
    return MasterKeys({hashlib.sha256(key).hexdigest()[:16]: AESGCM(key) for key in keys})


def _decoded(text: str) -> bytes:
    for decode in (bytes.fromhex, lambda given: base64.b64decode(given, validate=True)):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == 32:
            return key
    raise ConfigError(f"A master key is not 32 bytes long. {_HOW}", param="master_key_file")


class Vault:
    """The table of vendors' keys."""

    def __init__(self, database: Database, masters: MasterKeys) -> None:
        self._database = database
        self._masters = masters

    async def check(self) -> None:
        """Make sure that every stored key can be read.

        Raises:
            ConfigError: a master key is missing that rows need, or is another.
        """
        masters = byok_key.c.master_key_id
        query = select(masters, func.count()).group_by(masters)
        for id, count in await self._database.read(lambda c: c.execute(query).all()):
            if id not in self._masters.by_id:
                raise ConfigError(
                    f"{count} stored keys of vendors are encrypted under the master key {id}, "
                    f"which was not given. {_HOW}",
                    param="master_key_file",
                )

    async def add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Store a key; returns its row without the secret.

        Raises:
            InvalidRequestError: it is none, or there is no master key.
        """
        values = dict(fields)
        id, secret = str(uuid.uuid4()), _checked_secret(values.pop("key"))
        row = {
            "is_fallback": False,
            "is_required": False,
            "is_byok_only": False,
            "disabled": False,
            **values,
            **self._sealed(id, secret),
            "id": id,
            "label": label_of(secret),
            "created_at": wall_ms(),
        }
        of_provider = byok_key.c.provider == values["provider"]
        last = select(func.max(byok_key.c.sort_order)).where(of_provider)

        def store(connection: Connection) -> None:
            row["sort_order"] = (connection.execute(last).scalar() or 0) + 1
            connection.execute(insert(byok_key).values(row))

        await self._database.write(store)
        return await self.get(id)

    async def get(self, id: str) -> dict[str, Any]:
        """One row without its secret.

        Raises:
            NotFoundError: there is none.
        """
        query = select(*_SHOWN).where(byok_key.c.id == id)
        row = await self._database.read(lambda c: c.execute(query).mappings().first())
        if row is None:
            raise NotFoundError("There is no stored key with this id.")
        return dict(row)

    async def all(self, provider: str | None = None) -> list[dict[str, Any]]:
        """All rows, of one provider if it is named, without their secrets, in their order."""
        query = select(*_SHOWN).order_by(*_ORDER)
        if provider is not None:
            query = query.where(func.lower(byok_key.c.provider) == provider.lower())
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [dict(row) for row in rows]

    async def update(self, id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change a row; a new `key` takes the old one's place."""
        await self.get(id)
        values = dict(fields)
        if "key" in values:
            secret = _checked_secret(values.pop("key"))
            values |= {**self._sealed(id, secret), "label": label_of(secret)}
        if values:
            change = update(byok_key).where(byok_key.c.id == id).values(values)
            await self._database.write(lambda connection: connection.execute(change))
        return await self.get(id)

    async def delete(self, id: str) -> None:
        """Forget a key."""
        await self.get(id)
        gone = delete(byok_key).where(byok_key.c.id == id)
        await self._database.write(lambda connection: connection.execute(gone))

    async def for_attempt(
        self, caller: Caller, provider: str, names: Sequence[str]
    ) -> list[ProviderKey]:
        """The keys that may serve a model there for a caller, in their order.

        Raises:
            LingflashError: one cannot be decrypted.
        """
        query = (
            select(byok_key)
            .where(func.lower(byok_key.c.provider) == provider.lower(), ~byok_key.c.disabled)
            .order_by(*_ORDER)
        )
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [
            ProviderKey(
                id=row["id"],
                provider=row["provider"],
                name=row["name"] or row["label"],
                secret=self._opened(row),
                is_fallback=row["is_fallback"],
                is_required=row["is_required"] or row["is_byok_only"],
            )
            for row in rows
            if _covers(row, caller, names)
        ]

    async def rotate(self) -> int:
        """Encrypt anew what is not under the first master key; returns how many rows."""
        current, _ = self._masters.first
        query = select(byok_key).where(byok_key.c.master_key_id != current).with_for_update()

        def encrypt(connection: Connection) -> int:
            rows = connection.execute(query).mappings().all()
            for row in rows:
                sealed = self._sealed(row["id"], self._opened(row))
                this = update(byok_key).where(byok_key.c.id == row["id"])
                connection.execute(this.values(sealed))
            return len(rows)

        return await self._database.write(encrypt)

    def _sealed(self, id: str, secret: str) -> dict[str, Any]:
        master_id, cipher = self._masters.first
        nonce = os.urandom(12)
        # Bound to its row: moved to another, it does not open.
        ciphertext = cipher.encrypt(nonce, secret.encode(), id.encode())
        return {"ciphertext": ciphertext, "nonce": nonce, "master_key_id": master_id}

    def _opened(self, row: Mapping[Any, Any]) -> str:
        cipher = self._masters.by_id.get(row["master_key_id"])
        if cipher is not None:
            try:
                return cipher.decrypt(row["nonce"], row["ciphertext"], row["id"].encode()).decode()
            except InvalidTag:
                pass
        raise LingflashError(
            f"The stored key {row['label']} of {row['provider']} cannot be decrypted; "
            "store it anew."
        )


_SECRET_COLUMNS = ("ciphertext", "nonce", "master_key_id")
_SHOWN: Sequence[Any] = [c for c in byok_key.c if c.name not in _SECRET_COLUMNS]
_ORDER = (byok_key.c.is_fallback, byok_key.c.sort_order, byok_key.c.id)


def _covers(row: Mapping[Any, Any], caller: Caller, names: Sequence[str]) -> bool:
    models, hashes = row["allowed_models"], row["allowed_api_key_hashes"]
    # A variant such as `:free` is covered with its model.
    is_for_model = models is None or any(
        name in models or name.rpartition(":")[0] in models for name in names
    )
    is_for_caller = hashes is None or caller.key_hash in hashes
    return is_for_caller and (is_for_model or row["is_byok_only"])


def _checked_secret(secret: str) -> str:
    if not secret or len(secret) > MAX_SECRET_CHARS or not secret.isascii():
        refuse("key", f"is not 1 to {MAX_SECRET_CHARS} ASCII characters")
    if not secret.isprintable() or " " in secret:
        refuse("key", "holds a space or a control character, which no header may")
    return secret
