"""A connection that breaks after the database has committed: nothing is done twice or left over."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import pytest

from accounts_support import end_of, new_caller, num_reservations, opened, rows_of, start_of
from lingflash.core.errors import CapacityError, InsufficientCreditsError

_COMMIT, _UPDATED = b"COMMIT;\0", b"UPDATE "


class CuttingProxy:
    """In front of PostgreSQL: it can let a commit of the ledger be done, and lose the answer.

    Args:
        cuts: how many are still to be lost so; after each the next connection works.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self.cuts = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return self._to._replace(netloc=f"{self._to.username}@127.0.0.1:{port}").geturl()

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._to.port)
        self._writers |= {writer, server_writer}
        is_ledgers = is_cut = False

        async def down() -> None:
            nonlocal is_ledgers
            while data := await server_reader.read(65536):
                if is_cut:
                    break  # the commit is done; its answer is lost
                # Only the ledger's transactions update rows: the lease inserts, others read.
                is_ledgers = is_ledgers or _UPDATED in data
                writer.write(data)

        async def up() -> None:
            nonlocal is_ledgers, is_cut
            while data := await reader.read(65536):
                if self.cuts and is_ledgers and _COMMIT in data:
                    self.cuts -= 1
                    is_cut = True
                if _COMMIT in data:
                    is_ledgers = False
                server_writer.write(data)

        tasks = [asyncio.create_task(each()) for each in (down, up)]
        with contextlib.suppress(OSError):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, server_writer):
            each.transport.abort()
            self._writers.discard(each)


@pytest.fixture
async def proxied(postgres):
    """Accounts on a PostgreSQL behind a proxy that can cut."""
    proxy = CuttingProxy(postgres.new_database())
    accounts = await opened(await proxy.start(), lease_s=600)
    yield accounts, proxy
    await accounts.close()
    await proxy.stop()


async def balance_of(accounts, caller):
    return (await accounts.keys.get(caller.key_hash)).balance


@pytest.mark.parametrize("count", [1, 5])
async def test_admit_when_cut_after_the_commit_then_in_once(proxied, count):
    accounts, proxy = proxied
    caller = await new_caller(accounts, limit="1")
    proxy.cuts = 1
    admissions = await asyncio.gather(*(accounts.admit(start_of(caller)) for _ in range(count)))
    assert not proxy.cuts
    balance = await balance_of(accounts, caller)
    assert (balance.reserved, balance.running) == (1000 * count, count)
    for each in admissions:
        await accounts.settle(each, end_of())
    balance = await balance_of(accounts, caller)
    assert (balance.reserved, balance.running) == (0, 0)
    assert await num_reservations(accounts) == 0
    assert len(await rows_of(accounts)) == count


@pytest.mark.parametrize("count", [1, 5])
async def test_settle_when_cut_after_the_commit_then_paid_once(proxied, count, caplog):
    accounts, proxy = proxied
    caller = await new_caller(accounts)
    admissions = [await accounts.admit(start_of(caller)) for _ in range(count)]
    proxy.cuts = 1
    await asyncio.gather(*(accounts.settle(each, end_of()) for each in admissions))
    assert not proxy.cuts
    balance = await balance_of(accounts, caller)
    assert (balance.reserved, balance.running) == (0, 0)
    assert balance.spent_total == 2_500_000 * count
    assert len(await rows_of(accounts)) == count
    assert not [each for each in caplog.records if each.msg == "settled_before"]


@pytest.mark.parametrize("key", [{"limit": "0"}, {"allowed_models": []}])
async def test_refusal_when_cut_after_the_commit_then_one_row_and_the_reason(proxied, key):
    accounts, proxy = proxied
    caller = await new_caller(accounts, **key)
    proxy.cuts = 1
    error = InsufficientCreditsError if "limit" in key else Exception
    with pytest.raises(error) as caught:
        await accounts.admit(start_of(caller))
    assert not proxy.cuts
    assert not isinstance(caught.value, CapacityError)
    assert [each["outcome"] for each in await rows_of(accounts)] == ["refused"]


async def test_admit_when_cut_twice_then_given_back_once_the_database_answers(proxied):
    accounts, proxy = proxied
    caller = await new_caller(accounts, limit="1")
    proxy.cuts = 2  # the second look for what was committed is lost, too
    with pytest.raises(CapacityError):
        await accounts.admit(start_of(caller))
    assert await num_reservations(accounts) == 1
    await accounts._beat()
    assert await num_reservations(accounts) == 0
    balance = await balance_of(accounts, caller)
    assert (balance.reserved, balance.running) == (0, 0)
    assert [each["outcome"] for each in await rows_of(accounts)] == ["failed"]
