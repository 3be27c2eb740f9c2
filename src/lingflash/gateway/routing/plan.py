"""Everything of one request's route: who may serve, in which order, with which key, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from lingflash.core.errors import InvalidRequestError
from lingflash.gateway.accounting import ProviderKey, Session
from lingflash.gateway.routing.catalog import Catalog, Endpoint, Wanted
from lingflash.gateway.routing.filters import check_names, is_named, why_excluded
from lingflash.gateway.routing.measurements import Measurements
from lingflash.gateway.routing.ranking import Ranker
from lingflash.gateway.routing.replicas import Choice
from lingflash.gateway.routing.wish import Wish, read_wish

# So many replicas of an endpoint are tried; of hundreds the next would do no better.
_MOST_REPLICAS = 4

KeyKind = Literal["house", "stored", "inline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The key of an attempt.

    Args:
        id: of a stored key; "inline" and "house" for the others.
        name: for messages to the key's owner.
        secret: None for the house's, which the upstream's address has.
    """

    kind: KeyKind
    id: str
    name: str
    secret: str | None = field(default=None, repr=False)

    @property
    def is_brought(self) -> bool:
        """Whether the caller pays the vendor."""
        return self.kind != "house"

    @property
    def byok_id(self) -> str | None:
        """What the ledger calls a brought key; None for the house's."""
        return self.id if self.is_brought else None


