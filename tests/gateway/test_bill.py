"""The token bill: every token of every step has a part, every pico-dollar too."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounts_support import PRICE, accounts_app, client_of, end_of, opened, served, start_of
from lingflash.core.types import CodeUsage, Usage
from lingflash.gateway.accounting import Caller, Part
from lingflash.gateway.accounts.bill import bill_of, shares
from lingflash.gateway.accounts.bill_json import bill_to_csv, bill_to_json
from lingflash.gateway.accounts.parts import parts_of, pieces_of
from lingflash.gateway.accounts.rows import generation_row
from lingflash.gateway.accounts.sessions import SessionState
from lingflash.gateway.relay.usage import read_usage

CALLER = Caller(key_hash="k", name="n", label="l")


def part(role: str, text: str, name: str | None = None) -> Part:
    return Part(role=role, digest=text, num_bytes=len(text), name=name)  # pyright: ignore


def rows_of_session(steps: list[tuple[list[Part], Any]]) -> list[dict[str, Any]]:
    """Rows as the ledger would write them."""
    state = SessionState(key_hash="k", id="s")
    rows = []
    for parts, end in steps:
        start = start_of(caller=CALLER, parts=tuple(parts))
        delta = state.take(start, end, 0)
        rows.append(generation_row(start, end, step=state.steps, parts=delta, created_at=0))
    return rows


def end(prompt: int, cached: int, completion: int, reason: str = "tool_calls"):
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    return end_of(usage=usage, cost=PRICE.cost(usage), wire={"finish_reason": reason})


def test_bill_when_agent_calls_tools_then_each_result_has_its_price_now_and_again():
    system, user = part("system", "s" * 40), part("user", "u" * 10)
    call, result = part("assistant", "c" * 5), part("tool", "r" * 100, "read")
    call2, result2 = part("assistant", "d" * 5), part("tool", "q" * 30, "grep")
    rows = rows_of_session(
        [
            ([system, user], end(50, 0, 8)),
            ([system, user, call, result], end(158, 50, 6)),
            ([system, user, call, result, call2, result2], end(200, 158, 20, "stop")),
        ]
    )
    bill = bill_of(rows)
    assert [step.new_by_role for step in bill.steps] == [
        {"system": 40, "user": 10},
        {"tool": 100},
        {"tool": 36},
    ]
    read, grep = bill.tool_results
    assert (read.part.name, read.came, read.tokens) == ("read", 2, 100)
    assert read.sent == {2: (100 * 100_000, 0), 3: (100 * 20_000, 100)}
    assert grep.sent == {3: (36 * 100_000, 0)}
    # Sent before: 50 tokens of the first prompt and its answer; then those, the result, an answer.
    assert bill.steps[1].resent_cost == 50 * 20_000 + 8 * 100_000
    assert bill.steps[2].resent_cost == 158 * 20_000 + 6 * 100_000
    assert bill.tokens_per_task == 34
    assert [each["parts"]["kept"] for each in rows] == [0, 2, 4]


def test_bill_when_server_changes_and_cache_is_cold_then_shows_what_was_read_again():
    system, user = part("system", "s" * 40), part("user", "u" * 10)
    answer, more = part("assistant", "a" * 5), part("user", "v" * 10)
    bill = bill_of(
        rows_of_session(
            [([system, user], end(50, 0, 5)), ([system, user, answer, more], end(65, 0, 5))]
        )
    )
    assert bill.steps[1].resent_cost == 55 * 100_000
    assert bill.steps[1].new_tokens == 10


def test_bill_when_history_is_compacted_then_all_is_new():
    long = [part("system", "s" * 40), part("user", "u" * 100)]
    short = [part("system", "s" * 40), part("user", "summary")]
    bill = bill_of(rows_of_session([(long, end(140, 0, 5)), (short, end(60, 40, 5))]))
    assert bill.steps[1].new_by_role == {"user": 20}
    assert bill.steps[1].resent_cost == 40 * 20_000


def test_bill_when_prompt_is_shorter_than_what_was_kept_then_still_adds_up():
    parts = [part("user", "u" * 100), part("assistant", "a" * 50), part("user", "v" * 50)]
    bill = bill_of(rows_of_session([(parts[:1], end(100, 0, 5)), (parts, end(80, 0, 5))]))
    assert sum(each.tokens or 0 for each in bill.parts) == 80


def test_bill_when_request_failed_and_came_again_then_its_message_is_new_once():
    parts = [part("user", "u" * 100)]
    failed = end_of(usage=None, outcome="failed", status=502, cost=PRICE.cost(Usage(
        prompt_tokens=0, cached_tokens=0, completion_tokens=0)))  # fmt: skip
    bill = bill_of(rows_of_session([(parts, failed), (parts, end(100, 0, 5, "stop"))]))
    assert [step.new_tokens for step in bill.steps] == [0, 100]
    assert (bill.steps[1].resent_cost, bill.tokens_per_task) == (0, 5)


_PARTS = st.lists(
    st.builds(
        part,
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.text("ab", max_size=6),
        st.sampled_from([None, "read"]),
    ),
    max_size=6,
)
_TOKENS = st.integers(0, 300)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_PARTS, _TOKENS, _TOKENS, _TOKENS), max_size=6))
def test_bill_when_session_is_anything_then_every_step_adds_up_to_what_was_paid(steps):
    rows = rows_of_session([(p, end(n, min(c, n), o)) for p, n, c, o in steps])
    bill = bill_of(rows)
    for number, (step, (parts, prompt, *_)) in enumerate(zip(bill.steps, steps, strict=True), 1):
        paid = [each.sent[number] for each in bill.parts if number in each.sent]
        assert sum(cost for cost, _ in paid) == (step.row["cost_prompt"] if paid else 0)
        assert all(cost >= 0 for cost, _ in paid)
        assert bool(paid) == bool(parts and prompt)
        if not parts:
            assert step.unattributed_cost == step.row["cost_prompt"]
        else:
            assert sum(cached for _, cached in paid) == step.row["tokens_cached"] * bool(paid)
        assert 0 <= step.resent_cost <= step.cost


@given(st.integers(0, 10**20), st.lists(st.integers(0, 10**12), max_size=20))
def test_shares_then_whole_and_add_up(total, weights):
    got = shares(total, weights)
    assert sum(got) == (total if weights else 0)
    whole = sum(weights)
    for share, weight in zip(got, weights, strict=True):
        assert share >= 0
        assert not whole or abs(share - total * weight / whole) < 1 + total * 1e-9


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
async def test_session_when_asked_for_over_http_then_bill_as_json_and_csv(sqlite_url, dialect):
    accounts = await opened(sqlite_url)
    secret, _ = await accounts.keys.create({"name": "a"})
    caller = await accounts.authenticate(secret)
    for number, body in enumerate(TURNS[dialect]):
        start = start_of(caller, dialect=dialect, parts=parts_of(pieces_of(dialect, body), "s"))
        reason = "stop" if number else "tool_calls"
        await served(accounts, start, end(60 + 100 * number, 60 * number, 10, reason))
    async with client_of(accounts_app(accounts), secret) as client:
        bill = (await client.get("/api/v1/sessions/s")).json()
        steps = await client.get("/api/v1/sessions/s?format=csv")
        results = await client.get("/api/v1/sessions/s?format=csv&table=tool_results")
    await accounts.close()
    assert [each["new_by_role"] for each in bill["steps"]][1] == {"tool": 90}
    (result,) = bill["tool_results"]
    assert (result["tool"], result["step"], result["tokens"]) == ("read", 2, 90)
    totals = bill["totals"]
    costs = [Decimal(each["cost_usd"]) for each in bill["steps"]]
    assert Decimal(totals["cost_usd"]) == sum(costs)
    assert Decimal(totals["saved_by_cache_usd"]) == Decimal(60 * 80_000) / 10**12
    assert (totals["finished_tasks"], totals["output_tokens_per_finished_task"]) == (1, 20.0)
    rows = list(csv.DictReader(io.StringIO(steps.text)))
    assert steps.headers["content-type"] == "text/csv; charset=utf-8"
    assert [Decimal(row["cost_usd"]) for row in rows] == costs
    assert [row["new_tool_tokens"] for row in rows] == ["0", "90"]
    (row,) = csv.DictReader(io.StringIO(results.text))
    assert (row["tool"], row["resent"], row["first_usd"]) == ("read", "0", "0.000009")


_CHAT = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "Read the file."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "x" * 50},
]
_ITEMS = [
    {"type": "message", "role": "user", "content": "Read the file."},
    {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "x" * 50},
]
_MESSAGES = [
    {"role": "user", "content": "Read the file."},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "read"}]},
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "x" * 50}],
    },
]
TURNS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": _CHAT[:2]}, {"messages": _CHAT}],
    "responses": [
        {"instructions": "You are an agent.", "input": _ITEMS[:1]},
        {"instructions": "You are an agent.", "input": _ITEMS},
    ],
    "messages": [
        {"system": "You are an agent.", "messages": _MESSAGES[:1]},
        {"system": "You are an agent.", "messages": _MESSAGES},
    ],
}


def test_bill_when_the_server_ran_code_then_its_step_says_how_much():
    told = {
        "input_tokens": 152,
        "output_tokens": 32,
        "code_interpreter_details": {"calls": 2, "seconds": 0.25, "output_bytes": 9},
    }
    usage = read_usage("responses", told)
    assert usage is not None
    assert usage.code == CodeUsage(calls=2, seconds=0.25, output_bytes=9)
    ran = end_of(usage=usage, cost=PRICE.cost(usage), wire={"finish_reason": "completed"})
    asked = part("user", "u" * 10)
    rows = rows_of_session([([asked], ran), ([asked, part("user", "v")], end(20, 0, 4, "stop"))])
    told = bill_to_json("s", "k", bill_of(rows))
    names = ("code_calls", "code_seconds", "code_output_bytes")
    assert [[step[name] for name in names] for step in told["steps"]] == [[2, 0.25, 9], [0, 0, 0]]
    assert [told["totals"][name] for name in names] == [2, 0.25, 9]
    [first, _] = csv.DictReader(io.StringIO(bill_to_csv(bill_of(rows), "steps")))
    assert first["code_seconds"] == "0.25"


@pytest.mark.parametrize(
    "details",
    [
        *(None, 3, {}, {"calls": 1}, {"calls": -1, "seconds": 1, "output_bytes": 1}),
        {"calls": 1, "seconds": "1", "output_bytes": 1},
        {"calls": 1, "seconds": -1.0, "output_bytes": 1},
        {"calls": 1, "seconds": float("nan"), "output_bytes": 1},
        {"calls": 1, "seconds": 1.0, "output_bytes": 2**80},
    ],
)
def test_usage_when_what_it_says_of_code_is_none_then_none(details):
    told = {"input_tokens": 1, "output_tokens": 1, "code_interpreter_details": details}
    usage = read_usage("responses", told)
    assert usage is not None
    assert usage.code is None


def test_parts_when_an_item_is_of_code_then_its_result_is_a_tools():
    item = {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "code": "print(1)",
        "outputs": [{"type": "logs", "logs": "1\n"}],
    }
    body = {"input": [{"role": "user", "content": "hi"}, item]}
    parts = parts_of(pieces_of("responses", body), "s")
    assert [(each.role, each.name) for each in parts] == [
        ("user", None),
        ("assistant", None),
        ("tool", "code_interpreter"),
    ]
