"""/api/v1/usage: requests, tokens and money by key or by session, as JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Select, func, select

from lingflash.core.errors import refuse
from lingflash.gateway.accounting import Caller
from lingflash.gateway.accounts.admission import dollars, wall_ms
from lingflash.gateway.accounts.bill_json import rows_to_csv
from lingflash.gateway.accounts.routes.callers import accounts_of, given_query, require_caller
from lingflash.gateway.accounts.times import iso
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import query_parameters
from lingflash.store.tables import api_key, generation

router = APIRouter()

_DAY_MS = 86_400_000
_DEFAULT_DAYS, _MAX_DAYS = 30, 366
_PAGE = 100
_MAX_CSV_ROWS = 10_000
_GROUPS = ("key", "session")
_TEXT, _INTEGER = {"type": "string"}, {"type": "integer", "minimum": 0}
_SUMS = (
    *("tokens_prompt", "tokens_cached", "tokens_cache_write"),
    *("tokens_completion", "tokens_reasoning"),
    *("cost_prompt", "cost_completion", "cache_saving", "upstream_prompt", "upstream_completion"),
)
CALLER = Depends(require_caller)


@router.get(
    "/api/v1/usage",
    openapi_extra=query_parameters(
        group_by=_TEXT, days=_INTEGER, api_key_hash=_TEXT, offset=_INTEGER, format=_TEXT
    ),
)
async def usage(request: Request, caller: Caller = CALLER) -> Response:
    """What keys or sessions used lately, the latest first; of other keys for a management key."""
    given = given_query(request, group_by=str, days=int, api_key_hash=str, offset=int, format=str)
    group, form = given.get("group_by", _GROUPS[0]), given.get("format", "json")
    days, offset = given.get("days", _DEFAULT_DAYS), given.get("offset", 0)
    if group not in _GROUPS:
        refuse("group_by", f"is {group!r}; allowed: {', '.join(_GROUPS)}")
    if form not in ("json", "csv"):
        refuse("format", f"is {form!r}; allowed: json, csv")
    if not 1 <= days <= _MAX_DAYS:
        refuse("days", f"is {days}; allowed: 1 to {_MAX_DAYS}")
    since = wall_ms() - days * _DAY_MS
    whose = given.get("api_key_hash") if caller.is_management else caller.key_hash
    size = _MAX_CSV_ROWS if form == "csv" else _PAGE
    query = _query(group, since, whose).limit(size + 1).offset(offset)
    rows = await accounts_of(request).database.read(lambda c: c.execute(query).mappings().all())
    data = [_row(row) for row in rows[:size]]
    if form == "csv":
        return Response(rows_to_csv(data), media_type="text/csv; charset=utf-8")
    return json_response({"data": data, "since": iso(since), "has_more": len(rows) > size})


def _query(group: str, since: int, whose: str | None) -> Select[*tuple[Any, ...]]:
    row = generation.c
    by = [row.key_hash, *([row.session_id] if group == "session" else [])]
    sums = [func.sum(row[name]).label(name) for name in _SUMS]
    first, last = (f(row.created_at).label(n) for f, n in ((func.min, "first"), (func.max, "last")))
    grouped = select(*by, func.count().label("requests"), *sums, first, last)
    grouped = grouped.where(row.created_at >= since).group_by(*by)
    if whose is not None:
        grouped = grouped.where(row.key_hash == whose)
    found = grouped.subquery()
    # A key that was deleted has rows and no name.
    named = found.join(api_key, api_key.c.hash == found.c.key_hash, isouter=True)
    ids = [found.c[each.name] for each in by]
    return (
        select(api_key.c.name.label("key_name"), api_key.c.label.label("key_label"), *found.c)
        .select_from(named)
        .order_by(found.c.last.desc(), *ids)
    )


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    session = {"session_id": row["session_id"]} if "session_id" in row else {}
    return {
        **session,
        "key_hash": row["key_hash"],
        "key_name": row["key_name"],
        "key_label": row["key_label"],
        "requests": row["requests"],
        "prompt_tokens": int(row["tokens_prompt"]),
        "cached_tokens": int(row["tokens_cached"]),
        "cache_write_tokens": int(row["tokens_cache_write"]),
        "completion_tokens": int(row["tokens_completion"]),
        "reasoning_tokens": int(row["tokens_reasoning"]),
        "cost_usd": dollars(int(row["cost_prompt"] + row["cost_completion"])),
        "cache_saving_usd": dollars(int(row["cache_saving"])),
        "upstream_cost_usd": dollars(int(row["upstream_prompt"] + row["upstream_completion"])),
        "first_at": iso(row["first"]),
        "last_at": iso(row["last"]),
    }
