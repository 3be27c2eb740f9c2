"""The agent benchmark repeats its conversations for a seed, fits the context, and counts right."""

from __future__ import annotations

import json

from lingflash.bench.agent import make_conversations, run_agent


def test_conversations_when_drawn_then_repeatable_and_within_the_context():
    drawn = make_conversations(5, 40, 2000, 100, seed=3)
    assert drawn == make_conversations(5, 40, 2000, 100, seed=3)
    assert drawn != make_conversations(5, 40, 2000, 100, seed=4)
    for turns in drawn:
        assert sum(len(t.new_tokens) + t.answer_len for t in turns) <= 2000
        assert all(0 <= token < 100 for t in turns for token in t.new_tokens)


def test_run_when_small_then_the_cache_computes_little_more_than_what_is_new(tmp_path):
    out = tmp_path / "agent.json"
    run_agent(
        model="ling-nano",
        num_conversations=2,
        max_turns=4,
        max_model_len=1500,
        repeats=1,
        seed=0,
        threads=1,
        out=out,
        allow_dirty=True,
    )
    data = json.loads(out.read_text())
    derived = data["derived"]
    assert derived["turns"] == 8
    assert derived["prompt tokens new"] < derived["prompt tokens sent"]
    computed = derived["prompt tokens computed, cache on"]
    assert derived["prompt tokens new"] <= computed <= derived["prompt tokens new"] + 8 * 16
