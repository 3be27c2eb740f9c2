"""Admissions and settlements: many to a transaction, each exactly once.

Requests that ask while a transaction runs wait for the next one, which takes all of them: it locks
the budgets that they touch, in one order, decides in memory, and writes what changed. So a hot key
costs a few statements for all of its requests instead of a lock and a commit for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection

from lingflash.core.errors import CapacityError, LingflashError
from lingflash.gateway.accounting import End, Session, Start
from lingflash.gateway.accounts.admission import HOUSE, KeyState, refusal_of
from lingflash.gateway.accounts.balance import COUNTERS, Balance, balance_of
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.rows import clean, generation_row, start_to_row
from lingflash.gateway.accounts.sessions import SESSION_COLUMNS, SessionState
from lingflash.httpd.error_map import http_error
from lingflash.store.database import Database
from lingflash.store.tables import api_key, budget, generation, reservation, session

_MAX_BATCH = 256
_Result = LingflashError | Session | bool


@dataclass(slots=True)
class _Job:
    """A request that comes (no end yet), goes, or was refused before it got here.

    Args:
        done: the session of one that is in; an error for one that is not; whether it was settled.
    """

    start: Start
    end: End | None
    is_refused: bool
    created_at: int
    done: asyncio.Future[_Result]


@dataclass(slots=True)
class _Books:
    """What one transaction has read and will write."""

    keys: dict[str, KeyState]
    balances: dict[str, Balance]
    sessions: dict[tuple[str, str], SessionState]
    taken: dict[str, tuple[int, int, int]]  # reservations that this transaction ended
    reservations: list[dict[str, Any]] = field(default_factory=list[Any])
    generations: list[dict[str, Any]] = field(default_factory=list[Any])
    touched: set[tuple[str, str]] = field(default_factory=set[Any])

    def session_of(self, start: Start) -> SessionState:
        """A request's session as it is now; a new one has no turns."""
        key_hash, id = name = _session_key(start)
        return self.sessions.setdefault(name, SessionState(key_hash=key_hash, id=id))


