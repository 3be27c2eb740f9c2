"""`ling bench cluster`, small: real servers, a real gateway, and the simulator beside them."""

from __future__ import annotations

import json

import pytest

from lingflash.bench.over_http.cluster import run_cluster
from lingflash.cluster.simulation.sessions import read_sessions
from lingflash.core.errors import ConfigError


@pytest.mark.slow
async def test_cluster_bench_when_two_replicas_serve_then_they_compute_what_one_does(tmp_path):
    await run_cluster(
        num_conversations=3, max_turns=3, max_num_seqs=4, balances=["belief"], num_first=0, seed=0,
        trace_out=tmp_path / "trace.jsonl", out=tmp_path / "cluster.json", allow_dirty=True,
    )  # fmt: skip
    record = json.loads((tmp_path / "cluster.json").read_text())
    derived = record["derived"]
    assert derived["one replica: computed tokens"] < derived["one replica: prompt tokens"]
    assert derived["belief: simulated"] == pytest.approx(derived["belief: computed tokens"], 0.05)
    assert all(target["met"] for target in record["targets"]), record["targets"]
    assert [len(each.turns) for each in read_sessions(tmp_path / "trace.jsonl")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_conversations": 1}, "--conversations is 1"),
        ({"balances": ["luck"]}, "--balance is luck"),
        ({"num_first": 1}, "--first-tokens is 1"),
    ],
)
async def test_cluster_bench_when_a_flag_is_wrong_then_it_says_so(change, said):
    flags = {"num_conversations": 3, "max_turns": 3, "max_num_seqs": 4, "balances": ["belief"],
             "num_first": 0, "seed": 0, "trace_out": None, "out": None,
             "allow_dirty": True}  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        await run_cluster(**flags | change)
