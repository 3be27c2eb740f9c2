"""/api/v1/sessions/{id}: the token bill, as JSON or CSV."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select

from lingflash.core.errors import NotFoundError, refuse
from lingflash.gateway.accounting import Caller
from lingflash.gateway.accounts.bill import bill_of
from lingflash.gateway.accounts.bill_json import TABLES, bill_to_csv, bill_to_json
from lingflash.gateway.accounts.routes.callers import accounts_of, given_query, require_caller
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import query_parameters
from lingflash.store.tables import generation

router = APIRouter()

_TEXT = {"type": "string"}
CALLER = Depends(require_caller)


@router.get(
    "/api/v1/sessions/{id:path}",
    openapi_extra=query_parameters(format=_TEXT, table=_TEXT, api_key_hash=_TEXT),
)
async def session_bill(request: Request, id: str, caller: Caller = CALLER) -> Response:
    """What a session of the key cost, step by step; of another key's for a management key."""
    given = given_query(request, format=str, table=str, api_key_hash=str)
    form, table = given.get("format", "json"), given.get("table", TABLES[0])
    if form not in ("json", "csv"):
        refuse("format", f"is {form!r}; allowed: json, csv")
    if table not in TABLES:
        refuse("table", f"is {table!r}; allowed: {', '.join(TABLES)}")
    whose = caller.key_hash
    if caller.is_management:
        whose = given.get("api_key_hash") or refuse(
            "api_key_hash", "is missing; a management key says whose session it wants"
        )
    query = (
        select(generation)
        .where(
            generation.c.key_hash == whose,
            generation.c.session_id == id.replace("\0", ""),
            generation.c.step > 0,
        )
        .order_by(generation.c.step)
    )
    database = accounts_of(request).database
    rows = await database.read(lambda c: c.execute(query).mappings().all())
    if not rows:
        raise NotFoundError(f"There is no session {id[:256]!r} of this key.", param="id")
    bill = bill_of(rows)
    if form == "csv":
        return Response(bill_to_csv(bill, table), media_type="text/csv; charset=utf-8")
    return json_response(bill_to_json(id, whose, bill))
