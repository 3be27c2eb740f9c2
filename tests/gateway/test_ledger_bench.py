"""The benchmark of reservations and settlements runs, and checks its own sums."""

from __future__ import annotations

from lingflash.bench.over_http.ledger import measure_ledger


async def test_measure_ledger_then_every_number_and_the_books_are_right(database_url):
    rates = await measure_ledger(database_url, num_clients=4, num_requests=5, repeats=2)
    counts = (len(rates.requests_per_s), len(rates.reserve_ms), len(rates.settle_ms))
    assert counts == (2, 5, 5)
    assert min(*rates.requests_per_s, *rates.reserve_ms, *rates.settle_ms) > 0
