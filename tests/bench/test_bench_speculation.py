"""The speculation benchmark counts what was verified and accepted, place by place."""

from __future__ import annotations

import json

from lingflash.bench.in_engine.speculation import Outcome, measure
from lingflash.core.types import TokenEvent


def event(accepted, rejected):
    return TokenEvent(
        request_id="r",
        token_ids=[1] * (accepted + 1),
        drafts=(accepted, rejected) if accepted or rejected else None,
    )


def test_outcome_when_events_come_then_counts_by_place():
    outcome = Outcome()
    for accepted, rejected in ((0, 0), (3, 0), (1, 2), (0, 3), (2, 1)):
        outcome.count(event(accepted, rejected))
    assert outcome.reached == [4, 3, 2, 0]
    assert outcome.accepted == [3, 2, 1, 0]
    assert outcome.tokens_per_step == 1 + 6 / 4


def test_run_when_small_then_ling_nano_accepts_most_first_drafts(tmp_path):
    out = tmp_path / "speculation.json"
    measure(
        cases=[{"messages": [{"role": "user", "content": "Hello! Who are you?"}], "tools": None}],
        model="ling-nano",
        device="cpu",
        num_seqs=2,
        max_tokens=24,
        repeats=1,
        threads=None,
        out=out,
        allow_dirty=True,
    )
    data = json.loads(out.read_text())
    assert data["derived"]["1 draft: accepted, by place"][0] > 0.7
    assert data["derived"]["4 drafts: tokens per step"] > 1.7
    assert data["derived"]["3 drafts: answers equal to off"] == "1 of 1"
