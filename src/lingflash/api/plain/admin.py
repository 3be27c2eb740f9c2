"""POST /reset_prefix_cache, with the admin key alone."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Depends, Request, Response

from lingflash.api.state import state_of
from lingflash.core.log import log_event
from lingflash.httpd.auth import require_admin_key
from lingflash.httpd.body import json_response

logger = logging.getLogger("lingflash.api")
router = APIRouter(dependencies=[Depends(require_admin_key)])


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(request: Request) -> Response:
    """Forget every computed prefix, of all keys and salts; running requests go on."""
    state = state_of(request)
    state.require_ready()
    blocks, checkpoints = await state.engine.reset_prefix_cache()
    fields = {"request_id": request.state.request_id, "blocks": blocks}
    log_event(logger, "prefix_cache_reset", fields | {"checkpoints": checkpoints})
    return json_response({"status": "reset", "blocks": blocks, "checkpoints": checkpoints})
