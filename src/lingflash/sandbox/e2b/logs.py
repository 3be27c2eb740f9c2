"""/sandboxes/{id}/logs: what ran in a sandbox lately and what it wrote, in both of E2B's shapes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.core.errors import InvalidRequestError, refuse
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response
from lingflash.httpd.openapi import query_parameters
from lingflash.sandbox.e2b.access import state_of
from lingflash.sandbox.journal import Entry
from lingflash.sandbox.manager import when

router = APIRouter()

_MAX_ENTRIES = 1000
_INTEGER = {"type": "integer", "minimum": 0}
_DIRECTION = {"type": "string", "enum": ["forward", "backward"]}


@router.get(
    "/sandboxes/{sandbox_id}/logs",
    openapi_extra=query_parameters(start=_INTEGER, limit=_INTEGER),
)
async def first_version(request: Request, sandbox_id: str) -> Response:
    """The oldest first, from a time on (milliseconds since 1970)."""
    given = _given(request, ("start", "limit"))
    found = _entries(request, sandbox_id)
    found = [each for each in found if each.at * 1000 >= given.get("start", 0)]
    entries = [_described(each) for each in found[: given["limit"]]]
    lines = [{"timestamp": each["timestamp"], "line": each["message"]} for each in entries]
    return json_response({"logs": lines, "logEntries": entries})


@router.get(
    "/v2/sandboxes/{sandbox_id}/logs",
    openapi_extra=query_parameters(cursor=_INTEGER, limit=_INTEGER, direction=_DIRECTION),
)
async def second_version(request: Request, sandbox_id: str) -> Response:
    """The same, in either direction from a time."""
    given = _given(request, ("cursor", "limit", "direction"))
    found, cursor = _entries(request, sandbox_id), given.get("cursor")
    if given.get("direction") == "backward":
        found = [each for each in reversed(found) if cursor is None or each.at * 1000 <= cursor]
    elif cursor is not None:
        found = [each for each in found if each.at * 1000 >= cursor]
    return json_response({"logs": [_described(each) for each in found[: given["limit"]]]})


def _entries(request: Request, sandbox_id: str) -> list[Entry]:
    return list(state_of(request).manager.get(sandbox_id, caller_of(request)).journal)


def _given(request: Request, allowed: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {"limit": _MAX_ENTRIES}
    for name, text in request.query_params.items():
        if name not in allowed:
            raise InvalidRequestError(
                f"{name[:40]} is not supported here; allowed: {', '.join(allowed)}.",
                param=name[:40],
            )
        if name == "direction":
            if text not in _DIRECTION["enum"]:
                refuse(name, f"is {text[:40]!r}; allowed: forward, backward")
            result[name] = text
            continue
        if not (text.isascii() and text.isdecimal() and len(text) <= 15):
            refuse(name, f"is {text[:40]!r}; allowed: a whole number, 0 or more")
        result[name] = int(text)
    if result["limit"] > _MAX_ENTRIES:
        refuse("limit", f"is {result['limit']}; allowed: up to {_MAX_ENTRIES}")
    return result


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "timestamp": when(entry.at),
        "message": entry.message,
        "level": entry.level,
        "fields": {"source": entry.source},
    }
