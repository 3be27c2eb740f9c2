"""What an answer costs: the caller, the house, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, NamedTuple

from lingflash.core.types import Usage
from lingflash.gateway.accounting import PICO_PER_USD, Cost
from lingflash.gateway.config.tables import RequestsTable
from lingflash.gateway.relay.call import Call
from lingflash.gateway.routing.plan import Candidate, Plan

_MILLION = 10**6


class Reserve(NamedTuple):
    """The most that a request can cost the house's key and a brought one, and its most tokens."""

    own_pico: int
    byok_pico: int
    prompt_tokens: int
    completion_tokens: int


class Bill:
    """Prices of one request's candidates on its day."""

    def __init__(self, requests: RequestsTable, day: date) -> None:
        self._requests = requests
        self._day = day
        # In millionths, so that money stays whole.
        self._fee = round(requests.byok_fee_percent * _MILLION / 100)

    def costs(self, candidate: Candidate, usage: Usage) -> tuple[Cost, Cost]:
        """What the caller pays the house, and what the payer of the key pays the vendor."""
        vendors = candidate.endpoint.price(self._day).cost(usage)
        if not candidate.key.is_brought:
            return vendors, vendors
        fee = Cost(
            prompt=vendors.prompt * self._fee // _MILLION,
            completion=vendors.completion * self._fee // _MILLION,
        )
        return fee, vendors

    def reserve(self, call: Call, plan: Plan) -> Reserve:
        """The most that a request can cost."""
        own = byok = most_prompt = most_answer = 0
        for candidate in plan.may_serve:
            prompt, answer = call.most_tokens(candidate.endpoint, self._requests)
            for cached, written in ((0, 0), (prompt, 0), (0, prompt)):  # whichever is dearest
                usage = Usage(
                    prompt_tokens=prompt,
                    cached_tokens=cached,
                    cache_write_tokens=written,
                    completion_tokens=answer,
                )
                houses, vendors = self.costs(candidate, usage)
                own = max(own, houses.total)
                if candidate.key.is_brought:
                    byok = max(byok, vendors.total)
            most_prompt, most_answer = max(most_prompt, prompt), max(most_answer, answer)
        if call.is_free_of_charge:
            own = byok = 0
        return Reserve(own, byok, most_prompt, most_answer)


def money(costs: tuple[Cost, Cost], *, is_byok: bool) -> Mapping[str, Any]:
    """The fields of `usage` that tell it, in dollars."""
    own, vendors = costs
    return {
        "cost": own.total / PICO_PER_USD,
        "is_byok": is_byok,
        "cost_details": {
            "upstream_inference_cost": vendors.total / PICO_PER_USD,
            "upstream_inference_prompt_cost": vendors.prompt / PICO_PER_USD,
            "upstream_inference_completions_cost": vendors.completion / PICO_PER_USD,
        },
    }
