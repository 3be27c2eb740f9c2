"""A call's plan: what routing has to know of the caller, and what nobody may serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from lingflash.core.errors import NotFoundError
from lingflash.gateway.accounting import Caller, Home, ProviderKey, Session
from lingflash.gateway.relay.call import Call
from lingflash.gateway.routing.catalog import Catalog, Wanted
from lingflash.gateway.routing.plan import Candidate, Plan, Situation, make_plan
from lingflash.gateway.routing.replicas import Prompt
from lingflash.gateway.state import GatewayState

_MAX_REASONS = 12


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call, and who may serve it.

    Args:
        call: goes on with the session of the response that it follows.
        plan: as for a new session; who may serve is the same for all.
        plan_for: the plan for what is known of the session, once it was read.
        secrets: every one of the plan, for what is not to be quoted.
    """

    call: Call
    plan: Plan
    plan_for: Callable[[Session], Plan]
    secrets: list[str] = field(repr=False)


async def plan_call(state: GatewayState, call: Call) -> PlannedCall:
    """Decide who may serve a call.

    Raises:
        NotFoundError: no endpoint may serve it; the message says why for each.
        InvalidRequestError: the request's routing cannot be followed.
    """
    config = state.config
    previous = call.previous_response
    home = None if previous is None else await state.accounts.home_of(call.caller, previous)
    if home is not None and home.key_hash != call.caller.key_hash:
        raise _unknown_response(call)
    if home is not None and not call.is_session_named:
        call = replace(call, session_id=home.session_id)
    wanted = [config.catalog.resolve(name) for name in call.wish.models]
    keys = await _stored_keys(state, config.catalog, call.caller, wanted)
    day = datetime.now(UTC).date()

    only = None if home is None else home.replica

    def plan_for(session: Session) -> Plan:
        prompt = prompt_of(call, session)
        situation = Situation(
            session=session,
            keys=keys,
            rests_s=state.rests_s,
            measurements=state.measurements,
            replicas=lambda endpoint: state.replicas.order(endpoint, prompt, only),
            day=day,
            takes_inline_keys=config.requests.inline_provider_keys,
        )
        plan = make_plan(config.catalog, call.wish, call.dialect, situation)
        return plan if previous is None else _at_home(plan, call, home)

    plan = plan_for(Session(id=call.session_id))
    if not plan.candidates and not plan.resting:
        raise _nobody(plan)
    secrets = [key.secret for stored in keys.values() for key in stored]
    secrets += [u.address.api_key for u in config.upstreams.values() if u.address.api_key]
    secrets += [call.wish.inline_key] if call.wish.inline_key else []
    return PlannedCall(call, plan, plan_for, secrets)


def prompt_of(call: Call, session: Session) -> Prompt:
    """What of a call decides which replica serves it."""
    return Prompt(
        chain=call.chain,
        session=call.session_id,
        pinned=session.pinned_replica,
        completion_tokens=call.wish.completion_tokens,
    )


async def _stored_keys(
    state: GatewayState, catalog: Catalog, caller: Caller, wanted: Sequence[Wanted]
) -> dict[str, list[ProviderKey]]:
    """The caller's keys for these models, by the provider's short name."""
    places = {
        (endpoint.slug, name, catalog.names_of(each)): None
        for each in wanted
        for endpoint in each.model.served_as(is_free=each.is_free)
        # Whoever stored a key may have written either.
        for name in dict.fromkeys((endpoint.slug, endpoint.provider.lower()))
    }
    found: dict[str, list[ProviderKey]] = {}
    for slug, name, models in places:
        if state.is_keyless(caller, name, models[0]):
            continue
        keys = await state.accounts.provider_keys(caller, name, models)
        if not keys:
            state.note_keyless(caller, name, models[0])
        known = found.setdefault(slug, [])
        known += [key for key in keys if key.id not in {each.id for each in known}]
    return found


def _at_home(plan: Plan, call: Call, home: Home | None) -> Plan:
    """Only the endpoint that has the response which a call goes on from.

    Raises:
        NotFoundError: nobody knows which one that is.
    """
    if home is None:
        if len({(each.endpoint.id, each.replica) for each in plan.may_serve}) <= 1:
            return plan  # if anybody has it, this one does
        raise _unknown_response(call)

    def is_there(candidate: Candidate) -> bool:
        place = candidate.endpoint.id, candidate.key.byok_id, candidate.replica
        return place == (home.endpoint, home.byok_id, home.replica)

    return replace(
        plan,
        candidates=[each for each in plan.candidates if is_there(each)],
        may_serve=[each for each in plan.may_serve if is_there(each)],
        resting=[(each, seconds) for each, seconds in plan.resting if is_there(each)],
        rule="response",
    )


def _unknown_response(call: Call) -> NotFoundError:
    return NotFoundError(
        f"previous_response_id: {call.previous_response!r} was not made with this key through "
        "this gateway, so it is not known which provider has it; name one with "
        "provider.only, or send the whole conversation.",
        param="previous_response_id",
    )


def _nobody(plan: Plan) -> NotFoundError:
    names = ", ".join(each.name for each in plan.wanted)
    reasons = [f"{each.provider} {why}" for each, why in plan.excluded[:_MAX_REASONS]]
    if not reasons:
        reasons = ["no provider has a key that may be used for it"]
    return NotFoundError(
        f"No provider may serve {names} for this request: {'; '.join(reasons)}.", param="provider"
    )
