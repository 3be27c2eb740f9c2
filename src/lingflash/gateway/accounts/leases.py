"""Which gateways live, and what the dead ones left.

Every gateway counts up its beat in the table `process`. Another that has watched a beat stand still
for the time of a lease, by its own monotonic clock, takes the process for dead: no clock of one
machine is compared with that of another, and none that is set back or forth kills anybody. What a
dead process had admitted is settled as killed, by what was last written of its streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.engine import Connection

from lingflash.core.errors import LingflashError
from lingflash.core.log import log_event
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Attempt, Cost
from lingflash.gateway.accounts.admission import wall_ms
from lingflash.gateway.accounts.ledger import Ledger
from lingflash.gateway.accounts.rows import killed_end, progress_to_row, start_of_row
from lingflash.store.database import Database
from lingflash.store.tables import process, reservation

logger = logging.getLogger("lingflash.gateway")

_BEATS_PER_LEASE = 4


class Progress:
    """What streams have made that run in this process; written to their reservations in turn."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed: dict[str, tuple[Usage, Cost, Attempt | None, Cost]] = {}

    def note(
        self, id: str, usage: Usage, cost: Cost, attempt: Attempt | None, upstream_cost: Cost
    ) -> None:
        """Remember the latest."""
        self._changed[id] = (usage, cost, attempt, upstream_cost)

    def forget(self, id: str) -> None:
        """A request is settled."""
        self._changed.pop(id, None)

    async def write(self) -> None:
        """Write what has changed since the last time.

        Raises:
            CapacityError: the database failed; it is tried again with the next.
        """
        changed, self._changed = self._changed, {}
        if not changed:
            return
        rows = [
            {"of_id": id, "new": progress_to_row(*noted)} for id, noted in sorted(changed.items())
        ]
        try:
            await self._database.write(lambda c: c.execute(_UPDATE_PROGRESS, rows))
        except BaseException:
            self._changed = changed | self._changed
            raise


class Leases:
    """This process's beat, and the watch over the others'.

    Args:
        lease_s: a beat that stands still for so long is a dead process's.
    """

    def __init__(self, database: Database, ledger: Ledger, id: str, lease_s: float) -> None:
        self._database = database
        self._ledger = ledger
        self._id = id
        self._lease_s = lease_s
        # Of every other process the beat that was seen, and since when, monotonic.
        self._seen: dict[str, tuple[int | None, float]] = {}
        self.num_processes = 1

    @property
    def beat_s(self) -> float:
        """Between two beats."""
        return self._lease_s / _BEATS_PER_LEASE

    async def beat(self) -> None:
        """Say that this process lives; also after another took it for dead."""
        put = self._database.upsert(process, ["id"], {"beat": process.c.beat + 1})
        put = put.values(id=self._id, beat=1)
        await self._database.write(lambda connection: connection.execute(put))

    async def sweep(self) -> int:
        """Settle what dead processes left; returns how many requests that were."""
        beats = await self._database.read(_beats)
        beats.pop(self._id, None)
        now = time.monotonic()
        self._seen = {
            id: self._seen[id]
            if self._seen.get(id, (None, 0))[0] == count and id in self._seen
            else (count, now)
            for id, count in beats.items()
        }
        dead = [id for id, (_, since) in self._seen.items() if now - since >= self._lease_s]
        self.num_processes = 1 + len(beats) - len(dead)
        return sum([await self._bury(id, beats[id]) for id in dead])

    async def _bury(self, id: str, beat: int | None) -> int:
        """Settle a dead process's requests, then take its name off the list."""
        swept = await self.settle_all_of(id)
        gone = delete(process).where(process.c.id == id, process.c.beat == beat)
        await self._database.write(lambda connection: connection.execute(gone))
        log_event(logger, "process_buried", {"process": id, "requests": swept})
        return swept

    async def settle_all_of(self, id: str) -> int:
        """Settle every reservation of a process as killed."""
        query = select(reservation).where(reservation.c.process_id == id)
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        now = wall_ms()
        settled = await asyncio.gather(
            *(
                self._ledger.settle(
                    start_of_row(row), killed_end(row, max(0, now - row["created_at"]))
                )
                for row in rows
            )
        )
        return sum(settled)

    async def leave(self) -> None:
        """This process ends in order; whatever it still had is settled now."""
        await self.settle_all_of(self._id)
        gone = delete(process).where(process.c.id == self._id)
        await self._database.write(lambda connection: connection.execute(gone))


def _beats(connection: Connection) -> dict[str, int | None]:
    """Of every process its beat; None for one that has requests and is not on the list."""
    owners = connection.execute(select(reservation.c.process_id).distinct()).scalars()
    beats: dict[str, int | None] = dict.fromkeys(owners)
    for id, count in connection.execute(select(process.c.id, process.c.beat)):
        beats[id] = count
    return beats


class Every:
    """Something that is done again and again in the background; a failure is logged and kept.

    Args:
        work: a coroutine function.
    """

    def __init__(self, name: str, interval_s: float, work: Any) -> None:
        self.name = name
        self.failure: str | None = None
        self._interval_s = interval_s
        self._work = work
        self._task = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._work()
                self.failure = None
            except Exception as error:  # what is done again and again must not end
                fields = {"error": type(error).__name__}
                if isinstance(error, LingflashError):
                    fields["message"] = error.message
                if self.failure is None:
                    failed = {"what": self.name, **fields}
                    log_event(logger, "background_failed", failed, level=logging.WARNING)
                self.failure = fields.get("message", f"{self.name} fails: {fields['error']}.")

    async def stop(self) -> None:
        """End it, wherever it is."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


_UPDATE_PROGRESS = (
    update(reservation)
    .where(reservation.c.id == bindparam("of_id"))
    .values(progress=bindparam("new", type_=reservation.c.progress.type))
)


def new_process_id() -> str:
    """A name that no process has had."""
    return secrets.token_hex(16)
