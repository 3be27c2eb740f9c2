"""Whether a request may come in, as far as its key and its budgets say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lingflash.core.errors import (
    AuthenticationError,
    InsufficientCreditsError,
    LingflashError,
    NotAllowedError,
    RateLimitError,
)
from lingflash.gateway.accounting import MAX_PICO, PICO_PER_USD, Caller, Start
from lingflash.gateway.accounts.balance import Balance, next_reset
from lingflash.gateway.accounts.config import AccountsConfig

HOUSE = "house"
"""The scope of the budget of all keys together."""


@dataclass(frozen=True, slots=True)
class KeyState:
    """What can have changed about a key since it was looked up."""

    disabled: bool
    expires_at: int | None
    concurrency: int | None


def model_refusal(caller: Caller, model: str) -> NotAllowedError | None:
    """Why a caller may not use a model; a variant such as `:free` is allowed with its model."""
    if caller.is_management:
        return NotAllowedError(
            "This key manages keys and may not run models; use one made without --management."
        )
    allowed = caller.allowed_models
    if allowed is None or model in allowed or model.rpartition(":")[0] in allowed:
        return None
    return NotAllowedError(
        f"This key may not use {model!r}; allowed: {', '.join(allowed) or 'no model'}.",
        param="model",
    )


def refusal_of(
    start: Start,
    key: KeyState | None,
    layers: Sequence[Balance],
    config: AccountsConfig,
    now_ms: int,
) -> LingflashError | None:
    """Why a request may not come in; None if it may.

    Args:
        key: None if it was revoked.
        layers: budgets, the key's own last; their windows are the present ones.
    """
    if key is None or key.disabled:
        return AuthenticationError("The API key was revoked or is disabled.")
    own = layers[-1]
    # A clock that goes back does not bring an expired key to life again.
    if key.expires_at is not None and key.expires_at <= max(own.clock, now_ms):
        return AuthenticationError("The API key has expired.")
    if key.concurrency is not None and own.running >= key.concurrency:
        return RateLimitError(
            f"{own.running} requests of this key are running; allowed: {key.concurrency}. "
            "Wait for one to end.",
            headers={"retry-after": "1"},
        )
    if start.is_free and not start.is_byok and own.free_used >= config.free_per_day:
        return _free_day_refusal(own, config)
    for layer in layers:
        if not layer.can_hold(start.reserve_pico, start.byok_reserve_pico):
            return _too_much_refusal(start, layer)
        if not layer.suffices(start.reserve_pico, start.byok_reserve_pico):
            return _budget_refusal(start, layer)
    return None


def _free_day_refusal(own: Balance, config: AccountsConfig) -> RateLimitError:
    reset = next_reset("daily", own.clock)
    assert reset is not None
    seconds = max(1, round(reset.timestamp() - own.clock / 1000))
    return RateLimitError(
        f"{own.free_used} requests to free models today; allowed: {config.free_per_day} a day. "
        f"The next day begins {reset.isoformat()}.",
        headers={
            "retry-after": str(seconds),
            "x-ratelimit-limit": str(config.free_per_day),
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": str(int(reset.timestamp() * 1000)),
        },
    )


def _too_much_refusal(start: Start, layer: Balance) -> InsufficientCreditsError:
    whose = "all keys" if layer.scope == HOUSE else "this key"
    running = max(layer.reserved, layer.reserved_byok)
    return InsufficientCreditsError(
        f"This request may cost ${dollars(max(start.reserve_pico, start.byok_reserve_pico))}, and "
        f"running ones of {whose} ${dollars(running)}; together more than ${dollars(MAX_PICO)} is "
        "let in for nobody. Ask for fewer tokens (max_tokens), or wait for others to end."
    )


def _budget_refusal(start: Start, layer: Balance) -> InsufficientCreditsError:
    needed = start.reserve_pico + (start.byok_reserve_pico if layer.include_byok else 0)
    whose = "All keys together have" if layer.scope == HOUSE else "This key has"
    window = f" of its {layer.limit_reset} limit" if layer.limit_reset else " of its limit"
    reset = next_reset(layer.limit_reset, layer.clock)
    later = f"; it begins anew {reset.isoformat()}" if reset else ""
    return InsufficientCreditsError(
        f"This request may cost ${dollars(needed)}; {whose} "
        f"${dollars(max(0, layer.remaining or 0))} left{window}{later}. "
        "Ask for fewer tokens (max_tokens), or raise the limit."
    )


def dollars(amount: int) -> str:
    """Exact, without needless zeros."""
    whole, rest = divmod(abs(amount), PICO_PER_USD)
    text = f"{whole}.{rest:012}".rstrip("0").rstrip(".")
    return f"-{text}" if amount < 0 else text


def wall_ms() -> int:
    """The clock."""
    return time.time_ns() // 1_000_000
