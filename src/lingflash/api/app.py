"""Puts the HTTP application together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, FastAPI, Request

from lingflash.api.chat import route as chat
from lingflash.api.code import route as containers
from lingflash.api.completions import route as completions
from lingflash.api.config import ServerConfig
from lingflash.api.messages import route as messages
from lingflash.api.plain import admin, models, tokenize
from lingflash.api.plain.evidence import evidence_router
from lingflash.api.responses import route as responses
from lingflash.api.state import ServerState, state_of
from lingflash.httpd.app import make_app
from lingflash.httpd.auth import has_key, require_key
from lingflash.httpd.health import health_router
from lingflash.httpd.openapi import install_openapi
from lingflash.httpd.page import install_page
from lingflash.link.client import EngineClient
from lingflash.protocol.containers import CodeToRun, NewContainer
from lingflash.protocol.endpoint_fields import DETOKENIZE, ENDPOINT_FIELDS, TOKENIZE

# Fields that the answers of an endpoint always have.
_COMPLETION = ("id", "object", "created", "model", "choices", "usage")
_ANSWERS = {
    "/v1/chat/completions": _COMPLETION,
    "/v1/completions": _COMPLETION,
    "/v1/responses": ("id", "object", "created_at", "model", "output", "status", "usage"),
    "/v1/responses/input_tokens": ("object", "input_tokens"),
    "/v1/responses/{response_id}": ("id", "object"),
    "/v1/responses/{response_id}/cancel": ("id", "object", "status"),
    "/v1/responses/{response_id}/input_items": ("object", "data", "has_more"),
    "/v1/messages": ("id", "type", "role", "model", "content", "stop_reason", "usage"),
    "/v1/messages/count_tokens": ("input_tokens",),
    "/v1/containers": ("object",),
    "/v1/containers/{container_id}": ("id", "object"),
    "/v1/containers/{container_id}/files": ("object",),
    "/v1/containers/{container_id}/files/{file_id}": ("id", "object"),
    "/v1/models": ("object", "data"),
    "/v1/models/{name}": ("id", "object", "created", "owned_by"),
    "/reset_prefix_cache": ("status", "blocks", "checkpoints"),
    "/tokenize": ("tokens", "count"),
    "/tokenizer_info": ("tokenizer_class",),
    "/detokenize": ("prompt",),
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def create_app(
    engine: EngineClient,
    config: ServerConfig | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> FastAPI:
    """Build the application around an engine, which may still be loading.

    Args:
        engine: whoever made it starts and stops it.
        evidence: what `config.evidence` holds; whoever can read it is above this room.

    Returns:
        The application; `app.state.context` is its ServerState.

    Raises:
        ModelLoadError: tokenizer, template or generation_config.json cannot be read.
    """
    config = config or ServerConfig()
    app = make_app(ServerState(engine, config))
    app.include_router(health_router({"name": "lingflash", "api": "/v1"}, _while_ready))
    app.include_router(admin.router)
    for module in (chat, completions, responses, containers, messages, models, tokenize):
        app.include_router(module.router, dependencies=[Depends(require_key)])
    screens = ["playground", "dashboard"]
    if evidence is not None:
        screens.append("evidence")
        app.include_router(evidence_router(evidence), dependencies=[Depends(require_key)])
    if config.has_page:
        install_page(
            app,
            "ling serve",
            screens,
            needs_key=bool(config.api_keys),
            features=["progress", "reports", "tokens", *(["code"] if config.sandbox else [])],
        )
    endpoints = (*ENDPOINT_FIELDS.values(), TOKENIZE, DETOKENIZE)
    models_of_bodies = [*(e.model for e in endpoints), NewContainer, CodeToRun]
    install_openapi(app, models_of_bodies, answers=_ANSWERS, streams=_STREAMS)
    return app


def _while_ready(request: Request) -> dict[str, Any]:
    """What a gateway or a cluster wants to know; `protocol.replicas.Health` says what each is.

    As with /metrics, who has no key is not told how much there is to do.
    """
    state = state_of(request)
    info, stats = state.engine.info, state.engine.stats
    if not has_key(request):
        return {"prefix_cache": info.prefix_cache}
    sequences = stats.num_running + stats.num_waiting
    return {
        "prefix_cache": info.prefix_cache,
        "model": state.config.served_model_names[0],
        "capacity": info.max_num_seqs,
        "sequences": sequences,
        "tokens_in_flight": stats.tokens_in_flight,
        "queued_prompt_tokens": stats.queued_prompt_tokens,
        "taken_prompt_tokens": stats.prompt_tokens + stats.prefix_hit_tokens,
        "sessions": sequences + stats.state_checkpoints,
    }
