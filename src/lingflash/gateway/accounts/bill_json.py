"""A bill as JSON and as CSV; money is exact, decimal dollars as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lingflash.gateway.accounts.admission import dollars
from lingflash.gateway.accounts.bill import Bill, PartBill, StepBill
from lingflash.gateway.accounts.times import iso

Table = Literal["steps", "tool_results"]
TABLES: tuple[Table, ...] = ("steps", "tool_results")


def bill_to_json(session_id: str, key_hash: str, bill: Bill) -> dict[str, Any]:
    """All of a bill."""
    return {
        "session_id": session_id,
        "key_hash": key_hash,
        "steps": [_step(each) for each in bill.steps],
        "tool_results": [_tool_result(each) for each in bill.tool_results],
        "tools": _tools(bill.tool_results),
        "totals": _totals(bill),
    }


def bill_to_csv(bill: Bill, table: Table) -> str:
    """One of a bill's tables, with a line of names."""
    rows: Sequence[Mapping[str, Any]] = [_step(each) for each in bill.steps]
    if table == "tool_results":
        rows = [
            {
                **result,
                "resent": len(result["resent"]),
                "resent_steps": " ".join(str(each["step"]) for each in result["resent"]),
            }
            for result in map(_tool_result, bill.tool_results)
        ]
    else:
        rows = [
            {**{k: v for k, v in row.items() if k != "new_by_role"}, **_roles(row["new_by_role"])}
            for row in rows
        ]
    return rows_to_csv(rows)


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same names, and a line of these."""
    text = io.StringIO()
    names = list(rows[0]) if rows else []
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet runs what begins like a formula, and names come from requests."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t") else value


def _roles(new_by_role: Mapping[str, int]) -> dict[str, int]:
    roles = ("system", "tools", "user", "assistant", "tool")
    return {f"new_{role}_tokens": new_by_role.get(role, 0) for role in roles}


def _step(step: StepBill) -> dict[str, Any]:
    row = step.row
    return {
        "step": row["step"],
        "generation_id": row["id"],
        "created_at": iso(row["created_at"]),
        "model": row["model_served"] or row["model_requested"],
        "provider": row["provider"],
        "endpoint": row["endpoint"],
        "outcome": row["outcome"],
        "finish_reason": row["wire"].get("finish_reason"),
        "prompt_tokens": row["tokens_prompt"],
        "cached_tokens": row["tokens_cached"],
        "cache_write_tokens": row["tokens_cache_write"],
        "new_tokens": step.new_tokens,
        "new_by_role": dict(step.new_by_role),
        "completion_tokens": row["tokens_completion"],
        "reasoning_tokens": row["tokens_reasoning"],
        "code_calls": step.code.calls,
        "code_seconds": step.code.seconds,
        "code_output_bytes": step.code.output_bytes,
        "usage_source": row["usage_source"],
        "cost_usd": dollars(step.cost),
        "resent_usd": dollars(step.resent_cost),
        "cache_saving_usd": dollars(row["cache_saving"]),
        "upstream_cost_usd": dollars(row["upstream_prompt"] + row["upstream_completion"]),
        "duration_ms": row["duration_ms"],
    }


def _tool_result(result: PartBill) -> dict[str, Any]:
    again = [(step, sent) for step, sent in sorted(result.sent.items()) if step != result.came]
    return {
        "tool": result.part.name,
        "step": result.came,
        "tokens": result.tokens,
        "first_usd": dollars(result.first_cost),
        "resent": [
            {"step": step, "cached_tokens": cached, "cost_usd": dollars(cost)}
            for step, (cost, cached) in again
        ],
        "resent_usd": dollars(result.resent_cost),
        "total_usd": dollars(result.first_cost + result.resent_cost),
    }


def _tools(results: Sequence[PartBill]) -> list[dict[str, Any]]:
    """The same by tool, the dearest first."""
    by_name: dict[str, list[PartBill]] = {}
    for each in results:
        by_name.setdefault(each.part.name or "tool", []).append(each)
    costs = {
        name: (sum(r.first_cost for r in own), sum(r.resent_cost for r in own))
        for name, own in by_name.items()
    }
    return [
        {
            "tool": name,
            "results": len(own),
            "tokens": sum(each.tokens or 0 for each in own),
            "first_usd": dollars(costs[name][0]),
            "resent_usd": dollars(costs[name][1]),
            "total_usd": dollars(sum(costs[name])),
        }
        for name, own in sorted(by_name.items(), key=lambda each: (-sum(costs[each[0]]), each[0]))
    ]


def _totals(bill: Bill) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(each.row[name] for each in bill.steps)

    per_task = bill.tokens_per_task
    return {
        "steps": len(bill.steps),
        "prompt_tokens": total("tokens_prompt"),
        "cached_tokens": total("tokens_cached"),
        "cache_write_tokens": total("tokens_cache_write"),
        "new_tokens": sum(each.new_tokens for each in bill.steps),
        "completion_tokens": total("tokens_completion"),
        "reasoning_tokens": total("tokens_reasoning"),
        "code_calls": sum(each.code.calls for each in bill.steps),
        "code_seconds": round(sum(each.code.seconds for each in bill.steps), 3),
        "code_output_bytes": sum(each.code.output_bytes for each in bill.steps),
        "cost_usd": dollars(total("cost_prompt") + total("cost_completion")),
        "upstream_cost_usd": dollars(total("upstream_prompt") + total("upstream_completion")),
        "paid_for_resending_usd": dollars(sum(each.resent_cost for each in bill.steps)),
        "saved_by_cache_usd": dollars(total("cache_saving")),
        "unattributed_usd": dollars(sum(each.unattributed_cost for each in bill.steps)),
        "finished_tasks": sum(each.finishes_task for each in bill.steps),
        "output_tokens_per_finished_task": None if per_task is None else round(per_task, 1),
    }