HOUSE = Key(kind="house", id="house", name="the house's key")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint and the key to try it with.

    Args:
        choice: which of the endpoint's replicas, where a directory names them.
    """

    endpoint: Endpoint
    key: Key
    choice: Choice | None = None

    @property
    def replica(self) -> str | None:
        """The URL of that replica."""
        return None if self.choice is None else self.choice.replica.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The route of one request.

    Args:
        candidates: in order.
        may_serve: those that can be among them, whatever the session; in no order.
        rule: session, order, sort=..., price: what put the first one there.
        excluded: the others by their ids, and why.
        resting: those that would do, but are left alone for so many seconds.
        wanted: the models that the request named.
    """

    candidates: Sequence[Candidate]
    may_serve: Sequence[Candidate]
    rule: str
    excluded: Sequence[tuple[Endpoint, str]]
    resting: Sequence[tuple[Candidate, float]]
    wanted: Sequence[Wanted]

    @property
    def is_byok_only(self) -> bool:
        """Whether brought keys alone may serve."""
        return bool(self.may_serve) and all(each.key.is_brought for each in self.may_serve)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a plan depends on besides the request.

    Args:
        keys: stored keys that may serve, by the provider's short name, in their order.
        rests_s: for how long a candidate is left alone.
        replicas: of an endpoint whose upstream has a directory, in the order to try them; None of
            any other.
        takes_inline_keys: whether requests may bring keys.
    """

    session: Session
    keys: Mapping[str, Sequence[ProviderKey]]
    rests_s: Callable[[Candidate], float]
    measurements: Measurements
    day: date
    replicas: Callable[[Endpoint], Sequence[Choice] | None] = lambda endpoint: None
    takes_inline_keys: bool = True


def make_plan(catalog: Catalog, wish: Wish, dialect: str, situation: Situation) -> Plan:
    """Decide the route of a request.

    Raises:
        NotFoundError: a model is not served here.
        InvalidRequestError: a provider is unknown, or a brought key is not taken.
    """
    if wish.inline_key is not None and not situation.takes_inline_keys:
        raise InvalidRequestError(
            "provider.api_key is not taken here; store the key with /api/v1/byok.",
            param="provider.api_key",
        )
    check_names(catalog, wish)
    wanted = [
        catalog.resolve(name, "models" if i else "model") for i, name in enumerate(wish.models)
    ]
    excluded: list[tuple[Endpoint, str]] = []
    groups: list[tuple[Wanted, list[Endpoint]]] = []
    for each in wanted:
        fit: list[Endpoint] = []
        for endpoint in each.model.served_as(is_free=each.is_free):
            why = why_excluded(endpoint, wish, dialect, situation.day)
            if why is None:
                fit.append(endpoint)
            else:
                excluded.append((endpoint, why))
        groups.append((each, fit))
    if wish.is_unpartitioned:
        groups = [(wanted[0], [e for _, group in groups for e in group])]
    candidates, rule = _in_order(groups, wish, situation)
    candidates = [at for each in candidates for at in _at_replicas(each, situation)]
    may_serve = candidates
    if wish.allow_fallbacks is False and not wish.order:
        # One provider, with whichever of its keys.
        candidates = [c for c in candidates if c.endpoint is candidates[0].endpoint]
    waits = [(each, situation.rests_s(each)) for each in candidates]
    ready = [each for each, seconds in waits if seconds <= 0]
    resting = [(each, seconds) for each, seconds in waits if seconds > 0]
    if resting and ready and waits[0][1] > 0:
        rule += "; others rest"
    return Plan(
        candidates=ready,
        may_serve=may_serve,
        rule=rule,
        excluded=excluded,
        resting=resting,
        wanted=wanted,
    )


def plan_of_file(catalog: Catalog, body: Mapping[str, Any], dialect: str, day: date) -> Plan:
    """The route of a new session's first request: with what the file says alone.

    Raises:
        LingflashError: as make_plan and read_wish do.
    """
    situation = Situation(
        session=Session(id=""),
        keys={},
        rests_s=lambda candidate: 0.0,
        measurements=Measurements(),
        day=day,
    )
    return make_plan(catalog, read_wish(body, {}), dialect, situation)


def _in_order(
    groups: Sequence[tuple[Wanted, list[Endpoint]]], wish: Wish, situation: Situation
) -> tuple[list[Candidate], str]:
    found: list[Candidate] = []
    rules: list[str] = []
    for wanted, endpoints in groups:
        ranker = Ranker(
            wish=wish,
            shortcut=wanted.shortcut,
            session=situation.session,
            measurements=situation.measurements,
            day=situation.day,
        )
        ranking = ranker.rank(endpoints)
        candidates = _with_keys(ranking.endpoints, wish, situation)
        if candidates:
            rules.append(ranking.rule)
            found += candidates
    return found, rules[0] if rules else "none"


def _at_replicas(candidate: Candidate, situation: Situation) -> list[Candidate]:
    choices = situation.replicas(candidate.endpoint)
    if not choices:  # nobody is ready: it stays, as one that rests
        return [candidate]
    found: list[Candidate] = []
    num_ready = 0
    for each in choices:
        found.append(replace(candidate, choice=each))
        num_ready += situation.rests_s(found[-1]) <= 0
        if num_ready == _MOST_REPLICAS:
            break
    return found


def _with_keys(endpoints: Sequence[Endpoint], wish: Wish, situation: Situation) -> list[Candidate]:
    """Endpoints with the keys that each may be tried with, in order."""
    if wish.inline_key is not None:
        return _with_inline_key(endpoints, wish, situation)
    stored = {each.slug: situation.keys.get(each.slug, ()) for each in endpoints}
    needs_own = any(key.is_required for keys in stored.values() for key in keys)
    first: list[Candidate] = []
    found: list[Candidate] = []
    for endpoint in endpoints:
        own = [
            (key.is_fallback, Candidate(endpoint, _stored(key))) for key in stored[endpoint.slug]
        ]
        before = [each for is_fallback, each in own if not is_fallback]
        # Without an order of the request's own, keys that were stored come before the house's.
        (found if wish.order else first).extend(before)
        if endpoint.has_house_key and not needs_own:
            found.append(Candidate(endpoint, HOUSE))
        found += [each for is_fallback, each in own if is_fallback]
    return first + found


def _with_inline_key(
    endpoints: Sequence[Endpoint], wish: Wish, situation: Situation
) -> list[Candidate]:
    """The brought key at its own provider; others and the house only if that was written out."""
    key = Key(kind="inline", id="inline", name="the key that the request brought",
              secret=wish.inline_key)  # fmt: skip
    named = wish.only or wish.order
    found = [Candidate(each, key) for each in endpoints if is_named(each, named)]
    if wish.allow_fallbacks is True:
        found += _with_keys(endpoints, replace(wish, inline_key=None), situation)
    return found


def _stored(key: ProviderKey) -> Key:
    return Key(kind="stored", id=key.id, name=key.name, secret=key.secret)
