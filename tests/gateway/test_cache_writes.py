"""Tokens that a vendor wrote to its cache: counted by themselves, paid at a price of their own."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_support import gateway_tables
from gateway_upstream import ScriptedUpstream, usage_of
from lingflash.core.types import Usage
from lingflash.gateway.accounting import Price
from lingflash.gateway.accounts.leases import progress_to_row
from lingflash.gateway.accounts.rows import killed_end
from lingflash.gateway.config.load import read_config
from lingflash.gateway.relay.usage import read_usage

_COUNT = st.integers(0, 10**7)


@given(*[_COUNT] * 4, *[st.integers(0, 10**6)] * 4)
def test_cost_when_some_was_written_then_each_token_is_paid_once(
    new, cached, written, answer, prompt, read, write, completion
):
    price = Price(prompt=prompt, cache_read=read, cache_write=write, completion=completion)
    usage = Usage(
        prompt_tokens=new + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        completion_tokens=answer,
    )
    cost = price.cost(usage)
    assert cost.prompt == new * prompt + cached * read + written * write
    assert cost.total + cost.cache_saving == (new + cached + written) * prompt + answer * completion


@pytest.mark.parametrize(
    ("dialect", "given", "written"),
    [
        ("chat", {"prompt_tokens": 9, "completion_tokens": 1,
                  "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}}, 3),
        ("chat", {"prompt_tokens": 9, "completion_tokens": 1,
                  "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 3}}, 1),
        ("chat", {"prompt_tokens": 9, "completion_tokens": 1,
                  "prompt_tokens_details": {"cache_write_tokens": -3}}, 0),
        ("responses", {"input_tokens": 9, "output_tokens": 1,
                       "input_tokens_details": {"cache_write_tokens": 3}}, 3),
        ("messages", {"input_tokens": 4, "cache_read_input_tokens": 2, "output_tokens": 1,
                      "cache_creation_input_tokens": 3}, 3),
    ],
)  # fmt: skip
def test_usage_when_it_tells_what_was_written_then_read(dialect, given, written):
    usage = read_usage(dialect, given)
    assert (usage.prompt_tokens, usage.cache_write_tokens) == (9, written)


@pytest.mark.parametrize("write", [None, "0.125", "0.05"])
def test_price_when_it_has_none_for_writes_then_that_of_the_prompt(write):
    tables = gateway_tables({"One": "http://127.0.0.1:9/v1"})
    price = tables["model"][0]["endpoint"][0]["price"][0]
    price |= {} if write is None else {"cache_write": Decimal(write)}
    config = read_config(tables, {"HOUSE_KEY": "k"}, file="f", folder=None)
    (_, read), *_ = next(iter(config.catalog.endpoints.values())).prices
    assert read.cache_write == int(Decimal(write or "0.10") * 10**6)


def test_messages_when_a_prompt_is_written_then_reserved_and_paid_at_its_price(
    make_gateway, monkeypatch
):
    def usage(dialect, count):
        return {**usage_of(dialect, count), "cache_creation_input_tokens": 100}

    def dear(tables):
        tables["model"][0]["endpoint"][0]["price"][0]["cache_write"] = Decimal("1.25")
        return tables

    monkeypatch.setattr("gateway_upstream.usage_of", usage)
    gateway = make_gateway({"One": ScriptedUpstream(words=5)}, tables=dear)
    for is_streamed in (False, True):
        gateway.post("/v1/messages", stream=is_streamed)
    for start, end in gateway.accounts.rows:
        assert end.usage.cache_write_tokens == 100
        assert end.cost.prompt == 6 * 100_000 + 4 * 20_000 + 100 * 1_250_000
        assert end.cost.cache_saving == 4 * 80_000 - 100 * 1_150_000
        assert start.reserve_pico == start.prompt_tokens * 1_250_000 + 64 * 300_000


def test_progress_when_a_process_is_killed_then_what_was_written_is_billed():
    usage = Usage(prompt_tokens=9, cached_tokens=2, cache_write_tokens=3, completion_tokens=1)
    cost = Price(prompt=1, cache_write=2).cost(usage)
    progress = progress_to_row(usage, cost, None, cost)
    assert killed_end({"progress": progress}, 5).usage == usage
    progress["usage"].pop()  # as the version before wrote it
    assert killed_end({"progress": progress}, 5).usage.cache_write_tokens == 0
