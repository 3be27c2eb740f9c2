"""A gateway process as the accounts see it: clients that ask at once, until it is killed.

Writes a line for everything that it did, right after it, for the test that kills it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random

from accounts_support import PRICE, end_of, start_of
from lingflash.core.errors import LingflashError
from lingflash.core.types import Usage
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.service import open_accounts


async def main(options: argparse.Namespace) -> None:
    accounts = await open_accounts(
        AccountsConfig(database=options.database, redis=options.redis, lease_s=3.0, progress_s=0.05)
    )
    caller = await accounts.authenticate(options.key)
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words: object) -> None:
        os.write(log, (" ".join(map(str, words)) + "\n").encode())

    async def client(number: int) -> None:
        rng = random.Random(number + options.seed)
        for _ in range(options.requests):
            start = start_of(caller, reserve_pico=options.reserve, session_id=f"s{number % 7}")
            try:
                admission = await accounts.admit(start)
            except LingflashError as error:
                say("refused", start.id, error.code)
                continue
            say("admitted", start.id)
            tokens = 0
            for _ in range(rng.randrange(1, options.frames + 1)):
                tokens += 10
                usage = Usage(prompt_tokens=100, cached_tokens=0, completion_tokens=tokens)
                accounts.note_progress(admission, usage, PRICE.cost(usage))
                say("noted", start.id, PRICE.cost(usage).total)
                if number < options.held:
                    say("held", start.id)
                    await asyncio.Event().wait()  # until it is killed
                await asyncio.sleep(0.01)
            end = end_of(100, tokens)
            say("served", start.id, end.cost.total)
            await accounts.settle(admission, end)
            say("settled", start.id, end.cost.total)

    say("ready")
    await asyncio.gather(*(client(number) for number in range(options.clients)))
    await accounts.close()
    say("done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--database")
    parser.add_argument("--redis")
    parser.add_argument("--key")
    parser.add_argument("--log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--held", type=int, default=0, help="clients whose stream does not end")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--reserve", type=int, default=40_000_000)
    asyncio.run(main(parser.parse_args()))
