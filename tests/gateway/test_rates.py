"""Requests and tokens per minute, in this process and in a real Redis, which is killed."""

from __future__ import annotations

import asyncio
import time

import pytest

from accounts_support import end_of, new_caller, opened, rows_of, served, start_of
from lingflash.core.errors import ConfigError, RateLimitError
from lingflash.gateway.accounts.rates import _REDIS_TIMEOUT_S, Rate, Rates


def requests(per_minute: int, key: str = "k") -> Rate:
    return Rate(key, "requests", per_minute, 1)


def tokens(per_minute: int, cost: int) -> Rate:
    return Rate("k", "tokens", per_minute, cost)


@pytest.fixture(params=["memory", "redis"])
async def rates(request):
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    rates = Rates(url, lambda: 1)
    yield rates
    await rates.close()


async def taken(rates: Rates, *wanted: Rate) -> bool:
    try:
        await rates.take(wanted)
    except RateLimitError:
        return False
    return True


async def test_requests_when_800_ask_at_once_then_exactly_the_limit(rates):
    done = await asyncio.gather(*(taken(rates, requests(500)) for _ in range(800)))
    assert sum(done) == 500
    assert await taken(rates, requests(500, "other"))


async def test_requests_when_over_the_limit_then_headers_say_when_to_come_again(rates):
    first = await rates.take([requests(1)])
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitError, match="1 requests a minute are allowed") as caught:
        await rates.take([requests(1)])
    assert 55 <= int(caught.value.headers["retry-after"]) <= 61
    assert caught.value.headers["x-ratelimit-reset-requests"].endswith("s")


async def test_tokens_when_request_took_less_then_the_rest_is_given_back(rates):
    first = await rates.take([tokens(100, 90)])
    assert not await taken(rates, tokens(100, 20))
    await rates.give_back(first, 30)
    assert await taken(rates, tokens(100, 70))
    assert not await taken(rates, tokens(100, 1))


async def test_tokens_when_refused_then_none_are_counted(rates):
    assert await taken(rates, tokens(100, 60))
    for _ in range(5):
        assert not await taken(rates, tokens(100, 60))
    assert await taken(rates, tokens(100, 40))


async def test_tokens_when_one_request_is_over_the_limit_then_says_what_to_do(rates):
    with pytest.raises(RateLimitError, match=r"may take 101 tokens, and 100 a minute"):
        await rates.take([tokens(100, 101)])


async def test_limits_when_the_second_refuses_then_the_first_gets_its_tokens_back(rates):
    await rates.take([requests(1)])
    assert not await taken(rates, tokens(100, 100), requests(1))
    assert await taken(rates, tokens(100, 100))


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_memory_when_the_clock_is_set_then_no_key_waits_longer_than_a_minute(
    monkeypatch, step_s
):
    rates = Rates(None, lambda: 1)
    await rates.take([requests(1)])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    assert await taken(rates, requests(1))
    with pytest.raises(RateLimitError) as caught:
        await rates.take([requests(1)])
    assert int(caught.value.headers["retry-after"]) <= 61


@pytest.mark.parametrize("url", ["localhost", "http://localhost", "redis://h:port/0"])
def test_redis_when_url_is_none_then_says_what_is_allowed(url):
    with pytest.raises(ConfigError, match="Redis URL"):
        Rates(url, lambda: 1)


async def test_redis_when_killed_then_limits_shrink_and_it_is_told_until_it_is_back(redis):
    rates = Rates(redis.url, lambda: 2)
    assert await taken(rates, requests(10))
    assert rates.degraded is None
    redis.kill()
    done = [await taken(rates, requests(10)) for _ in range(8)]
    assert sum(done) == 5
    assert rates.degraded is not None
    assert "1/2" in rates.degraded
    redis.start()
    async with asyncio.timeout(30):
        while rates.degraded:
            await rates.check()
            await asyncio.sleep(0.05)
    assert await taken(rates, requests(10))
    await rates.close()


async def test_redis_when_it_hangs_then_each_request_waits_for_it_once(redis):
    rates = Rates(redis.url, lambda: 4)
    assert await taken(rates, requests(400))
    redis.pause()
    started_s = time.monotonic()
    # Far more than may ask at once: those that wait for their turn see that it is gone.
    done = await asyncio.gather(*(taken(rates, requests(400)) for _ in range(300)))
    assert time.monotonic() - started_s < 3 * _REDIS_TIMEOUT_S
    assert sum(done) == 100
    redis.resume()
    await rates.close()


async def test_accounts_when_redis_is_killed_then_served_and_degraded(sqlite_url, redis):
    accounts = await opened(sqlite_url, redis=redis.url, lease_s=1.0)
    caller = await new_caller(accounts, rpm=4)
    admission = await accounts.admit(start_of(caller))
    assert admission.limit_headers["x-ratelimit-remaining-requests"] == "3"
    await accounts.settle(admission, end_of())
    assert accounts.degraded == []
    redis.kill()
    async with asyncio.timeout(30):
        while not any("Redis does not answer" in each for each in accounts.degraded):
            await asyncio.sleep(0.05)
    await served(accounts, start_of(caller), end_of())
    await accounts.close()


async def test_accounts_when_redis_is_not_there_at_the_start_then_served_and_degraded(sqlite_url):
    accounts = await opened(sqlite_url, redis="redis://127.0.0.1:1/0")
    caller = await new_caller(accounts, rpm=4, tpm=1000)
    await served(accounts, start_of(caller), end_of())
    assert any("Redis does not answer" in each for each in accounts.degraded)
    await accounts.close()


async def test_accounts_when_minute_is_full_then_429_and_a_row_each(sqlite_url):
    accounts = await opened(sqlite_url, rpm=3, free_rpm=2)
    caller = await new_caller(accounts)
    for is_free, allowed in ((True, 2), (False, 1)):
        done = await asyncio.gather(
            *(accounts.admit(start_of(caller, is_free=is_free)) for _ in range(4)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, RateLimitError) for each in done) == 4 - allowed
    rows = await rows_of(accounts)
    assert [row["status"] for row in rows] == [429] * 5
    await accounts.close()
