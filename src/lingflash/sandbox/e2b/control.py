"""/sandboxes: who has which, and for how long."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.core.errors import InvalidRequestError
from lingflash.core.log import log_event
from lingflash.httpd.auth import caller_of
from lingflash.httpd.body import json_response, read_request
from lingflash.sandbox.config import cpu_count
from lingflash.sandbox.e2b.access import state_of
from lingflash.sandbox.e2b.schemas import (
    CONNECT,
    NEW_SANDBOX,
    PAUSE,
    TIMEOUT,
    Connect,
    NewSandbox,
    Pause,
    Timeout,
)
from lingflash.sandbox.manager import Manager, Sandbox, when

logger = logging.getLogger("lingflash.sandbox")

router = APIRouter()

ENVD_VERSION = "0.6.1"
"""What the SDKs may ask of a sandbox: all that came with it and before, such as closing stdin and
octet-stream uploads, but not 0.6.2's metadata of files."""
_MIB = 2**20


@router.post("/v2/sandboxes")
@router.post("/sandboxes")
async def create(request: Request) -> Response:
    """Make a sandbox."""
    state = state_of(request)
    state.require_ready()
    body = await read_request(request, NewSandbox, NEW_SANDBOX)
    manager = state.manager
    wants_internet = bool(body.allow_internet_access or body.allowInternetAccess)
    if wants_internet and manager.config.internet == "strict":
        raise InvalidRequestError(
            "allow_internet_access is true, but this server gives no network (--internet strict).",
            param="allow_internet_access",
        )
    sandbox = await manager.create(
        caller_of(request),
        timeout_s=body.timeout,
        template=body.templateID,
        metadata=body.metadata,
        env=body.envVars,
        pauses=bool(body.autoPause),
    )
    if await request.is_disconnected():
        await manager.kill(sandbox)  # nobody knows of it
        raise InvalidRequestError("The caller left.")
    if wants_internet and manager.config.internet == "deny":
        log_event(logger, "no_internet", {"sandbox": sandbox.id, "hint": "see --internet"})
    return json_response(_described(sandbox, manager, with_token=True), status=201)


@router.get("/v2/sandboxes")
@router.get("/sandboxes")
async def list_all(request: Request) -> Response:
    """The caller's sandboxes, all on one page."""
    manager = state_of(request).manager
    states = ",".join(request.query_params.getlist("state")).split(",")
    wanted = [state for state in states if state] or ["running", "paused"]
    found = [s for s in manager.all_of(caller_of(request)) if s.state in wanted]
    for pair in request.query_params.get("metadata", "").split("&"):
        key, _, value = pair.partition("=")
        if key:
            found = [s for s in found if s.metadata.get(key) == value]
    return json_response([_described(s, manager) for s in found])


@router.get("/sandboxes/{sandbox_id}")
async def get(request: Request, sandbox_id: str) -> Response:
    """One of them."""
    manager = state_of(request).manager
    sandbox = manager.get(sandbox_id, caller_of(request))
    return json_response(_described(sandbox, manager, with_token=True))


@router.delete("/sandboxes/{sandbox_id}")
async def kill(request: Request, sandbox_id: str) -> Response:
    """End one; answered when nothing of it is left."""
    manager = state_of(request).manager
    await manager.kill(manager.get(sandbox_id, caller_of(request)))
    return Response(status_code=204)


@router.post("/sandboxes/{sandbox_id}/timeout")
@router.post("/sandboxes/{sandbox_id}/refreshes")
async def set_timeout(request: Request, sandbox_id: str) -> Response:
    """Set when it ends."""
    manager = state_of(request).manager
    body = await read_request(request, Timeout, TIMEOUT)
    sandbox = manager.get(sandbox_id, caller_of(request))
    manager.set_timeout(sandbox, body.duration if body.timeout is None else body.timeout)
    return Response(status_code=204)


@router.post("/v2/sandboxes/{sandbox_id}/connect")
@router.post("/sandboxes/{sandbox_id}/connect")
@router.post("/sandboxes/{sandbox_id}/resume")
async def connect(request: Request, sandbox_id: str) -> Response:
    """Take it up again, after a pause or from another program; its end never comes nearer."""
    manager = state_of(request).manager
    body = await read_request(request, Connect, CONNECT)
    sandbox = manager.get(sandbox_id, caller_of(request))
    was_paused = sandbox.state == "paused"
    manager.connect(sandbox, body.timeout)
    described = _described(sandbox, manager, with_token=True)
    return json_response(described, status=201 if was_paused else 200)


@router.post("/sandboxes/{sandbox_id}/pause")
async def pause(request: Request, sandbox_id: str) -> Response:
    """Keep its files and end its processes."""
    manager = state_of(request).manager
    if request.headers.get("content-length", "0") != "0":
        await read_request(request, Pause, PAUSE)
    sandbox = manager.get(sandbox_id, caller_of(request))
    if sandbox.state == "paused":
        return json_response({"code": 409, "message": "It is paused already."}, status=409)
    await manager.pause(sandbox)
    # 204 by the API; who reads the header knows what a pause is here.
    return Response(status_code=204, headers={"x-lingflash-pause": "files kept, processes ended"})


@router.get("/sandboxes/{sandbox_id}/metrics")
async def metrics(request: Request, sandbox_id: str) -> Response:
    """What it uses now; no history is kept."""
    manager = state_of(request).manager
    sandbox = manager.get(sandbox_id, caller_of(request))
    usage = await sandbox.box.usage()
    now, limits = time.time(), manager.config.limits
    sample = {
        "timestamp": when(now),
        "timestampUnix": int(now),
        "cpuCount": cpu_count(),
        "cpuUsedPct": 100.0 * float(usage["cpu_s"]) / max(now - sandbox.started_at, 0.001),
        "memUsed": int(usage["memory_bytes"]),
        "memTotal": limits.memory_bytes,
        "memCache": 0,
        "diskUsed": int(usage["disk_bytes"]),
        "diskTotal": limits.disk_bytes,
    }
    return json_response([sample])


@router.post("/sandboxes/{sandbox_id}/snapshots")
@router.post("/sandboxes/{sandbox_id}/fork")
@router.put("/sandboxes/{sandbox_id}/network")
async def not_built(request: Request, sandbox_id: str) -> Response:
    """What E2B's cloud has and this server has not."""
    what = request.scope["path"].rpartition("/")[2]
    raise InvalidRequestError(f"{what} is not supported by this sandbox server.", param=what)


def _described(sandbox: Sandbox, manager: Manager, *, with_token: bool = False) -> dict[str, Any]:
    limits = manager.config.limits
    told: dict[str, Any] = {
        "templateID": sandbox.template,
        "sandboxID": sandbox.id,
        "clientID": "local",
        "envdVersion": ENVD_VERSION,
        "startedAt": when(sandbox.started_at),
        "endAt": when(sandbox.ends_at),
        "state": sandbox.state,
        "cpuCount": cpu_count(),
        "memoryMB": limits.memory_bytes // _MIB,
        "diskSizeMB": limits.disk_bytes // _MIB,
        "metadata": sandbox.metadata,
        "limits": {
            "processes": limits.processes,
            "diskInodes": limits.disk_inodes,
            "cpuSecondsOfAProcess": limits.cpu_s,
            "outputBytesOfARun": limits.output_bytes,
        },
        "allowInternetAccess": manager.config.internet == "allow",
        "domain": None,
        "lifecycle": {
            "autoResume": False,
            "onTimeout": "pause" if sandbox.pauses else "kill",
        },
    }
    if with_token:
        told["envdAccessToken"] = sandbox.token
    return told
