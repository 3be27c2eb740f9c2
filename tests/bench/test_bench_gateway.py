"""`ling bench gateway`: a real gateway and a vendor of its own, every answer checked."""

import json

import pytest

from lingflash.bench.over_http.gateway import run_gateway
from lingflash.core.errors import ConfigError

SMALL = {
    "num_clients": 3, "num_tokens": 10, "step_ms": 1.0, "num_first": 2, "num_rounds": 1,
    "num_memory": 0, "out": None, "allow_dirty": True,
}  # fmt: skip


@pytest.mark.slow
async def test_gateway_when_run_then_direct_and_through_are_both_measured(tmp_path):
    out = tmp_path / "gateway.json"
    await run_gateway(**SMALL | {"out": out, "num_memory": 100})
    record = json.loads(out.read_text())
    for name in ("first token, one client", "first token, 3 clients", "tokens, 3 clients"):
        assert {f"{name}, direct", f"{name}, through"} <= set(record["results"])
    assert len(record["targets"]) == 6


@pytest.mark.parametrize(
    "change",
    [{"num_clients": 0}, {"num_tokens": 0}, {"step_ms": 0.0}, {"num_first": 1}, {"num_memory": 9}],
)
async def test_gateway_when_a_flag_is_out_of_range_then_it_is_named(change):
    with pytest.raises(ConfigError, match="--"):
        await run_gateway(**SMALL | change)
