"""The agent benchmark repeats its conversations for a seed, fits the context, and counts right."""

from __future__ import annotations

import json

import pytest

from lingflash.bench.in_engine.agent import make_conversations, read_trace, run_agent
from lingflash.core.errors import ConfigError
from lingflash.records.report import write_report


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
    assert derived["prompt tokens computed, cache off"] == derived["prompt tokens sent"]
    # Of the two first turns nothing is known; all others continue what was said.
    assert derived["turns by what was found, cache on"] == "new_tokens 6, no_prefix 2"
    assert "checkpoints" in derived["memory MiB, cache on"]
    write_report(tmp_path, {"agent": "Conversations"})
    assert "turn of the conversation" in (tmp_path / "agent.svg").read_text()
    assert "agent.svg" in (tmp_path / "RESULTS.md").read_text()


def test_trace_when_read_then_gives_its_sizes_in_its_order(tmp_path):
    path = tmp_path / "trace.jsonl"
    sizes = [("a", 40, 5), ("b", 30, 6), ("a", 7, 8)]
    path.write_text(
        "\n".join(
            json.dumps({"conversation": name, "new_tokens": new, "answer_tokens": answer})
            for name, new, answer in sizes
        )
    )
    a, b = read_trace(path, 100, seed=0)
    assert [(len(t.new_tokens), t.answer_len) for t in a] == [(40, 5), (7, 8)]
    assert [(len(t.new_tokens), t.answer_len) for t in b] == [(30, 6)]


@pytest.mark.parametrize(
    "text", ["", "no json", "{}", '{"conversation": 1, "new_tokens": 0, "answer_tokens": 2}', "[1]"]
)
def test_trace_when_wrong_then_refused_with_its_line(tmp_path, text):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--trace"):
        read_trace(path, 100, seed=0)
