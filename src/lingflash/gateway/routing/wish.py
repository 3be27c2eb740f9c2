"""What a request says of its route: `models`, `provider`, `session_id` and what goes with them.

These fields are the gateway's own: they are read here and never sent on. An unknown one inside
`provider` is refused; one that no endpoint can honour excludes endpoints (`filters.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from lingflash.core.errors import refuse
from lingflash.protocol.fields import FieldTable, Refusal, parse_request

SortBy = Literal["price", "throughput", "latency", "exacto"]
# A vendor's options may not take over what the gateway decides or bills by.
_NO_OPTIONS = ("model", "stream", "stream_options", "n", "best_of", "max_tokens",
               "max_completion_tokens", "max_output_tokens", "messages", "prompt", "input",
               "background", "previous_response_id", "conversation")  # fmt: skip


# Over any price, and far from where decimals overflow.
_MAX_USD = 10**12


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# Each is compared with every endpoint, while other requests wait.
_Name = Annotated[str, Field(max_length=256)]
_Names = Annotated[list[_Name], Field(max_length=256)]


class _Percentiles(_Strict):
    p50: float | None = Field(None, ge=0)
    p75: float | None = Field(None, ge=0)
    p90: float | None = Field(None, ge=0)
    p99: float | None = Field(None, ge=0)


class _Sort(_Strict):
    by: SortBy | None = None
    partition: Literal["model", "none"] | None = None


class _MaxPrice(_Strict):
    prompt: str | float | None = None
    completion: str | float | None = None
    request: str | float | None = None
    image: str | float | None = None
    audio: str | float | None = None

    @field_validator("*")
    @classmethod
    def _is_number(cls, value: str | float | None) -> str | float | None:
        try:
            is_number = value is None or 0 <= Decimal(str(value)) <= _MAX_USD
        except InvalidOperation:
            is_number = False
        if not is_number:
            raise ValueError("must be a number of dollars per million tokens, 0 or more")
        return value


class _Provider(_Strict):
    order: _Names | None = None
    only: _Names | None = None
    ignore: _Names | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    enforce_distillable_text: bool | None = None
    quantizations: _Names | None = None
    sort: SortBy | _Sort | None = None
    max_price: _MaxPrice | None = None
    preferred_min_throughput: float | _Percentiles | None = None
    preferred_max_latency: float | _Percentiles | None = None
    options: dict[str, dict[str, Any]] | None = None
    api_key: SecretStr | None = None


class _RoutingFields(_Strict):
    model: _Name | None = None
    models: list[_Name] | None = Field(None, max_length=16)
    provider: _Provider | None = None
    session_id: str | None = None
    trace: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None


_NESTED = {"sort": _Sort, "max_price": _MaxPrice, "preferred_min_throughput": _Percentiles,
           "preferred_max_latency": _Percentiles}  # fmt: skip
_TABLE = FieldTable(
    refused={
        "route": Refusal(
            "is not supported with another value than 'fallback'; use models", ("fallback",)
        ),
        "transforms": Refusal("is not supported; shorten the conversation"),
        "plugins": Refusal("is not supported; no plugins run here"),
    },
    options={
        "provider": FieldTable(
            known=tuple(_Provider.model_fields),
            options={
                name: FieldTable(known=tuple(model.model_fields)) for name, model in _NESTED.items()
            },
        )
    },
)
OWN_FIELDS = frozenset(
    ("models", "provider", "session_id", "trace", "usage", "route", "transforms", "plugins")
)
"""Fields of a request that are for the gateway, and that no upstream sees."""
_READ_HERE = OWN_FIELDS | _RoutingFields.model_fields.keys()
_NO_PROVIDER = _Provider()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks of its route.

    Args:
        models: names, the first that can be served serves.
        allow_fallbacks: None where the request does not say.
        max_price: dollars per million tokens, by what they are for.
        min_throughput, max_latency: by percentile; tokens per second, seconds.
        options: fields for the body, by the provider's name.
        inline_key: brought with the request.
        parameters: fields of the request, for `require_parameters`.
        prompt_tokens, completion_tokens: of the request; None leaves the answer's length open.
    """

    models: tuple[str, ...]
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool | None = None
    require_parameters: bool = False
    wants_no_collection: bool = False
    wants_zdr: bool = False
    wants_distillable: bool = False
    quantizations: tuple[str, ...] = ()
    sort: SortBy | None = None
    is_unpartitioned: bool = False
    max_price: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    min_throughput: Mapping[str, float] = field(default_factory=dict[str, float])
    max_latency: Mapping[str, float] = field(default_factory=dict[str, float])
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    inline_key: str | None = field(default=None, repr=False)
    parameters: frozenset[str] = frozenset()
    has_tools: bool = False
    prompt_tokens: int = 0
    completion_tokens: int | None = None