class Ledger:
    """The one writer of budgets, reservations, sessions and generations in this process.

    Args:
        process_id: whose reservations these are.
        now_ms: the clock, milliseconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        config: AccountsConfig,
        process_id: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._config = config
        self._process_id = process_id
        self._now_ms = now_ms
        self._waiting: list[_Job] = []
        self._writer: asyncio.Task[None] | None = None
        self._update_budget, names = database.compiled(_UPDATE_BUDGET)
        self._budget_values = attrgetter(*(name.removeprefix(_NEW) for name in names))
        self._put_session = database.upsert(session, SESSION_COLUMNS[:2], SESSION_COLUMNS[2:])

    async def admit(self, start: Start) -> LingflashError | Session:
        """Reserve, and read the session; an error says why not, and then its row is written.

        Raises:
            CapacityError: the database failed; whether anything is reserved is not known.
        """
        result = await self._do(start, None, False)
        assert not isinstance(result, bool)  # what settle gets
        return result

    async def refuse(self, start: Start, error: LingflashError) -> None:
        """Write the row of a request that was refused before it got here."""
        await self._do(start, _refused_end(error), True)

    async def settle(self, start: Start, end: End) -> bool:
        """Pay, write the row; False if somebody else had done it."""
        return bool(await self._do(start, end, False))

    async def _do(self, start: Start, end: End | None, is_refused: bool) -> _Result:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(start, end, is_refused, self._now_ms(), done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="ledger")
        return await done

    async def close(self) -> None:
        """Wait for what was asked."""
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write_all(self) -> None:
        while self._waiting:
            jobs, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
            try:
                await self._write(jobs)
            except Exception:  # whatever it is, it is seen again below
                # One of them may be to blame, and the others need not suffer. Or the connection
                # broke, maybe after the commit: what is written already is not written again.
                for job in jobs:
                    try:
                        await self._write([job], is_again=True)
                    except Exception as error:  # who waits for the job gets it
                        _fail(job, error)

    async def _write(self, jobs: Sequence[_Job], *, is_again: bool = False) -> None:
        results = await self._database.write(
            lambda connection: self._run(connection, jobs, is_again)
        )
        for job, result in zip(jobs, results, strict=True):
            if not job.done.done():
                job.done.set_result(result)

    def _run(self, connection: Connection, jobs: Sequence[_Job], is_again: bool) -> list[_Result]:
        books = self._open(connection, jobs)
        # Read under the locks: a first try that still commits has done so.
        written = _written(connection, jobs) if is_again else {}
        results: list[_Result] = []
        for job in jobs:
            if job.start.id in written:
                results.append(self._result_of(books, job, is_in=written[job.start.id]))
            elif job.end is None:
                results.append(self._admit(books, job))
            else:
                results.append(self._settle(books, job, job.end))
        self._save(connection, books)
        return results

    def _open(self, connection: Connection, jobs: Sequence[_Job]) -> _Books:
        """Lock and read. Budgets come first, in their order: whoever has those has the rest."""
        scopes = {HOUSE, *(job.start.caller.key_hash for job in jobs)}
        rows = connection.execute(_LOCK_BUDGETS, {"scopes": sorted(scopes)}).mappings().all()
        now = self._now_ms()
        balances = {row["scope"]: balance_of(row).at(now) for row in rows}
        keys = {
            row["scope"]: KeyState(
                disabled=row["key_disabled"],
                expires_at=row["key_expires_at"],
                concurrency=row["key_concurrency"] or self._config.concurrency,
            )
            for row in rows
            if row["key_hash"] is not None
        }
        ended = [job.start for job in jobs if job.end is not None and not job.is_refused]
        names = {_session_key(job.start) for job in jobs if not job.is_refused}
        taken: dict[str, tuple[int, int, int]] = {}
        sessions: dict[tuple[str, str], SessionState] = {}
        if ended:
            removed = connection.execute(_END, {"ids": [start.id for start in ended]})
            taken = {row[0]: (row[1], row[2], row[3]) for row in removed}
        if names:
            found = connection.execute(
                _SESSIONS, {"keys": [key for key, _ in names], "ids": [id for _, id in names]}
            )
            states = (SessionState(**row) for row in found.mappings())
            sessions = {(each.key_hash, each.id): each for each in states}
        return _Books(keys, balances, sessions, taken)

    def _result_of(self, books: _Books, job: _Job, *, is_in: bool) -> _Result:
        """What the first try of a job gave, which was committed and not heard of."""
        start = job.start
        if job.end is not None:
            return True
        if is_in:
            return books.session_of(start).seen(self._now_ms(), self._config.pin_ttl_s)
        key, layers = books.keys.get(start.caller.key_hash), self._layers(books, start)
        error = refusal_of(start, key, layers, self._config, self._now_ms())
        return error or CapacityError("The database failed while the request was refused.")

    def _admit(self, books: _Books, job: _Job) -> LingflashError | Session:
        start = job.start
        layers = self._layers(books, start)
        key = books.keys.get(start.caller.key_hash)
        error = refusal_of(start, key, layers, self._config, self._now_ms())
        if error is not None:
            end = _refused_end(error)
            books.generations.append(
                generation_row(start, end, step=0, parts=None, created_at=job.created_at)
            )
            return error
        for layer in layers:
            layer.reserve(start.reserve_pico, start.byok_reserve_pico)
        if start.is_free and not start.is_byok:
            layers[-1].free_used += 1
        books.reservations.append(
            {
                "id": start.id,
                "process_id": self._process_id,
                "key_hash": start.caller.key_hash,
                "reserved": start.reserve_pico,
                "reserved_byok": start.byok_reserve_pico,
                "start": start_to_row(start),
                "created_at": job.created_at,
            }
        )
        state = books.session_of(start)
        return state.seen(self._now_ms(), self._config.pin_ttl_s)

    def _settle(self, books: _Books, job: _Job, end: End) -> bool:
        start = job.start
        step, parts, created_at = 0, None, job.created_at
        if not job.is_refused:
            held = books.taken.pop(start.id, None)
            if held is None:
                return False
            own, byok, created_at = held
            for layer in self._layers(books, start):
                layer.give_back(own, byok)
                layer.spend(end.cost.total, end.upstream_cost.total if end.byok_id else 0)
            state = books.session_of(start)
            parts = state.take(start, end, job.created_at)
            step = state.steps
            books.touched.add(_session_key(start))
        books.generations.append(
            generation_row(start, end, step=step, parts=parts, created_at=created_at)
        )
        return True

    def _layers(self, books: _Books, start: Start) -> list[Balance]:
        """The budgets that a request is paid from, the key's own last."""
        scopes = (HOUSE, start.caller.key_hash)
        return [books.balances[scope] for scope in scopes if scope in books.balances]

    def _save(self, connection: Connection, books: _Books) -> None:
        if books.balances:
            # Compiled once: these are most of the values that a request writes.
            rows = [self._budget_values(each) for _, each in sorted(books.balances.items())]
            connection.exec_driver_sql(self._update_budget, rows)
        if books.reservations:
            connection.execute(_RESERVE, books.reservations)
        if books.touched:
            rows = [books.sessions[name].row() for name in sorted(books.touched)]
            connection.execute(self._put_session, rows)
        if books.generations:
            connection.execute(_WRITE_ROW, books.generations)


