"""The attacks and the victim of `ling bench hostile`, against a server with a scripted engine."""

from __future__ import annotations

import random

import pytest

from api_support import TOKENIZER, RunningServer, engine_info, write_toy_model
from lingflash.api.config import ServerConfig
from lingflash.bench.over_http import hostile as hostile_module
from lingflash.bench.over_http import hostile_attacks
from lingflash.bench.over_http.hostile import Held, Victim, be_served
from lingflash.bench.over_http.hostile_attacks import ATTACKS, Attacker, attack_for
from lingflash.bench.over_http.serve import Timing
from lingflash.bench.over_http.soak import SoakSummary
from lingflash.bench.over_http.soak_clients import Limits
from lingflash.core.errors import ConfigError
from lingflash.link.http_client import Address
from lingflash.link.scripted import Behaviour
from lingflash.records.record import Record


@pytest.fixture
def address(tmp_path):
    config = ServerConfig(
        model_folder=write_toy_model(tmp_path), served_model_names=("toy",), api_keys=("key-a",)
    )
    info = engine_info(vocab_size=max(TOKENIZER.vocab_size, 256), max_model_len=2048)
    script = {(): TOKENIZER.encode("a") * 200}
    server = RunningServer(script, config=config, info=info, behaviour=Behaviour(delay_s=0.001))
    yield Address.parse(server.base_url, "key-a")
    server.stop()


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack_then_it_is_refused_closed_or_served_and_nothing_breaks(
    name, address, monkeypatch
):
    monkeypatch.setattr(hostile_attacks, "_MAX_BODY_BYTES", 200_000)
    without = Address(address.host, address.port)
    attacker = Attacker(address, without, Limits(True, 2048), random.Random(1))
    outcomes = await attack_for(attacker, [name], 8.0 if name == "unread_stream" else 1.5)
    ends = {outcome.partition(": ")[2] for outcome in outcomes}
    fine = {"200", "400", "413", "429", "431", "closed", "left", "refused", "closed or ignored",
            "ended before leaving", "busy"}  # fmt: skip
    assert ends <= fine
    if name not in ("silent_connections", "unread_stream"):
        assert ends, "it got through at least once"


async def test_victim_when_served_then_streams_and_a_growing_conversation_are_timed(
    address, monkeypatch
):
    monkeypatch.setattr(hostile_module, "_ANSWER_LEN", (8, 16))
    monkeypatch.setattr(hostile_module, "_BETWEEN_STARTS_S", 0.01)
    victim = await be_served(address, 1.0, 2048, seed=1)
    assert victim.errors() == []
    assert len(victim.streams) > 8
    first, second = victim.turns[:2]
    assert second.num_prompt_tokens > first.num_prompt_tokens + first.num_tokens
    assert len(victim.ttft_ms()) == len(victim.streams) + len(victim.turns)


def finished(itl_s, error=None):
    return Timing(ttft_s=0.1, itl_s=[itl_s] * 50, num_tokens=51, error=error)


@pytest.mark.parametrize(
    ("itl_s", "error", "num_fds", "leaks", "missed"),
    [
        (0.02, None, 20, [], set()),
        (0.05, None, 20, [], {"itl p99 of key b, times alone"}),
        (0.02, "status 500", 20, [], {"errors of key b"}),
        (0.02, None, 21, [], {"open files left"}),
        (0.02, None, 20, ["kv_blocks_free is 1"], {"blocks, slots, requests and tasks left"}),
    ],
)
def test_promises_when_one_is_broken_then_that_one_is_missed(itl_s, error, num_fds, leaks, missed):
    record = Record("hostile", None, allow_dirty=True)
    record.settings = {"minutes": 1.0}
    quiet, hostile = Victim([finished(0.01)]), Victim([finished(itl_s, error)])
    hostile_module._conclude(record, quiet, hostile)
    hostile_module._conclude_left(record, SoakSummary(), Held(100, 20), Held(105, num_fds), leaks)
    assert {target.name for target in record.targets if not target.is_met} == missed


async def test_hostile_when_an_attack_is_unknown_then_those_that_exist_are_named():
    with pytest.raises(ConfigError, match=r"--attack is .*; allowed: poisoned_field, "):
        await hostile_module.run_hostile(
            model="x", minutes=1, attacks=["sleep"], seed=0, serve_flags=[], out=None,
            allow_dirty=False,
        )  # fmt: skip
