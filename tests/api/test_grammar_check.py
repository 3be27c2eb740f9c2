"""Grammars that ask for too much end in their own process; the others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from lingflash.api.answer.fair_slots import FairSlots
from lingflash.api.answer.grammar_check import GrammarChecker
from lingflash.core.errors import InvalidRequestError, QueueFullError
from lingflash.core.types import GrammarSpec
from lingflash.structured.compile_client import GrammarTooLargeError
from toy_text import toy_tokenizer

GOOD = GrammarSpec("regex", "[ab]+")


def too_long(number=0):
    """Minutes of work in a hundred bytes."""
    schema = {"type": "integer", "multipleOf": 100_000_007 + 2 * number}
    return GrammarSpec("json_schema", json.dumps(schema))


def good(number):
    schema = {"type": "object", "properties": {f"a{number}": {"type": "integer"}}}
    return GrammarSpec("json_schema", json.dumps(schema))


@pytest.fixture
async def checker():
    made = GrammarChecker(toy_tokenizer())
    yield made
    made.close()


def children_of(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen within ten seconds")


async def test_check_when_a_grammar_takes_too_long_then_refused_and_its_process_gone(checker):
    assert await checker.check(GOOD) == GOOD
    start = time.monotonic()
    with pytest.raises(GrammarTooLargeError, match=r"response_format takes over 1 s") as caught:
        await checker.check(too_long(), "response_format")
    assert time.monotonic() - start < 10
    assert caught.value.param == "response_format"
    await until(lambda: not children_of(checker.server.pid))
    assert await checker.check(good(1)) == good(1)


async def test_check_when_cancelled_then_its_process_ends(checker):
    await checker.check(GOOD)
    task = asyncio.create_task(checker.check(too_long()))
    await until(lambda: children_of(checker.server.pid))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not children_of(checker.server.pid))


async def test_check_when_one_owner_asks_for_much_then_another_does_not_wait_for_it(checker):
    await checker.check(GOOD)
    hostile = [asyncio.create_task(checker.check(too_long(i), owner="a:")) for i in range(12)]
    await asyncio.sleep(0.05)
    for i in range(8):
        assert await checker.check(good(i), owner="b:") == good(i)
    assert sum(task.done() for task in hostile) < len(hostile)
    outcomes = await asyncio.gather(*hostile, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {GrammarTooLargeError, QueueFullError}


async def test_check_when_the_server_was_killed_then_another_is_started(checker):
    await checker.check(GOOD)
    os.kill(checker.server.pid, signal.SIGKILL)
    assert await checker.check(good(2)) == good(2)


async def test_check_when_known_then_for_its_owner_alone(checker):
    await checker.check(GOOD, owner="a:")
    assert checker.known(GOOD, "a:") == GOOD
    assert checker.known(GOOD, "b:") is None
    bad = GrammarSpec("regex", "(")
    with pytest.raises(InvalidRequestError):
        await checker.check(bad, owner="a:")
    with pytest.raises(InvalidRequestError):
        checker.known(bad, "a:")
    assert checker.known(bad, "b:") is None


async def test_close_when_done_then_no_process_is_left(checker):
    await checker.check(GOOD)
    pid = checker.server.pid
    checker.close()
    assert not Path(f"/proc/{pid}").exists()


async def test_check_when_there_is_no_tokenizer_then_as_far_as_that_goes():
    made = GrammarChecker(None)
    try:
        assert await made.check(GOOD) == GOOD
        with pytest.raises(InvalidRequestError):
            await made.check(GrammarSpec("regex", "("))
    finally:
        made.close()


async def test_slots_when_owners_compete_then_they_take_turns_and_none_has_all():
    slots = FairSlots(3, 2, 10, "things")
    order = []

    async def use(owner):
        await slots.acquire(owner)
        order.append(owner)

    for _ in range(2):
        await use("a")
    waiting = [asyncio.create_task(use("a")) for _ in range(4)]
    await asyncio.sleep(0)
    assert order == ["a", "a"]  # a place is free, but not for a
    await use("b")
    others = [asyncio.create_task(use(owner)) for owner in "bcc"]
    await asyncio.sleep(0)
    assert not slots.try_acquire("d")
    for owner in "aab":
        slots.release(owner)
    await asyncio.sleep(0.01)
    assert order[:3] == ["a", "a", "b"]
    assert sorted(order[3:]) == ["a", "b", "c"]
    for task in [*waiting, *others]:
        task.cancel()


async def test_slots_when_too_many_of_one_owner_wait_then_refused_and_leaving_makes_room():
    slots = FairSlots(1, 1, 1, "things")
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("a"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="1 things already"):
        await slots.acquire("a")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    slots.release("a")
    assert slots.try_acquire("b")
