"""What a key may know of itself: /api/v1/key, credits, generation and activity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import func, literal_column, select

from lingflash.core.errors import NotFoundError, refuse
from lingflash.gateway.accounting import Caller
from lingflash.gateway.accounts.admission import HOUSE, wall_ms
from lingflash.gateway.accounts.balance import Balance, balance_of, next_reset
from lingflash.gateway.accounts.config import usd
from lingflash.gateway.accounts.keys import Key
from lingflash.gateway.accounts.routes.callers import accounts_of, given_query, require_caller
from lingflash.gateway.accounts.service import LedgerAccounts
from lingflash.gateway.accounts.times import iso, iso_or_none, parse_iso
from lingflash.gateway.accounts.wire import WORKSPACE
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import query_parameters
from lingflash.store.tables import budget, generation

router = APIRouter()

_DAY_MS = 86_400_000
_ACTIVITY_DAYS = 30
_TEXT = {"type": "string"}
# Depends() as a default would be a call in one.
CALLER = Depends(require_caller)


@router.get("/api/v1/key")
async def current_key(request: Request, caller: Caller = CALLER) -> Response:
    """The key that asks: its limits, and what it has used."""
    accounts = accounts_of(request)
    key = await accounts.keys.get(caller.key_hash)
    layers = [layer for layer in (await _house(accounts), key.balance) if layer is not None]
    budgets = [_budget(layer) for layer in layers if layer.limit_pico is not None]
    free = accounts.config.free_per_day
    used = key.balance.free_used
    own = key_to_json(key)
    for name in ("hash", "disabled", "created_at", "updated_at", "last_used_at", "external_user"):
        del own[name]
    data = {
        **own,
        "allowed_data_regions": ["global"],
        "budgets": budgets,
        "effective_budget": min(budgets, key=lambda each: each["remaining_usd"], default=None),
        "free_model_daily_requests": {
            "limit": free,
            "used": used,
            "remaining": max(0, free - used),
        },
        "is_free_tier": key.balance.limit_pico == 0,
        "is_management_key": key.is_management,
        "is_provisioning_key": key.is_management,
        "organization_id": None,
        "rate_limit": {"interval": "10s", "note": "deprecated; see limits", "requests": -1},
        "limits": {
            "rpm": key.rpm or accounts.config.rpm,
            "tpm": key.tpm or accounts.config.tpm,
            "concurrency": key.concurrency or accounts.config.concurrency,
            "running": key.balance.running,
        },
    }
    return json_response({"data": data})


@router.get("/api/v1/credits")
async def credits(request: Request, caller: Caller = CALLER) -> Response:
    """What there is to spend: of the house for a management key, else of the key's own limit."""
    accounts = accounts_of(request)
    if caller.is_management:
        balance = await _house(accounts)
    else:
        balance = (await accounts.keys.get(caller.key_hash)).balance
    limit, total = (0, 0) if balance is None else (balance.limit_pico or 0, balance.spent_total)
    return json_response({"data": {"total_credits": usd(limit), "total_usage": usd(total)}})


@router.get("/api/v1/generation", openapi_extra=query_parameters(id=_TEXT))
async def one_generation(request: Request, caller: Caller = CALLER) -> Response:
    """The row of one request; of other keys for a management key only."""
    id = given_query(request, id=str).get("id")
    if not id:
        refuse("id", "is missing; give the id of an answer, ?id=gen-...")
    query = select(generation).where(generation.c.id == id)
    if not caller.is_management:
        query = query.where(generation.c.key_hash == caller.key_hash)
    database = accounts_of(request).database
    row = await database.read(lambda c: c.execute(query).mappings().first())
    if row is None:
        raise NotFoundError(f"There is no generation {id!r} of this key.", param="id")
    return json_response({"data": _generation(row)})


