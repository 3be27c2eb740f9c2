"""/api/v1/keys: keys of this gateway, for management keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from lingflash.gateway.accounts.admission import wall_ms
from lingflash.gateway.accounts.routes.callers import accounts_of, given_query, require_manager
from lingflash.gateway.accounts.routes.key import key_to_json
from lingflash.gateway.accounts.times import parse_iso
from lingflash.gateway.accounts.wire import KEY_TABLE, KeyChange, NewKey
from lingflash.httpd.body import json_response, read_request
from lingflash.httpd.openapi import json_body, query_parameters

router = APIRouter(dependencies=[Depends(require_manager)])

_PAGE = 100
_INTEGER, _BOOLEAN = {"type": "integer", "minimum": 0}, {"type": "boolean"}


@router.get(
    "/api/v1/keys",
    openapi_extra=query_parameters(
        offset=_INTEGER, include_disabled=_BOOLEAN, include_expired=_BOOLEAN
    ),
)
async def list_keys(request: Request) -> Response:
    """A hundred keys, the newest first; disabled ones too, expired ones if asked for."""
    given = given_query(
        request, offset=int, include_disabled=bool, include_expired=bool, workspace_id=str
    )
    offset, now = given.get("offset", 0), wall_ms()
    keys = [
        key
        for key in await accounts_of(request).keys.all()
        if (given.get("include_disabled", True) or not key.disabled)
        and (given.get("include_expired") or key.expires_at is None or key.expires_at > now)
    ]
    return json_response({"data": [key_to_json(key) for key in keys[offset : offset + _PAGE]]})


@router.post("/api/v1/keys", openapi_extra=json_body(NewKey))
async def create_key(request: Request) -> Response:
    """Make a key; its text is in this answer and nowhere else."""
    body = await read_request(request, NewKey, KEY_TABLE)
    secret, key = await accounts_of(request).keys.create(_fields(body))
    return json_response({"data": key_to_json(key), "key": secret}, status=201)


@router.get("/api/v1/keys/{hash}")
async def get_key(request: Request, hash: str) -> Response:
    """One key."""
    return json_response({"data": key_to_json(await accounts_of(request).keys.get(hash))})


@router.patch("/api/v1/keys/{hash}", openapi_extra=json_body(KeyChange))
async def change_key(request: Request, hash: str) -> Response:
    """Change what the body names."""
    body = await read_request(request, KeyChange, KEY_TABLE)
    accounts = accounts_of(request)
    key = await accounts.keys.update(hash, _fields(body))
    accounts.forget_key(hash)
    return json_response({"data": key_to_json(key)})


@router.delete("/api/v1/keys/{hash}")
async def delete_key(request: Request, hash: str) -> Response:
    """Revoke a key."""
    accounts = accounts_of(request)
    await accounts.keys.delete(hash)
    accounts.forget_key(hash)
    return json_response({"deleted": True})


# What may be null, and then means none; of the others null is what is left out.
_NULLABLE = ("limit", "limit_reset", "allowed_models", "rpm", "tpm", "concurrency", "expires_at")


def _fields(body: KeyChange) -> dict[str, Any]:
    given = body.model_dump(exclude_unset=True)
    fields = {
        name: value for name, value in given.items() if value is not None or name in _NULLABLE
    }
    if "include_byok_in_limit" in fields:
        fields["include_byok"] = fields.pop("include_byok_in_limit")
    if body.expires_at is not None:
        fields["expires_at"] = parse_iso(body.expires_at, "expires_at")
    return fields
