"""What is served: /v1/models as OpenAI lists it, /api/v1/models, endpoints, providers."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Request, Response

from lingflash.gateway.routing.catalog import FREE, Catalog, Endpoint, Model
from lingflash.gateway.state import GatewayState, state_of
from lingflash.httpd.body import json_response

router = APIRouter()
_PICO_PER_USD = Decimal(10**12)
_CHOICES = ("auto", "none", "required", "function")


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """List the names that requests may use."""
    state = state_of(request)
    await state.caller_of(request)
    catalog = state.config.catalog
    data = [_openai_entry(catalog, name) for name in [*catalog.names(), *catalog.aliases]]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    """Describe one model."""
    state = state_of(request)
    await state.caller_of(request)
    return json_response(_openai_entry(state.config.catalog, name))


def _openai_entry(catalog: Catalog, name: str) -> dict[str, Any]:
    wanted = catalog.resolve(name)
    endpoints = wanted.model.served_as(is_free=wanted.is_free)
    return {
        "id": name,
        "object": "model",
        "created": catalog.created,
        "owned_by": ", ".join(dict.fromkeys(each.provider for each in endpoints)),
        "max_model_len": max(each.context_tokens for each in endpoints),
        # Whoever asks for one of these is understood wherever the request goes.
        "honoured_by_all": sorted(frozenset.intersection(*(e.parameters for e in endpoints))),
    }


@router.get("/api/v1/models")
async def list_openrouter_models(request: Request) -> Response:
    """List models with prices and sizes."""
    state = state_of(request)
    await state.caller_of(request)
    catalog = state.config.catalog
    data = [
        _model_entry(catalog, model, is_free)
        for model in catalog.models.values()
        for is_free in (False, True)
        if model.served_as(is_free=is_free)
    ]
    return json_response({"data": data, "links": {"next": None}, "total_count": len(data)})


@router.get("/api/v1/models/{author}/{slug}/endpoints")
async def list_endpoints(request: Request, author: str, slug: str) -> Response:
    """List the endpoints of a model with prices and what was seen of them."""
    state = state_of(request)
    await state.caller_of(request)
    wanted = state.config.catalog.resolve(f"{author}/{slug}")
    entry = _model_entry(state.config.catalog, wanted.model, wanted.is_free)
    names = ("id", "name", "created", "description", "architecture")
    endpoints = [
        _endpoint_entry(state, each) for each in wanted.model.served_as(is_free=wanted.is_free)
    ]
    return json_response({"data": {**{n: entry[n] for n in names}, "endpoints": endpoints}})


@router.get("/api/v1/providers")
async def list_providers(request: Request) -> Response:
    """List the upstreams by the names that `provider.order` takes."""
    state = state_of(request)
    await state.caller_of(request)
    data = [
        {
            "name": each.name,
            "slug": each.slug,
            "privacy_policy_url": each.table.privacy_policy_url,
            "terms_of_service_url": each.table.terms_of_service_url,
            "status_page_url": each.table.status_page_url,
        }
        for each in state.config.upstreams.values()
    ]
    return json_response({"data": data})


def _model_entry(catalog: Catalog, model: Model, is_free: bool) -> dict[str, Any]:
    endpoints = model.served_as(is_free=is_free)
    today = _today()
    cheapest = min(endpoints, key=lambda each: each.price(today).prompt)
    largest = max(endpoints, key=lambda each: each.context_tokens)
    parameters = sorted(set[str]().union(*(each.parameters for each in endpoints)))
    return {
        "id": model.name + (FREE if is_free else ""),
        "canonical_slug": model.name,
        "name": model.title + (" (free)" if is_free else ""),
        "created": catalog.created,
        "description": model.description,
        "context_length": largest.context_tokens,
        "architecture": {
            "modality": "text->text",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "pricing": _pricing(cheapest, today),
        "top_provider": {
            "context_length": cheapest.context_tokens,
            "max_completion_tokens": cheapest.max_output_tokens,
            "is_moderated": False,
        },
        "per_request_limits": None,
        "supported_parameters": parameters,
        "default_parameters": None,
        "supported_voices": None,
        "links": {"details": f"/api/v1/models/{model.name}/endpoints"},
    }


def _endpoint_entry(state: GatewayState, endpoint: Endpoint) -> dict[str, Any]:
    latency = state.measurements.latency_s
    rate = state.measurements.tokens_per_s
    percentiles = ("p50", "p75", "p90", "p99")
    latencies = {each: _ms(latency(endpoint.id, each)) for each in percentiles}
    rates = {each: rate(endpoint.id, each) for each in percentiles}
    return {
        "name": f"{endpoint.provider} | {endpoint.model}",
        "model_id": endpoint.model,
        "model_name": endpoint.model,
        "provider_name": endpoint.provider,
        "tag": f"{endpoint.slug}/{endpoint.quantization}",
        "context_length": endpoint.context_tokens,
        "max_completion_tokens": endpoint.max_output_tokens,
        "max_prompt_tokens": endpoint.context_tokens,
        "quantization": endpoint.quantization,
        "pricing": _pricing(endpoint, _today()),
        "supported_parameters": sorted(endpoint.parameters),
        "supports_implicit_caching": True,
        "supports_diarization": False,
        "supports_tool_choice": dict.fromkeys(_CHOICES, endpoint.has_tools),
        "native_tools": {},
        "service_tier": None,
        "status": 0,
        "uptime_last_30m": None,
        "uptime_last_5m": None,
        "uptime_last_1d": None,
        "latency_last_30m": None if latencies["p50"] is None else latencies,
        "throughput_last_30m": None if rates["p50"] is None else rates,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _pricing(endpoint: Endpoint, today: date) -> dict[str, str]:
    """Dollars per token and request, as texts."""
    price = endpoint.price(today)
    pico = {
        "prompt": price.prompt,
        "completion": price.completion,
        "request": price.request,
        "input_cache_read": price.cache_read,
        "input_cache_write": price.cache_write,
    }
    return {name: f"{Decimal(value) / _PICO_PER_USD:f}" for name, value in pico.items()}


def _today() -> date:
    return datetime.now(UTC).date()
