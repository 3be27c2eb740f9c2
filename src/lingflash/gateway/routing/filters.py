"""What excludes an endpoint from a request, in words; nothing that was asked is ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal

from lingflash.core.errors import InvalidRequestError
from lingflash.core.settings import nearest
from lingflash.gateway.routing.catalog import Catalog, Endpoint
from lingflash.gateway.routing.wish import Wish

_PICO_PER_MTOK = 10**6
_PICO_PER_USD = 10**12


def check_names(catalog: Catalog, wish: Wish) -> None:
    """Refuse a provider that nobody here knows; ignoring one that is not there is no fault.

    Raises:
        InvalidRequestError: the field, and the providers that there are.
    """
    for param, names in (("provider.order", wish.order), ("provider.only", wish.only)):
        for name in names:
            if not any(each.answers_to(name) for each in catalog.endpoints.values()):
                known = sorted(set(catalog.providers.values()))
                raise InvalidRequestError(
                    f"{param} names {name[:100]!r}, which is no provider here"
                    f"{nearest(name, known)} Known: {', '.join(known)}.",
                    param=param,
                )


def is_named(endpoint: Endpoint, names: Iterable[str]) -> bool:
    """Whether a request means an endpoint by one of these names."""
    return any(map(endpoint.answers_to, names))


def why_excluded(endpoint: Endpoint, wish: Wish, dialect: str, day: date) -> str | None:
    """Why an endpoint may not serve a request; None if it may."""
    if dialect not in endpoint.dialects:
        return f"does not speak {dialect}"
    if wish.only and not is_named(endpoint, wish.only):
        return "is not in provider.only"
    if is_named(endpoint, wish.ignore):
        return "is in provider.ignore"
    if wish.order and wish.allow_fallbacks is False and not is_named(endpoint, wish.order):
        return "is not in provider.order, and allow_fallbacks is false"
    if wish.quantizations and endpoint.quantization not in wish.quantizations:
        return f"has quantization {endpoint.quantization}"
    if wish.has_tools and not endpoint.has_tools:
        return "takes no tools"
    return _policy(endpoint, wish) or _price(endpoint, wish, day)


def _policy(endpoint: Endpoint, wish: Wish) -> str | None:
    if wish.wants_no_collection and not endpoint.keeps_no_prompts:
        return "does not declare data_collection = deny"
    if wish.wants_zdr and not endpoint.is_zdr:
        return "does not declare zdr"
    if wish.wants_distillable and not endpoint.is_distillable:
        return "does not declare distillable_text"
    if wish.sort == "exacto" and not endpoint.is_exacto:
        return "does not declare exacto"
    if wish.require_parameters:
        missing = sorted(wish.parameters - endpoint.parameters - _ALWAYS)
        if missing:
            return f"does not declare the parameters {', '.join(missing)}"
    return None


# What every request has, whatever a provider declares.
_ALWAYS = frozenset(("messages", "input", "prompt", "stream", "stream_options", "system",
                     "instructions", "user", "metadata"))  # fmt: skip


def _price(endpoint: Endpoint, wish: Wish, day: date) -> str | None:
    price = endpoint.price(day)
    limits: Sequence[tuple[str, int, int]] = (
        ("prompt", price.prompt, _PICO_PER_MTOK),
        ("completion", price.completion, _PICO_PER_MTOK),
        ("request", price.request, _PICO_PER_USD),
    )
    # Images and audio are served by none and cost nothing, so their limits hold everywhere.
    for name, pico, unit in limits:
        limit = wish.max_price.get(name)
        if limit is not None and Decimal(pico) > limit * unit:
            return f"costs {Decimal(pico) / unit:f} for {name}, over max_price"
    return None