def read_wish(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    prompt_tokens: int = 0,
    completion_tokens: int | None = None,
) -> Wish:
    """Read the gateway's fields of a request.

    Args:
        headers: by their names in lower case.

    Raises:
        InvalidRequestError: one is unknown or not what it may be.
    """
    own = {name: value for name, value in body.items() if name in _READ_HERE}
    fields = parse_request(_RoutingFields, own, _TABLE)
    provider = fields.provider or _NO_PROVIDER
    sort = provider.sort
    by = sort.by if isinstance(sort, _Sort) else sort
    price = provider.max_price.model_dump(exclude_none=True) if provider.max_price else {}
    tools = body.get("tools")
    return Wish(
        models=_models(fields),
        order=tuple(provider.order or ()),
        only=tuple(provider.only or ()),
        ignore=tuple(provider.ignore or ()),
        allow_fallbacks=provider.allow_fallbacks,
        require_parameters=bool(provider.require_parameters),
        wants_no_collection=provider.data_collection == "deny",
        wants_zdr=bool(provider.zdr),
        wants_distillable=bool(provider.enforce_distillable_text),
        quantizations=tuple(each.lower() for each in provider.quantizations or ()),
        sort=by,
        is_unpartitioned=isinstance(sort, _Sort) and sort.partition == "none",
        max_price={name: Decimal(str(value)) for name, value in price.items()},
        min_throughput=_by_percentile(provider.preferred_min_throughput),
        max_latency=_by_percentile(provider.preferred_max_latency),
        options=_options(provider.options or {}),
        inline_key=_inline_key(provider, headers),
        parameters=frozenset(
            name for name, value in body.items() if value is not None and name not in _READ_HERE
        ),
        has_tools=isinstance(tools, list) and bool(tools),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def _models(fields: _RoutingFields) -> tuple[str, ...]:
    named = ([fields.model] if fields.model else []) + (fields.models or [])
    if not named:
        refuse("model", "is missing; name one of /v1/models")
    return tuple(dict.fromkeys(named))


def _by_percentile(value: float | _Percentiles | None) -> dict[str, float]:
    if value is None:
        return {}
    if isinstance(value, _Percentiles):
        return value.model_dump(exclude_none=True)
    return {"p50": value}


def _options(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    for provider, fields in given.items():
        for name in fields:
            if name in _NO_OPTIONS or name in OWN_FIELDS:
                refuse(f"provider.options.{provider}.{name}", "is not for the vendor to decide")
    return {provider.strip().lower(): fields for provider, fields in given.items()}


def _inline_key(provider: _Provider, headers: Mapping[str, str]) -> str | None:
    """The brought key; the body's wins over the header's."""
    given = provider.api_key.get_secret_value() if provider.api_key is not None else None
    where = "provider.api_key"
    if not given:
        given, where = headers.get("x-provider-key", "").strip(), "x-provider-key"
    if not given:
        return None
    if not given.isascii() or not given.isprintable() or " " in given:
        refuse(where, "has characters that no HTTP header holds")
    named = provider.only or provider.order or []
    if len({name.strip().lower() for name in named}) != 1:
        refuse(where, "needs provider.order or provider.only with exactly one name, the key's own")
    return given
