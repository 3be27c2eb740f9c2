"""Money is whole numbers; windows begin once, whatever the clock does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingflash.core.types import Usage
from lingflash.gateway.accounting import Price
from lingflash.gateway.accounts.admission import dollars
from lingflash.gateway.accounts.balance import Balance, next_reset, windows
from lingflash.gateway.accounts.config import RESETS, pico, usd


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("2026-11-30T23:59:59", "2026-12-01T00:00:00", (1, 0, 1)),  # a Tuesday
        ("2026-12-06T23:59:59", "2026-12-07T00:00:00", (1, 1, 0)),  # a Monday
        ("2026-12-31T23:59:59", "2027-01-01T00:00:00", (1, 0, 1)),
        ("2028-02-28T12:00:00", "2028-02-29T12:00:00", (1, 0, 0)),
        ("2026-12-07T00:00:00", "2026-12-07T23:59:59", (0, 0, 0)),
    ],
)
def test_windows_when_time_passes_then_begin_in_utc_and_on_monday(before, after, changed):
    pairs = zip(windows(ms(before)), windows(ms(after)), strict=True)
    assert tuple(b - a for a, b in pairs) == changed


@pytest.mark.parametrize(
    ("reset", "at"),
    [("daily", "2027-01-01"), ("weekly", "2027-01-04"), ("monthly", "2027-01-01"), (None, None)],
)
def test_reset_when_year_ends_then_the_next_window(reset, at):
    when = next_reset(reset, ms("2026-12-31T23:00:00"))
    assert (when and when.strftime("%Y-%m-%d")) == at


@given(st.integers(0, 4 * 10**12), st.sampled_from(RESETS))
def test_reset_then_is_when_the_window_changes(now, reset):
    when = next_reset(reset, now)
    assert when is not None
    at = int(when.timestamp() * 1000)
    number = RESETS.index(reset)
    assert windows(at)[number] == windows(now)[number] + 1 == windows(at - 1)[number] + 1


_AMOUNT = st.integers(0, 1000)
# What a request does: comes with a reservation, ends with a cost within it, or time goes anywhere.
_EVENT = st.one_of(
    st.tuples(st.just("admit"), _AMOUNT, _AMOUNT),
    st.tuples(st.just("settle"), st.integers(0, 100), st.integers(0, 100)),
    st.tuples(st.just("clock"), st.integers(-40 * 86_400_000, 40 * 86_400_000), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_EVENT, max_size=40),
    st.sampled_from([None, *RESETS]),
    st.booleans(),
    st.integers(0, 3000),
)
def test_budget_when_requests_and_clock_do_anything_then_never_exceeded_in_any_window(
    events, reset, include_byok, limit
):
    balance = Balance(scope="k", limit_pico=limit, limit_reset=reset, include_byok=include_byok)
    now, running, paid_own, paid_byok = ms("2026-11-30T12:00:00"), [], 0, 0
    by_window: dict[int, int] = {}
    for kind, a, b in events:
        if kind == "clock":
            now = max(0, now + a)
        balance.at(now)
        if kind == "admit" and balance.suffices(a, b):
            balance.reserve(a, b)
            running.append((a, b))
        if kind == "settle" and running:
            own, byok = running.pop(a % len(running))
            paid = own * a // 100, byok * b // 100
            balance.give_back(own, byok)
            balance.spend(*paid)
            paid_own, paid_byok = paid_own + paid[0], paid_byok + paid[1]
            window = 0 if reset is None else windows(balance.clock)[RESETS.index(reset)]
            counted = paid[0] + (paid[1] if include_byok else 0)
            by_window[window] = by_window.get(window, 0) + counted
        assert balance.remaining is not None
        assert balance.remaining >= 0
    assert all(spent <= limit for spent in by_window.values())
    assert (balance.spent_total, balance.byok_total) == (paid_own, paid_byok)
    assert (balance.reserved, balance.running) == (sum(a for a, _ in running), len(running))


def test_windows_when_clock_goes_back_then_none_begins_twice():
    balance = Balance(scope="k", limit_pico=100, limit_reset="daily").at(ms("2026-12-02T10:00:00"))
    balance.spend(100, 0)
    assert balance.at(ms("2026-12-01T10:00:00")).remaining == 0
    assert balance.at(ms("2026-12-02T23:00:00")).remaining == 0
    assert balance.at(ms("2026-12-03T00:00:00")).remaining == 100


@given(st.integers(-(10**19), 10**19))
def test_dollars_then_exact_text(amount):
    assert Decimal(dollars(amount)) * 10**12 == amount
    assert pico(dollars(amount)) == amount


@pytest.mark.parametrize("text", ["0.1", "0.3", "1e-12", "2.5", "999999.999999999999"])
def test_pico_when_people_write_dollars_then_exact(text):
    assert pico(text) == Decimal(text) * 10**12
    assert pico(float(text)) == Decimal(repr(float(text))) * 10**12
    assert usd(pico("0.1")) == 0.1


@given(
    st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**6),
    st.integers(0, 10**6),
)  # fmt: skip
def test_cost_when_usage_is_split_then_the_sum_costs_the_same(cached, new, a, b, c):
    price = Price(prompt=a, cache_read=b, completion=c)
    whole = price.cost(Usage(prompt_tokens=cached + new, cached_tokens=cached, completion_tokens=7))
    cold = price.cost(Usage(prompt_tokens=cached + new, cached_tokens=0, completion_tokens=7))
    assert whole.total + whole.cache_saving == cold.total
    assert replace(whole).total == new * a + cached * b + 7 * c
