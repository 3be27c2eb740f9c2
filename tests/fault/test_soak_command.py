"""`ling bench soak`, short, at a real `ling serve`: whoever leaves, nothing is left."""

from __future__ import annotations

import pytest

from lingflash.bench.over_http.soak import run_soak
from lingflash.core.config import BUNDLED_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("minutes", "serve_flags"),
    [
        pytest.param(0.5, [], id="defaults"),
        # Few slots and a short queue: requests wait, and some are refused.
        pytest.param(0.25, ["--max-num-seqs=4", "--max-num-waiting=8"], id="crowded"),
    ],
)
async def test_soak_when_clients_leave_and_misbehave_then_nothing_is_left(minutes, serve_flags):
    assert await run_soak(
        url=None,
        model=BUNDLED_MODEL,
        api_key=None,
        minutes=minutes,
        num_clients=32,
        seed=1,
        serve_flags=serve_flags,
        out=None,
        allow_dirty=False,
    )
