"""GET /evidence: claims, what was measured of each, and by which command; for the page's screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from lingflash.httpd.body import json_response


def evidence_router(evidence: Mapping[str, Any]) -> APIRouter:
    """The route, of a server that was started with --evidence."""
    router = APIRouter()

    @router.get("/evidence")
    async def evidence_of_claims() -> Response:
        """Give every claim with what was measured of it, and every record."""
        return json_response(evidence)

    return router
