"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.api.state import ServerState, state_of
from lingflash.httpd.body import json_response

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """List the names that requests may use."""
    state = state_of(request)
    names = state.config.served_model_names
    return json_response({"object": "list", "data": [_entry(state, name) for name in names]})


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    state = state_of(request)
    return json_response(_entry(state, state.require_model(name)))


def _entry(state: ServerState, name: str) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": state.created, "owned_by": "lingflash"}
    if state.engine.is_ready:
        entry["max_model_len"] = state.engine.info.max_model_len
    return entry
