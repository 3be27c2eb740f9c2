"""What the relay asks of the accounts: who calls, may they, what did it cost.

    caller = await accounts.authenticate(secret)
    admission = await accounts.admit(Start(...))       # reserves; refuses with 402 or 429
    ...                                                # attempts; accounts.note_progress(...)
    settled = await accounts.settle(admission, End(...))  # exactly once for every admission

Money is an integer number of pico-dollars (1e-12 USD), so that a price of a dollar per million
tokens is the whole number 1,000,000 per token and nothing is ever rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lingflash.core.errors import NotAllowedError
from lingflash.core.types import Usage

PICO_PER_USD = 10**12
MAX_PICO = 10**6 * PICO_PER_USD
"""A million dollars: more is no answer's cost, no budget, and no reservation of a budget together.
The database holds nine times as much."""

Dialect = Literal["chat", "completions", "responses", "messages"]
# completed: the answer is whole. cancelled: the client left. failed: no endpoint gave an answer, or
# one broke off. killed: this process ended first; the sweeper of another writes it. refused: it was
# never admitted (budget, limit), and costs nothing.
Outcome = Literal["completed", "cancelled", "failed", "killed", "refused"]
# upstream: its own usage. counted: what was seen of the stream. estimated: nothing was seen.
UsageSource = Literal["upstream", "counted", "estimated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Pico-dollars per token, and per request."""

    prompt: int = 0
    completion: int = 0
    cache_read: int = 0
    cache_write: int = 0
    request: int = 0

    def cost(self, usage: Usage) -> Cost:
        """What an answer costs; tokens read from a cache or written to one have their own price."""
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        full = usage.prompt_tokens * self.prompt
        saving = cached * (self.prompt - self.cache_read)
        saving += written * (self.prompt - self.cache_write)
        # Counts are what an upstream says; whatever that is, the database must take it.
        return Cost(
            prompt=min(full - saving + self.request, MAX_PICO),
            completion=min(usage.completion_tokens * self.completion, MAX_PICO),
            cache_saving=max(-MAX_PICO, min(saving, MAX_PICO)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Pico-dollars of one answer.

    Args:
        cache_saving: what the prompt would have cost more without a cache; below 0 where writing
            to the cache was dearer than what was read from it saved.
    """

    prompt: int = 0
    completion: int = 0
    cache_saving: int = 0

    @property
    def total(self) -> int:
        """Prompt and answer together."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever holds a key of this gateway.

    Args:
        key_hash: SHA-256 of the key, hex; the key itself is kept nowhere.
        label: the key, masked.
        allowed_models: None allows all.
    """

    key_hash: str
    name: str
    label: str
    is_management: bool = False
    allowed_models: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """A key of a vendor that a user stored here.

    Args:
        secret: in the clear, for the attempt alone; never in a repr, a log or a row.
        is_fallback: tried after the house's key; others are tried before it.
        is_required: for the models that it covers the house's key is never used.
    """

    id: str
    provider: str
    name: str
    secret: str = field(repr=False)
    is_fallback: bool = False
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a stored response is, and whose it is.

    Args:
        endpoint, replica: have it, under the key `byok_id`, as End has them.
    """

    endpoint: str
    replica: str | None
    byok_id: str | None
    key_hash: str
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What is known of a conversation.

    Args:
        id: as the client gave it, or found by content.
        pinned_endpoint: the endpoint that served its last turn, unless that is too long ago.
        pinned_replica: URL of the replica of it that did, where it has some.
        cache_rate: cached over prompt tokens of its turns after the first; None before.
    """

    id: str
    turns: int = 0
    pinned_endpoint: str | None = None
    pinned_replica: str | None = None
    cache_rate: float | None = None

    @property
    def has_bearing(self) -> bool:
        """Whether anything of it can change the order of endpoints."""
        return self.pinned_endpoint is not None or self.cache_rate is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One message of a request as the bill sees it: its size, never its text.

    Args:
        role: system, user, assistant, tool, or tools for their descriptions.
        name: of the tool whose result it is.
        digest: of its content, so that a later turn knows it again.
        num_bytes: of its content; tokens of a turn are shared out by it.
    """

    role: Literal["system", "user", "assistant", "tool", "tools"]
    digest: str
    num_bytes: int
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A request that wants in.

    Args:
        id: of its generation, `gen-...`; the one row in the ledger has it.
        reserve_pico: the most that it can cost on the dearest endpoint that may serve it.
        byok_reserve_pico: the most that a vendor can take from the owner of a brought key; it
            counts against the limit of keys that include it.
        is_byok: with a brought key that alone may serve; the reservation is then of the fee.
        prompt_tokens, completion_tokens: upper bounds, for the limits of tokens per minute and
            for the bill of a request whose process is killed.
        fallbacks: the other models that it names; its key must be allowed them, too.
        is_free: names a model ending in `:free`, among others perhaps.
        parts: for the token bill.
    """

    id: str
    request_id: str
    caller: Caller
    dialect: Dialect
    model: str
    is_streamed: bool
    session_id: str
    reserve_pico: int
    prompt_tokens: int
    completion_tokens: int
    is_free: bool = False
    is_byok: bool = False
    byok_reserve_pico: int = 0
    fallbacks: Sequence[str] = ()
    parts: Sequence[Part] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request that is in; settled exactly once.

    Args:
        session: what is known of its conversation; a new one has no turns.
        limit_headers: `x-ratelimit-*`, for the answer.
    """

    start: Start
    session: Session
    limit_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one endpoint; `status` is HTTP's, 0 where there was no answer."""

    provider: str
    endpoint: str
    model: str
    status: int
    is_byok: bool = False
    error: str | None = None
    duration_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a request ended.

    Args:
        endpoint, provider, model: who served it; None where nobody did.
        replica: URL of the endpoint's replica, where it has some.
        usage: None where nothing came that is to be paid.
        cost: what the caller pays the house. upstream_cost: what the house or, with a brought key,
            the caller pays the vendor.
        byok_id: the stored key that served, or "inline"; None for the house's.
        response_id: by which a later request can go on from the answer, or ask for it.
        wire: what an answer's `generation` row shows beside, such as finish_reason.
    """

    outcome: Outcome
    status: int
    error_code: str | None = None
    attempts: Sequence[Attempt] = ()
    endpoint: str | None = None
    provider: str | None = None
    model: str | None = None
    replica: str | None = None
    usage: Usage | None = None
    usage_source: UsageSource = "upstream"
    cost: Cost = Cost()
    upstream_cost: Cost = Cost()
    byok_id: str | None = None
    response_id: str | None = None
    ttft_ms: int | None = None
    duration_ms: int = 0
    wire: Mapping[str, Any] = field(default_factory=dict)


class Accounts(Protocol):
    """Keys, limits, budgets, sessions and the ledger."""

    @property
    def degraded(self) -> Sequence[str]:
        """What does not work as it should though requests are served, for /ready."""
        ...

    async def authenticate(self, secret: str) -> Caller:
        """Whose key it is.

        Raises:
            AuthenticationError: nobody's, or it is disabled or expired.
        """
        ...

    async def admit(self, start: Start) -> Admission:
        """Reserve what a request may cost, and count it against all limits.

        A refusal leaves one row in the ledger and nothing reserved; so does a caller that is
        cancelled meanwhile.

        Raises:
            InsufficientCreditsError: a budget does not suffice.
            RateLimitError: requests, tokens or concurrent requests are over a limit.
            NotAllowedError: the key may not use the model, or may use none.
            AuthenticationError: the key was revoked, disabled or ran out since authenticate().
            CapacityError: the database failed.
        """
        ...

    def note_progress(
        self,
        admission: Admission,
        usage: Usage,
        cost: Cost,
        *,
        attempt: Attempt | None = None,
        upstream_cost: Cost = Cost(),  # frozen
    ) -> None:
        """What the stream has made so far; if this process is killed, it is billed.

        Args:
            attempt: the one that makes it, for the row.
        """
        ...

    async def settle(self, admission: Admission, end: End) -> None:
        """Write the row, pay, and give the rest of the reservation back.

        It raises nothing: what the database does not take is tried again until it does, and
        `degraded` says so meanwhile. Nor does it stop where its caller is cancelled.
        """
        ...

    async def home_of(self, caller: Caller, response_id: str) -> Home | None:
        """Where a stored response is: the caller's own, else another's of the same id, if any."""
        ...

    async def provider_keys(
        self, caller: Caller, provider: str, names: Sequence[str]
    ) -> Sequence[ProviderKey]:
        """Stored keys that may serve a model there for this caller, in their order.

        Args:
            names: everything that the model is called; a key may be for any of them.
        """
        ...

    async def pins(self) -> Mapping[str, int]:
        """By endpoint, how many sessions would go on there now."""
        ...


def require_management(caller: Caller) -> None:
    """Let management keys pass.

    Raises:
        NotAllowedError: it is an ordinary one.
    """
    if not caller.is_management:
        raise NotAllowedError(
            "This needs a management key; `ling gateway keys create --management` makes one."
        )
