"""/api/v1/byok: keys of vendors that users stored, for management keys; never their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from lingflash.core.errors import NotFoundError
from lingflash.gateway.accounts.routes.callers import accounts_of, given_query, require_manager
from lingflash.gateway.accounts.times import iso
from lingflash.gateway.accounts.wire import BYOK_TABLE, WORKSPACE, ByokChange, NewByok
from lingflash.httpd.body import json_response, read_request
from lingflash.httpd.openapi import json_body, query_parameters

router = APIRouter(dependencies=[Depends(require_manager)])

_INTEGER = {"type": "integer", "minimum": 0}
_NULLABLE = ("name", "allowed_models", "allowed_api_key_hashes")


@router.get(
    "/api/v1/byok",
    openapi_extra=query_parameters(offset=_INTEGER, limit=_INTEGER, provider={"type": "string"}),
)
async def list_byok(request: Request) -> Response:
    """Stored keys, in the order in which they are tried."""
    given = given_query(request, offset=int, limit=int, provider=str, workspace_id=str)
    rows = await accounts_of(request).vault.all(given.get("provider"))
    offset, limit = given.get("offset", 0), min(given.get("limit", 50), 100)
    shown = [_shown(row) for row in rows[offset : offset + limit]]
    return json_response({"data": shown, "total_count": len(rows)})


@router.post("/api/v1/byok", openapi_extra=json_body(NewByok))
async def create_byok(request: Request) -> Response:
    """Store a key, encrypted."""
    body = await read_request(request, NewByok, BYOK_TABLE)
    row = await accounts_of(request).vault.add(_fields(body))
    return json_response({"data": _shown(row)}, status=201)


@router.get("/api/v1/byok/{id}")
async def get_byok(request: Request, id: str) -> Response:
    """One stored key, masked."""
    return json_response({"data": _shown(await accounts_of(request).vault.get(_id(id)))})


@router.patch("/api/v1/byok/{id}", openapi_extra=json_body(ByokChange))
async def change_byok(request: Request, id: str) -> Response:
    """Change what the body names."""
    body = await read_request(request, ByokChange, BYOK_TABLE)
    row = await accounts_of(request).vault.update(_id(id), _fields(body))
    return json_response({"data": _shown(row)})


@router.delete("/api/v1/byok/{id}")
async def delete_byok(request: Request, id: str) -> Response:
    """Forget a stored key."""
    await accounts_of(request).vault.delete(_id(id))
    return json_response({"deleted": True})


def _id(id: str) -> str:
    if "\0" in id:
        raise NotFoundError("There is no stored key with this id.")
    return id


def _fields(body: ByokChange) -> dict[str, Any]:
    given = body.model_dump(exclude_unset=True)
    return {name: value for name, value in given.items() if value is not None or name in _NULLABLE}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "created_at": iso(row["created_at"]),
        "allowed_user_ids": None,
        "declared_region": None,
        "declared_zdr": None,
        "workspace_id": WORKSPACE,
    }