@router.get("/api/v1/activity", openapi_extra=query_parameters(date=_TEXT, api_key_hash=_TEXT))
async def activity(request: Request, caller: Caller = CALLER) -> Response:
    """Requests, tokens and money by day, model and endpoint, of the last 30 days."""
    given = given_query(request, date=str, api_key_hash=str, group_by=str)
    if given.get("group_by", "workspace") != "workspace":
        refuse("group_by", f"is {given['group_by']!r}; allowed: workspace")
    # Written out: PostgreSQL would take two parameters for two expressions.
    day = (generation.c.created_at // literal_column(str(_DAY_MS))).label("day")
    first, last = wall_ms() // _DAY_MS - _ACTIVITY_DAYS, None
    if "date" in given:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", given["date"]):
            refuse("date", f"is {given['date']!r}; allowed: a day such as 2027-01-31")
        first = last = parse_iso(given["date"], "date") // _DAY_MS
    names = [generation.c.model_served, generation.c.endpoint, generation.c.provider]
    sums = [
        func.sum(generation.c[name]).label(name)
        for name in (
            *("tokens_prompt", "tokens_cached", "tokens_completion", "tokens_reasoning"),
            *("cost_prompt", "cost_completion"),
        )
    ]
    byok = func.sum(generation.c.upstream_prompt + generation.c.upstream_completion).filter(
        generation.c.byok_id.is_not(None)
    )
    query = (
        select(day, *names, func.count().label("requests"), *sums, byok.label("byok"))
        .where(generation.c.created_at >= first * _DAY_MS, generation.c.endpoint.is_not(None))
        .group_by(day, *names)
        .order_by(day.desc(), *names)
    )
    if last is not None:
        query = query.where(generation.c.created_at < (last + 1) * _DAY_MS)
    whose = given.get("api_key_hash") if caller.is_management else caller.key_hash
    if whose is not None:
        query = query.where(generation.c.key_hash == whose)
    database = accounts_of(request).database
    rows = await database.read(lambda c: c.execute(query).mappings().all())
    shown = [_activity(row) for row in rows]
    if "group_by" in given:
        shown = [{**row, "workspace_id": WORKSPACE} for row in shown]
    return json_response({"data": shown})


def key_to_json(key: Key) -> dict[str, Any]:
    """A key as the management routes show it."""
    balance = key.balance
    remaining = None if balance.limit_pico is None else balance.limit_pico - balance.spent
    spent = {"": "total", "_daily": "day", "_weekly": "week", "_monthly": "month"}
    return {
        "hash": key.hash,
        "label": key.label,
        "name": key.name,
        "disabled": key.disabled,
        "limit": None if balance.limit_pico is None else usd(balance.limit_pico),
        "limit_remaining": None if remaining is None else usd(remaining),
        "limit_reset": balance.limit_reset,
        "include_byok_in_limit": balance.include_byok,
        **{f"usage{a}": usd(getattr(balance, f"spent_{b}")) for a, b in spent.items()},
        **{f"byok_usage{a}": usd(getattr(balance, f"byok_{b}")) for a, b in spent.items()},
        "created_at": iso(key.created_at),
        "updated_at": iso_or_none(key.updated_at),
        "expires_at": iso_or_none(key.expires_at),
        "last_used_at": iso_or_none(balance.clock if balance.spent_total else None),
        "creator_user_id": None,
        "external_user": None,
        "workspace_id": WORKSPACE,
        "allowed_models": key.allowed_models,
        "rpm": key.rpm,
        "tpm": key.tpm,
        "concurrency": key.concurrency,
    }


async def _house(accounts: LedgerAccounts) -> Balance | None:
    query = select(budget).where(budget.c.scope == HOUSE)
    row = await accounts.database.read(lambda c: c.execute(query).mappings().first())
    return None if row is None else balance_of(row).at(wall_ms())


def _budget(layer: Balance) -> dict[str, Any]:
    limit = layer.limit_pico or 0
    reset = next_reset(layer.limit_reset, layer.clock)
    return {
        "scope": "workspace" if layer.scope == HOUSE else "key_limit",
        "budget_id": HOUSE if layer.scope == HOUSE else None,
        "guardrail_id": None,
        "include_byok": layer.include_byok,
        "limit_usd": usd(limit),
        "spend_usd": usd(layer.spent),
        "remaining_usd": usd(limit - layer.spent),
        "reserved_usd": usd(layer.reserved),
        "reset_interval": layer.limit_reset,
        "resets_at": None if reset is None else reset.isoformat().replace("+00:00", "Z"),
    }


# What OpenRouter's answer has and this gateway has nothing of.
_ABSENT = (
    *("app_id", "external_user", "http_referer", "moderation_latency", "preset_id", "router"),
    *("native_tokens_completion_images", "num_fetches", "num_input_audio_prompt", "user_agent"),
    *("num_media_completion", "num_media_prompt", "num_search_results", "web_search_engine"),
    *("response_cache_source_id", "service_tier"),
)


def _generation(row: Mapping[Any, Any]) -> dict[str, Any]:
    wire = row["wire"]
    cost = row["cost_prompt"] + row["cost_completion"]
    tokens = {
        "prompt": row["tokens_prompt"],
        "completion": row["tokens_completion"],
        "reasoning": row["tokens_reasoning"],
        "cached": row["tokens_cached"],
        "cache_write": row["tokens_cache_write"],
    }
    return {
        **dict.fromkeys(_ABSENT),
        "id": row["id"],
        "request_id": row["request_id"],
        "session_id": row["session_id"],
        "upstream_id": wire.get("upstream_id"),
        "api_type": "completions",
        "dialect": row["dialect"],
        "created_at": iso(row["created_at"]),
        "model": row["model_served"] or row["model_requested"],
        "provider_name": row["provider"],
        "provider_responses": [_attempt(each) for each in row["attempts"]],
        "data_region": "global",
        "origin": "",
        "workspace_id": WORKSPACE,
        "streamed": row["is_streamed"],
        "cancelled": row["outcome"] == "cancelled",
        "outcome": row["outcome"],
        "status": row["status"],
        "error_code": row["error_code"],
        "finish_reason": wire.get("finish_reason"),
        "native_finish_reason": wire.get("native_finish_reason", wire.get("finish_reason")),
        "generation_time": row["duration_ms"],
        "latency": row["ttft_ms"],
        "tokens_prompt": tokens["prompt"],
        "tokens_completion": tokens["completion"],
        **{f"native_tokens_{name}": count for name, count in tokens.items()},
        "usage_source": row["usage_source"],
        "is_byok": row["byok_id"] is not None,
        "usage": usd(cost),
        "total_cost": usd(cost),
        "cache_discount": usd(row["cache_saving"]),
        "upstream_inference_cost": usd(row["upstream_prompt"] + row["upstream_completion"]),
    }


def _attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "provider_name": attempt["provider"],
        "endpoint_id": attempt["endpoint"],
        "model_permaslug": attempt["model"],
        "status": attempt["status"] or None,
        "is_byok": attempt["is_byok"],
        "latency": attempt["duration_ms"],
    }


def _activity(row: Mapping[Any, Any]) -> dict[str, Any]:
    model = row["model_served"] or ""
    return {
        "date": iso(row["day"] * _DAY_MS)[:10],
        "model": model,
        "model_permaslug": model,
        "endpoint_id": row["endpoint"],
        "provider_name": row["provider"] or "",
        "requests": row["requests"],
        "prompt_tokens": int(row["tokens_prompt"]),
        "cached_tokens": int(row["tokens_cached"]),
        "completion_tokens": int(row["tokens_completion"]),
        "reasoning_tokens": int(row["tokens_reasoning"]),
        "usage": usd(int(row["cost_prompt"] + row["cost_completion"])),
        "byok_usage_inference": usd(int(row["byok"] or 0)),
    }