# Statements are made once: making one costs more than SQLite takes to run it.
_KEY_COLUMNS = (
    api_key.c.hash.label("key_hash"),
    api_key.c.disabled.label("key_disabled"),
    api_key.c.expires_at.label("key_expires_at"),
    api_key.c.concurrency.label("key_concurrency"),
)
_LOCK_BUDGETS = (
    select(budget, *_KEY_COLUMNS)
    .join_from(budget, api_key, api_key.c.hash == budget.c.scope, isouter=True)
    .where(budget.c.scope.in_(bindparam("scopes", expanding=True)))
    .order_by(budget.c.scope)
    .with_for_update(of=budget)
)
_END = (
    delete(reservation)
    .where(reservation.c.id.in_(bindparam("ids", expanding=True)))
    .returning(
        reservation.c.id,
        reservation.c.reserved,
        reservation.c.reserved_byok,
        reservation.c.created_at,
    )
)
# Two lists and not one of pairs, for which SQLite would read the whole table.
_SESSIONS = select(session).where(
    session.c.key_hash.in_(bindparam("keys", expanding=True)),
    session.c.id.in_(bindparam("ids", expanding=True)),
)
_RESERVED = select(reservation.c.id).where(reservation.c.id.in_(bindparam("ids", expanding=True)))
_WITH_ROWS = select(generation.c.id).where(generation.c.id.in_(bindparam("ids", expanding=True)))
_RESERVE = insert(reservation)
_WRITE_ROW = insert(generation)
_NEW = "new_"  # a parameter may not be called as the column that it sets
_UPDATE_BUDGET = (
    update(budget)
    .where(budget.c.scope == bindparam(f"{_NEW}scope"))
    .values({name: bindparam(f"{_NEW}{name}") for name in COUNTERS})
)


def _written(connection: Connection, jobs: Sequence[_Job]) -> dict[str, bool]:
    """Requests whose job was done before: whether they are in, or else have their row."""
    ids = {"ids": [job.start.id for job in jobs]}
    coming = {job.start.id for job in jobs if job.end is None}
    found = dict.fromkeys(connection.execute(_WITH_ROWS, ids).scalars(), False)
    held = connection.execute(_RESERVED, ids).scalars()
    return found | {id: True for id in held if id in coming}


def _session_key(start: Start) -> tuple[str, str]:
    return start.caller.key_hash, clean(start.session_id, 256)


def _refused_end(error: LingflashError) -> End:
    return End(outcome="refused", status=http_error(error).status, error_code=error.code)


def _fail(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)
