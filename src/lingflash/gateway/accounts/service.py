"""The accounts of one gateway process: what `gateway/accounting.py` asks for."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from lingflash.core.errors import (
    AuthenticationError,
    CapacityError,
    LingflashError,
    NotFoundError,
)
from lingflash.core.log import log_event
from lingflash.core.types import Usage
from lingflash.gateway.accounting import (
    Admission,
    Attempt,
    Caller,
    Cost,
    End,
    Home,
    ProviderKey,
    Start,
)
from lingflash.gateway.accounts.admission import HOUSE, model_refusal, wall_ms
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.keys import Key, Keys, hash_of
from lingflash.gateway.accounts.leases import Every, Leases, Progress, new_process_id
from lingflash.gateway.accounts.ledger import Ledger
from lingflash.gateway.accounts.rates import Rate, Rates, Taken
from lingflash.gateway.accounts.responses import find_home
from lingflash.gateway.accounts.vault import Vault, read_master_keys
from lingflash.store.database import Database
from lingflash.store.tables import budget, session

logger = logging.getLogger("lingflash.gateway")

# A key is looked up anew after this; whether it is still good, every admission asks in any case.
_KEY_TTL_S = 1.0
_MAX_KEYS_KEPT = 10_000
# Of a database that is gone for long nobody can be in.
_MAX_DOUBTFUL = 10_000


async def open_accounts(
    config: AccountsConfig,
    environ: Mapping[str, str] = os.environ,
    folder: Path = Path(),  # nobody changes it
) -> LedgerAccounts:
    """Open the database, settle nothing yet, and begin to beat.

    Args:
        environ: where the variables are that the settings name.
        folder: where files are that the settings name without a full path: the config file's.

    Raises:
        ConfigError: the database, Redis' URL or the master keys cannot be used.
    """
    masters = read_master_keys(config, environ, folder)
    redis = config.secret("redis", environ)
    database = Database(config.database_url(environ, folder))
    await database.open()
    try:
        accounts = LedgerAccounts(config, database, Vault(database, masters), redis)
        await accounts.start()
    except BaseException:
        await database.close()
        raise
    return accounts


class LedgerAccounts:
    """Accounts in a database. Made by open_accounts(); closed once.

    Attributes:
        keys: of this gateway. vault: of vendors.
    """

    def __init__(
        self, config: AccountsConfig, database: Database, vault: Vault, redis: str | None = None
    ) -> None:
        self.config = config
        self.database = database
        self.keys = Keys(database)
        self.vault = vault
        id = new_process_id()
        self._ledger = Ledger(database, config, id, wall_ms)
        self._leases = Leases(database, self._ledger, id, config.lease_s)
        self._progress = Progress(database)
        self._rates = Rates(redis, lambda: self._leases.num_processes)
        self._known: dict[str, tuple[Key, float]] = {}
        self._taken: dict[str, Taken] = {}
        self._unsettled: list[tuple[Start, End]] = []
        self._doubtful: list[Start] = []  # admissions that failed, and may be in
        self._background: list[Every] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Check the vault, write the house's budget down, beat once."""
        await self.vault.check()
        await self._put_house()
        await self._leases.beat()
        await self._rates.check()
        self._background = [
            Every("lease", self._leases.beat_s, self._beat),
            Every("progress", self.config.progress_s, self._progress.write),
        ]

    async def close(self) -> None:
        """Settle what is left, take this process off the list, close the database."""
        for each in self._background:
            await each.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._settle_rest()
            await self._progress.write()
            await self._leases.leave()
        except LingflashError as error:
            # Another process, or the next start, does it.
            log_event(logger, "close_failed", {"message": error.message}, level=logging.WARNING)
        await self._ledger.close()
        await self._rates.close()
        await self.database.close()

    @property
    def degraded(self) -> Sequence[str]:
        """What does not work as it should though requests are served."""
        reasons = [each.failure for each in self._background if each.failure]
        if self._rates.degraded:
            reasons.append(self._rates.degraded)
        if self._unsettled:
            reasons.append(f"{len(self._unsettled)} requests wait to be written to the database.")
        return list(dict.fromkeys(reasons))

    async def authenticate(self, secret: str) -> Caller:
        """Whose key it is."""
        key = await self._key(hash_of(secret))
        if key is None:
            raise AuthenticationError("The API key is not valid.")
        if key.disabled:
            raise AuthenticationError("The API key is disabled.")
        if key.expires_at is not None and key.expires_at <= max(key.balance.clock, wall_ms()):
            raise AuthenticationError("The API key has expired.")
        return Caller(
            key_hash=key.hash,
            name=key.name,
            label=key.label,
            is_management=key.is_management,
            allowed_models=key.allowed_models,
        )

    async def admit(self, start: Start) -> Admission:
        """Reserve what a request may cost, and count it against all limits."""
        task = asyncio.create_task(self._admit(start), name="admit")
        self._keep(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Its client left meanwhile; nobody else would settle what is being reserved.
            self._keep(asyncio.create_task(self._abandon(task), name="abandon"))
            raise

    async def _admit(self, start: Start) -> Admission:
        refusals = (model_refusal(start.caller, each) for each in (start.model, *start.fallbacks))
        error: LingflashError | None = next(filter(None, refusals), None)
        taken = Taken({})
        if error is None:
            try:
                taken = await self._rates.take(await self._rates_of(start))
            except LingflashError as reached:
                error = reached
        if error is not None:
            await self._ledger.refuse(start, error)
            raise error
        try:
            session = await self._ledger.admit(start)
        except LingflashError as failed:  # maybe after it was in
            if len(self._doubtful) < _MAX_DOUBTFUL:
                self._doubtful.append(replace(start, parts=()))
            session = failed
        if isinstance(session, LingflashError):
            await self._rates.give_back(taken, 0)
            raise session
        if taken.tokens:
            self._taken[start.id] = taken
        return Admission(start=start, session=session, limit_headers=taken.headers)

    async def _abandon(self, admitting: asyncio.Task[Admission]) -> None:
        try:
            admission = await admitting
        except LingflashError:
            return
        await self._settle(admission.start, End(outcome="cancelled", status=499))

    async def _rates_of(self, start: Start) -> list[Rate]:
        caller, config = start.caller.key_hash, self.config
        key = await self._key(caller)
        rpm = (key.rpm if key else None) or config.rpm
        tpm = (key.tpm if key else None) or config.tpm
        rates: list[Rate] = []
        if start.is_free and not start.is_byok:
            rates.append(Rate(f"free:{caller}", "requests", config.free_rpm, 1))
        if rpm is not None:
            rates.append(Rate(caller, "requests", rpm, 1))
        if tpm is not None:
            tokens = start.prompt_tokens + start.completion_tokens
            rates.append(Rate(caller, "tokens", tpm, max(1, tokens)))
        return rates

    def note_progress(
        self,
        admission: Admission,
        usage: Usage,
        cost: Cost,
        *,
        attempt: Attempt | None = None,
        upstream_cost: Cost = Cost(),  # noqa: B008  # frozen
    ) -> None:
        """What the stream has made so far; written down every `progress_s` seconds."""
        self._progress.note(admission.start.id, usage, cost, attempt, upstream_cost)

    async def settle(self, admission: Admission, end: End) -> None:
        """Write the row, pay, and give the rest of the reservation back."""
        task = asyncio.create_task(self._settle(admission.start, end), name="settle")
        self._keep(task)
        await asyncio.shield(task)

    async def _settle(self, start: Start, end: End) -> None:
        self._progress.forget(start.id)
        taken = self._taken.pop(start.id, None)
        if taken is not None:
            await self._rates.give_back(taken, end.usage.total_tokens if end.usage else 0)
        try:
            is_mine = await self._ledger.settle(start, end)
        except Exception as error:  # whatever it is, it is owed
            self._unsettled.append((start, end))
            said = error.message if isinstance(error, LingflashError) else type(error).__name__
            fields = {"generation": start.id, "message": said}
            log_event(logger, "settle_failed", fields, level=logging.WARNING)
            return
        if not is_mine:
            log_event(logger, "settled_before", {"generation": start.id}, level=logging.WARNING)

    async def home_of(self, caller: Caller, response_id: str) -> Home | None:
        """Where a stored response is."""
        return await self.database.read(lambda c: find_home(c, caller.key_hash, response_id))

    async def provider_keys(
        self, caller: Caller, provider: str, names: Sequence[str]
    ) -> Sequence[ProviderKey]:
        """Stored keys that may serve a model there for this caller, in their order."""
        return await self.vault.for_attempt(caller, provider, names)

    async def pins(self) -> Mapping[str, int]:
        """By endpoint, how many sessions would go on there now."""
        since = wall_ms() - round(self.config.pin_ttl_s * 1000)
        at = session.c.pinned_endpoint
        query = select(at, func.count()).where(session.c.used_at >= since).group_by(at)
        rows = await self.database.read(lambda c: c.execute(query).all())
        return {endpoint: count for endpoint, count in rows if endpoint is not None}

    def forget_key(self, hash: str) -> None:
        """A key was changed here: look it up anew with its next request."""
        self._known.pop(hash, None)

    async def _key(self, hash: str) -> Key | None:
        known = self._known.get(hash)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        try:
            key = await self.keys.get(hash)
        except NotFoundError:
            self._known.pop(hash, None)
            return None
        if len(self._known) >= _MAX_KEYS_KEPT:
            self._known.clear()
        self._known[hash] = (key, time.monotonic() + _KEY_TTL_S)
        return key

    async def _put_house(self) -> None:
        """The budget of all keys, as the settings have it now; what was spent stays."""
        values = {
            "limit_pico": self.config.budget_pico,
            "limit_reset": self.config.budget_reset,
        }
        put = self.database.upsert(budget, ["scope"], values)
        put = put.values(scope=HOUSE, include_byok=False, **values)
        await self.database.write(lambda connection: connection.execute(put))

    async def _beat(self) -> None:
        await self._leases.beat()
        await self._rates.check()
        await self._settle_rest()
        await self._leases.sweep()

    async def _settle_rest(self) -> None:
        """Write what the database did not take before, and let nobody stay in who was told no."""
        doubtful, self._doubtful = self._doubtful, []
        end = End(outcome="failed", status=503, error_code=CapacityError.code)
        for start in doubtful:
            try:
                await self._ledger.settle(start, end)  # nothing, if it never was in
            except LingflashError:
                self._doubtful.append(start)
        waiting, self._unsettled = self._unsettled, []
        for start, end in waiting:
            await self._settle(start, end)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done; its result is somebody else's, or nobody's."""
        self._tasks.add(task)
        task.add_done_callback(self._drop)

    def _drop(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # taken by whoever awaits it
