"""Every table and key of the gateway's file. docs/gateway.md is checked against these fields."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal

from lingflash.core.log import LEVELS
from lingflash.core.settings import above, at_least, between, one_of, setting
from lingflash.gateway.accounting import Dialect
from lingflash.gateway.routing.replicas import BALANCES, Balance
from lingflash.httpd.keys import has_page
from lingflash.link.http_client import Address

DIALECTS: tuple[Dialect, ...] = ("chat", "completions", "responses", "messages")
QUANTIZATIONS = (
    "int4", "int8", "fp4", "fp6", "fp8", "fp16", "bf16", "fp32", "unknown",
)  # fmt: skip
DataCollection = Literal["allow", "deny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTable:
    """`[server]`: where the gateway listens."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8080, "Port to listen on; 0 takes a free one.", bound=between(0, 65535))
    max_body_mb: float = setting(32.0, "Largest request body, MiB.", bound=above(0))
    max_connections: int = setting(10_000, "Connections that may be open.", bound=at_least(1))
    drain_timeout_s: float = setting(
        30.0, "After SIGTERM, how long running requests may take.", bound=at_least(0)
    )
    cors_origins: tuple[str, ...] = setting((), "Origins whose pages may use it; `*` is any.")
    ui: bool | None = setting(None, "The page at /ui; on by default on loopback, off elsewhere.")
    log_level: str = setting("info", "debug, info, warning or error.", bound=one_of(LEVELS))
    metrics_key_variable: str | None = setting(
        None, "Variable with a key that /metrics and /openapi.json need; open without."
    )
    metrics_key_file: Path | None = setting(None, "The same in a file.")
    opentelemetry: bool = setting(
        False, "Whether spans and metrics go to a collector, which `OTEL_*` variables name."
    )

    @property
    def has_page(self) -> bool:
        """Whether /ui is served."""
        return has_page(self.ui, self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinesTable:
    """`[deadlines]`: how long an upstream may take, in seconds."""

    connect_s: float = setting(5.0, "Until the connection stands.", bound=above(0))
    first_byte_s: float = setting(
        120.0, "From then until the head of the answer is there.", bound=above(0)
    )
    idle_s: float = setting(
        120.0, "Between two pieces of an answer, or two events of a stream.", bound=above(0)
    )
    total_s: float = setting(1800.0, "For a request with all its attempts.", bound=above(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTable:
    """`[breaker]`: when an upstream is left alone; each of its keys is counted by itself."""

    window: int = setting(10, "Attempts that are remembered.", bound=between(1, 1000))
    failures: int = setting(5, "Failures among them that open it.", bound=at_least(1))
    cooldown_s: float = setting(
        15.0, "How long it stays open before one request may try.", bound=above(0)
    )
    rate_limit_s: float = setting(
        10.0,
        "How long a key rests after a 429 without Retry-After, or after the upstream refused it.",
        bound=above(0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsTable:
    """`[requests]`: what a request may ask, and what is reserved for it."""

    inline_provider_keys: bool = setting(
        True, "Whether `provider.api_key` and `X-Provider-Key` are taken; false answers 400."
    )
    keep_alive_s: float = setting(
        15.0,
        "A stream that had no byte for so long gets a comment, also before its first content; from"
        " then on a failure is told inside of it, with status 200. 0 sends none.",
        bound=between(0, 3600),
    )
    bytes_per_token: float = setting(
        1.0,
        "Prompt tokens are reserved as bytes of the body over this. At 1 no budget can be exceeded;"
        " 3 is near the truth for text and reserves a third. Of what is no text, such as pictures,"
        " the whole context is reserved.",
        bound=between(1, 8),
    )
    byok_fee_percent: float = setting(
        0.0,
        "What the house takes of a vendor's price when a brought key pays it.",
        bound=between(0, 100),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTable:
    """`[[directory]]`: where the replicas of an upstream are learned."""

    name: str = setting(MISSING, "Name of the directory, as `directory` of an upstream writes it.")
    kind: Literal["static", "dns", "ray"] = setting(
        MISSING,
        "`static`: `replicas` below; `dns`: every address of `host`; `ray`: asks `ling cluster`.",
        bound=one_of(("static", "dns", "ray")),
    )
    replicas: tuple[str, ...] = setting((), "Of `static`: URLs without a path.")
    host: str | None = setting(None, "Of `dns`: a name such as that of a headless service.")
    port: int = setting(8000, "Of `dns`: where they listen.", bound=between(1, 65535))
    url: str | None = setting(None, "Of `ray`: where `ling cluster` listens.")
    token_variable: str | None = setting(
        None, "Variable with the cluster's token, which is the key of the replicas, too."
    )
    token_file: Path | None = setting(None, "The same in a file.")
    every_s: float = setting(1.0, "How often it is asked.", bound=between(0.1, 3600))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTable:
    """`[[upstream]]`: a server or vendor, which requests know as a provider.

    Args:
        slug: what `provider.order` and its like may write for it, too.
        api_key: the house's, None where it has none.
    """

    name: str = setting(MISSING, "Name of the provider, as `provider.order` writes it.")
    slug: str | None = setting(None, "Short name; the name in lower case, `-` for blanks.")
    base_url: str | None = setting(
        None,
        "What paths such as `/chat/completions` are put behind; without a path, `/v1` is added.",
    )
    directory: str | None = setting(
        None, "Name of a `[[directory]]` of replicas, instead of a base URL and a key."
    )
    balance: Balance = setting(
        "belief",
        "How its replicas share the requests: belief (docs/cluster-routing.md); to compare with:"
        " consistent_hash, least_load, round_robin.",
        bound=one_of(BALANCES),
    )
    dialects: tuple[str, ...] = setting(
        ("chat",),
        "What it speaks: chat, completions, responses, messages. Anything else is refused by name.",
        bound=one_of(DIALECTS),
    )
    api_key_variable: str | None = setting(None, "Variable with the house's key for it.")
    api_key_file: Path | None = setting(None, "The same in a file.")
    auth: Literal["bearer", "x-api-key"] = setting(
        "bearer",
        "Header that takes the key: bearer or x-api-key.",
        bound=one_of(("bearer", "x-api-key")),
    )
    allow_private_address: bool = setting(
        False, "Whether it may be on this machine or in a private network."
    )
    data_collection: DataCollection = setting(
        "allow",
        "`deny` declares that it keeps no prompts for training.",
        bound=one_of(("allow", "deny")),
    )
    zdr: bool = setting(False, "Declares zero data retention.")
    distillable_text: bool = setting(False, "Declares that its answers may be trained on.")
    privacy_policy_url: str | None = setting(None, "For /api/v1/providers.")
    terms_of_service_url: str | None = setting(None, "For /api/v1/providers.")
    status_page_url: str | None = setting(None, "For /api/v1/providers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """`[[model.endpoint.price]]`: dollars per million tokens, `request` per request."""

    valid_from: date = setting(date(1970, 1, 1), "First day (UTC) of these prices.")
    prompt: Decimal = setting(Decimal(0), "Prompt tokens.", bound=between(0, 1_000_000))
    completion: Decimal = setting(Decimal(0), "Tokens of the answer.", bound=between(0, 1_000_000))
    cache_read: Decimal | None = setting(
        None, "Prompt tokens from a cache; as `prompt` if empty.", bound=between(0, 1_000_000)
    )
    cache_write: Decimal | None = setting(
        None,
        "Prompt tokens written to a cache; as `prompt` if empty. Of several lifetimes the dearest.",
        bound=between(0, 1_000_000),
    )
    request: Decimal = setting(Decimal(0), "Dollars per request.", bound=between(0, 1_000_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointTable:
    """`[[model.endpoint]]`: a model at an upstream."""

    upstream: str = setting(MISSING, "Name of an `[[upstream]]`.")
    upstream_model: str | None = setting(None, "What the model is called there; the name here.")
    free: bool = setting(False, "Serves `NAME:free`, at no price.")
    context_tokens: int = setting(131_072, "Prompt and answer together.", bound=at_least(1))
    max_output_tokens: int | None = setting(
        None, "Longest answer; the whole context if empty.", bound=at_least(1)
    )
    quantization: str = setting(
        "unknown", "Number format of its weights, such as fp8.", bound=one_of(QUANTIZATIONS)
    )
    tools: bool = setting(True, "Whether it takes tools.")
    exacto: bool = setting(False, "Declares it checked for tool calls: `sort = exacto` wants that.")
    parameters: tuple[str, ...] = setting(
        ("max_tokens", "temperature", "top_p", "stop", "seed", "tools", "tool_choice"),
        "Fields that it honours, for `provider.require_parameters`.",
    )
    price: tuple[PriceTable, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """`[[model]]`: a model that clients can name."""

    name: str = setting(MISSING, "Such as `inclusionai/ling-2.6-flash`.")
    aliases: tuple[str, ...] = setting((), "Other names for it.")
    title: str | None = setting(None, "For people; the name if empty.")
    description: str = setting("", "For /api/v1/models.")
    endpoint: tuple[EndpointTable, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Upstream:
    """An upstream as it is reached.

    Args:
        address: with the house's key, in no repr; of replicas, `at` says where each is.
        path: what stands before the path of a request.
    """

    table: UpstreamTable
    slug: str
    address: Address = field(repr=False)
    path: str

    @property
    def directory(self) -> str | None:
        """Name of the directory that knows its replicas; None if it has one address."""
        return self.table.directory

    def at(self, url: str) -> Address:
        """One of its replicas, with the house's key."""
        return Address.parse_any(url, self.address.api_key)

    @property
    def name(self) -> str:
        """What a request calls it."""
        return self.table.name
