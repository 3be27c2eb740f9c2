"""The simulated cluster counts what a real server counted; its clock is checked by hand."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lingflash.cli import app
from lingflash.cluster.simulation.cache import CacheShape
from lingflash.cluster.simulation.cluster import Cluster, ClusterShape
from lingflash.cluster.simulation.rates import Card, find_card, read_cards
from lingflash.cluster.simulation.replica import Rates
from lingflash.cluster.simulation.report import run_simulation
from lingflash.cluster.simulation.sessions import (
    Session,
    SessionShape,
    Turn,
    generate_sessions,
    read_sessions,
    write_sessions,
)
from lingflash.cluster.simulation.sums import Demand, write_sums
from lingflash.core.errors import ConfigError
from lingflash.gateway.routing.replicas import BALANCES

ROOT = Path(__file__).parents[2]
RATES = Rates(prefill_tokens_per_s=1000, step_s=((1, 0.01), (9, 0.05)))
CACHE = CacheShape(tokens=100_000, max_num_seqs=8, checkpoint_tokens=48)
# Prompt, cached and answer tokens of every turn of six conversations, as a `ling serve` of
# ling-nano with --max-num-seqs 8 told them; the beginnings of three are those of the other three.
RECORDED = [
    [(918, 0, 38), (1205, 955, 17), (1430, 1221, 21), (1593, 1424, 64), (1915, 1584, 64)],
    [(738, 0, 38), (869, 775, 38), (999, 906, 38), (1074, 1036, 38), (1174, 1111, 38)],
    [(886, 0, 30), (1163, 915, 64), (1388, 1152, 64), (1529, 1376, 64), (1651, 1520, 38)],
    [(928, 0, 38), (1075, 965, 17), (1254, 1091, 64), (1375, 1317, 38), (1481, 1412, 38)],
    [(718, 0, 38), (893, 755, 38), (1017, 930, 38), (1339, 1054, 64), (1468, 1328, 38)],
    [(911, 0, 38), (999, 948, 38), (1158, 1036, 38), (1495, 1195, 16), (1628, 1488, 19)],
]
SHARED = (820, 658, 775)
ORDER = [
    i for turn in range(5) for i in random.Random(turn).sample(range(len(RECORDED)), len(RECORDED))
]


def recorded_sessions():
    sessions = []
    for i, sizes in enumerate(RECORDED):
        turns, length = [], 0
        for (prompt, _, answer), following in itertools.zip_longest(sizes, sizes[1:]):
            is_rewritten = following is not None and following[1] < prompt + answer - 1
            turns.append(Turn(prompt - length, answer, is_rewritten=is_rewritten))
            length = prompt + answer
        sessions.append(Session(f"c{i}", f"app{i % 3}", SHARED[i % 3], turns))
    return sessions


def cluster_of(num_replicas=1, **fields):
    fields = {"rates": RATES, "cache": CACHE, **fields}
    return Cluster(ClusterShape(num_replicas=num_replicas, **fields))


def test_simulation_when_a_real_recording_is_replayed_then_each_token_is_as_it_was():
    outcome = cluster_of(cache=CacheShape(
        tokens=4288 * 16, max_num_seqs=8, checkpoint_tokens=48,
    )).play_in_turn(recorded_sessions(), ORDER)  # fmt: skip
    turns = [turn for sizes in RECORDED for turn in sizes]
    assert outcome.prompt_tokens == sum(prompt for prompt, _, _ in turns)
    assert outcome.cached_tokens == sum(cached for _, cached, _ in turns)


def test_simulation_when_two_replicas_share_then_belief_computes_as_little_as_one():
    computed = {
        balance: cluster_of(2, balance=balance)
        .play_in_turn(recorded_sessions(), ORDER)
        .computed_tokens
        for balance in BALANCES
    }
    alone = cluster_of().play_in_turn(recorded_sessions(), ORDER).computed_tokens
    assert computed["belief"] <= 1.1 * alone
    assert computed["round_robin"] > 1.5 * alone
    assert computed["belief"] <= min(computed.values())


def test_replica_when_one_request_comes_then_it_takes_what_the_rates_say():
    session = Session("one", "one", 0, [Turn(500, 11), Turn(100, 1, pause_s=2.0)])
    outcome = cluster_of().play([(1.0, session)])
    # The second prompt goes on after the answer, whose last token was not computed.
    assert outcome.first_s == pytest.approx([0.5, 0.101])
    assert outcome.seconds == pytest.approx(1.0 + 0.5 + 10 * 0.01 + 2.0 + 0.101)
    assert (outcome.requests, outcome.computed_tokens, outcome.recomputed_tokens) == (2, 601, 0)


def test_replica_when_two_requests_come_at_once_then_the_second_waits_and_both_share_steps():
    sessions = [Session(name, name, 0, [Turn(1000, 101)]) for name in ("a", "b")]
    outcome = cluster_of().play([(0.0, each) for each in sessions])
    first, second = sorted(outcome.first_s)
    assert first == pytest.approx(1.0)
    assert second == pytest.approx(2.01)  # read in one step, which also makes a token for the first
    assert outcome.seconds == pytest.approx(2.01 + 99 * 0.015 + 1 * 0.01, rel=0.01)


def test_rates_when_a_batch_was_not_measured_then_it_lies_on_a_line():
    assert [RATES.decode_step_s(n) for n in (0, 1, 5, 9, 13)] == pytest.approx(
        [0.0, 0.01, 0.03, 0.05, 0.07]
    )


def test_simulation_when_a_prompt_does_not_fit_then_that_is_said():
    small = CacheShape(tokens=160, max_num_seqs=8, checkpoint_tokens=48)
    with pytest.raises(ConfigError, match="prompt of 500 tokens does not fit"):
        cluster_of(cache=small).play([(0.0, Session("one", "one", 0, [Turn(500, 11)]))])


def test_simulation_when_played_twice_then_it_is_the_same():
    def outcome():
        shape = ClusterShape(num_replicas=3, rates=RATES, cache=CACHE, num_gateways=2,
                             duration_s=40, warm_up_s=10)  # fmt: skip
        small = SessionShape(shared_tokens=100, new_tokens=30, answer_tokens=9, turns=4, pause_s=1)
        sessions = zip(itertools.count(), generate_sessions(small, 3), strict=False)
        return Cluster(shape, seed=5).play(sessions)

    first, second = outcome(), outcome()
    assert first == second
    assert first.requests > 50
    assert len(first.busy) == 3
    assert all(0 < busy <= 1 for busy in first.busy)


@pytest.mark.parametrize("grain", [1, 4, 32])
def test_cache_when_tokens_are_counted_in_grains_then_every_length_can_be_kept(grain):
    shape = CacheShape(tokens=40_000, max_num_seqs=8, checkpoint_tokens=48,
                       block_tokens=16 * grain, grain=grain)  # fmt: skip
    rng = random.Random(grain)
    sessions = [
        Session(f"{i}", f"{i % 3}", 40, [
            Turn(rng.randrange(41, 700), rng.randrange(1, 70), is_rewritten=rng.random() < 0.3)
            for _ in range(rng.randrange(1, 8))
        ])
        for i in range(60)
    ]  # fmt: skip
    outcome = cluster_of(2, cache=shape).play([(i / 4, each) for i, each in enumerate(sessions)])
    assert outcome.requests == sum(len(each.turns) for each in sessions)
    assert 0 < outcome.cached_tokens < outcome.prompt_tokens


def test_sessions_when_written_then_they_are_read_as_they_were(tmp_path):
    sessions = recorded_sessions()
    write_sessions(tmp_path / "trace.jsonl", sessions)
    assert read_sessions(tmp_path / "trace.jsonl") == sessions
    assert next(iter(generate_sessions(SessionShape(), 1))) == next(
        iter(generate_sessions(SessionShape(), 1))
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 2"),
        ("[]", "line 2"),
        ('{"conversation": "a", "new_tokens": 0, "answer_tokens": 1}', "whole numbers from 1"),
        ('{"conversation": "a", "new_tokens": true, "answer_tokens": 1}', "whole numbers"),
        ('{"conversation": "a", "new_tokens": 5}', "answer_tokens"),
        (
            '{"conversation": "a", "new_tokens": 5, "answer_tokens": 1, "shared_tokens": 6}',
            "part of new_tokens",
        ),
        ('{"conversation": "a", "new_tokens": 5, "answer_tokens": 1, "pause_s": "x"}', "line 2"),
        ('{"conversation": "a", "new_tokens": 5, "answer_tokens": 1, "pause_s": -1}', "from 0"),
        ('{"conversation": "a", "new_tokens": 5, "answer_tokens": 1, "pause_s": NaN}', "from 0"),
    ],
)
def test_trace_when_a_line_is_wrong_then_that_is_said(tmp_path, line, said):
    good = '{"conversation": "a", "new_tokens": 5, "answer_tokens": 1}'
    (tmp_path / "trace.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ConfigError, match=said):
        read_sessions(tmp_path / "trace.jsonl")


def test_cards_when_records_are_read_then_rates_are_theirs():
    cards = read_cards(ROOT / "benchmarks")
    record = json.loads((ROOT / "benchmarks" / "latency-int4-fp8-h100.json").read_text())
    card = cards["h100-int4-fp8"]
    assert card.files == ("latency-int4-fp8-h100.json",)
    assert card.prefill_tokens_per_s == record["results"]["prefill 8192"]["median"]
    step_ms = record["results"]["decode b32 c1024 step"]["median"]
    assert card.decode_tokens_per_s(32) == pytest.approx(32_000 / step_ms)
    assert {"h200-fp8", "h200-int4-fp8", "cpu-ling-nano"} <= set(cards)
    with pytest.raises(ConfigError, match="h200-fp8"):
        find_card(cards, "h200-fp9")


def test_sums_when_counted_by_hand_then_they_agree():
    card = Card("x-y", {32: 0.02}, 50_000.0, 100, 200.0, ())
    demand = Demand(tokens_per_day=86_400e6, answer_share=0.1)
    prefill, decode = demand.cards(card, 32, 0.5)
    assert prefill == pytest.approx(900_000 * 0.5 / 50_000)
    assert decode == pytest.approx(100_000 / 1600)


def test_sums_page_then_it_is_what_the_command_writes():
    page = write_sums(ROOT / "benchmarks", tokens_per_day=100e9, answer_percent=6.0, out=None)
    written = (ROOT / "docs" / "cluster-sums.md").read_text()
    assert written == page, "run: ling cluster sums --out docs/cluster-sums.md"


@pytest.mark.parametrize(
    ("out", "said"), [("none/x.md", "the folder does not exist"), ("", "it is a folder")]
)
def test_sums_when_its_page_cannot_be_written_then_it_says_so(tmp_path, out, said):
    with pytest.raises(ConfigError, match=said):
        write_sums(ROOT / "benchmarks", tokens_per_day=1e9, answer_percent=6.0, out=tmp_path / out)


def test_simulate_when_run_then_its_record_has_every_way(tmp_path):
    record = run_simulation(
        card="cpu-ling-nano", benchmarks=ROOT / "benchmarks", num_replicas=2, tokens_per_day=2e8,
        num_gateways=1, balances=BALANCES, trace=None,
        shape=SessionShape(shared_tokens=300, new_tokens=60, answer_tokens=30, pause_s=1.0),
        seconds=30, warm_up_s=5, max_num_seqs=16, cache_tokens=200_000, grain=1, seed=0,
        out=tmp_path / "simulation.json", allow_dirty=True,
    )  # fmt: skip
    written = json.loads((tmp_path / "simulation.json").read_text())
    for balance in BALANCES:
        assert written["derived"][f"{balance}: requests"] > 20
    ours, turns = (record.derived[f"{b}: computed tokens"] for b in ("belief", "round_robin"))
    assert ours < turns


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replicas", "0"], "--replicas is 0; allowed: 1 or more"),
        (["--card", "b100-fp4"], "--card is 'b100-fp4'"),
        (["--balance", "luck"], "--balance is luck"),
        (["--trace", "nowhere.jsonl"], "--trace nowhere.jsonl cannot be read"),
        (["--warm-up-s", "900"], "--warm-up-s is 900"),
        (["--out", "docs", "--allow-dirty"], "--out docs: it is a folder"),
        (["--turns", "0"], "--turns is 0"),
        (["--card", "cpu-ling-nano"], "give --cache-tokens"),
        (["--benchmarks", "docs"], "has no records"),
    ],
)
def test_simulate_when_a_flag_is_wrong_then_it_says_so(flags, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["cluster", "simulate", *flags])
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)
