"""Routes: names, the whole `provider` object, session pins, prices, keys, breakers. No network."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from gateway_support import gateway_tables
from lingflash.core.errors import InvalidRequestError, NotFoundError
from lingflash.gateway.accounting import ProviderKey, Session
from lingflash.gateway.config.load import read_config
from lingflash.gateway.config.tables import BreakerTable
from lingflash.gateway.routing.breaker import Breakers
from lingflash.gateway.routing.measurements import Measurements
from lingflash.gateway.routing.plan import Situation, make_plan
from lingflash.gateway.routing.wish import _RoutingFields, read_wish

DAY = date(2026, 11, 30)
NAMES = ("A", "B", "C")


def catalog_of(change=lambda tables: tables, names=NAMES):
    tables = change(gateway_tables(dict.fromkeys(names, "http://127.0.0.1:1/v1")))
    return read_config(tables, {"HOUSE_KEY": "k"}, file="f", folder=Path()).catalog


def plan_of(catalog, request=None, *, session=None, keys=None, rests=(), seen=(), **situation):
    measurements = Measurements()
    for endpoint, latency_s, rate in seen:
        measurements.add(endpoint, latency_s, rate)
    body = {"model": "test/model", "messages": [], **(request or {})}
    wish = read_wish(body, {}, prompt_tokens=1000, completion_tokens=body.get("max_tokens"))
    dialect = situation.pop("dialect", "chat")
    return make_plan(
        catalog,
        wish,
        dialect,
        Situation(
            session=session or Session(id="s"),
            keys=keys or {},
            rests_s=lambda c: 5.0 if c.endpoint.slug in rests else 0.0,
            measurements=measurements,
            day=DAY,
            **situation,
        ),
    )


def order(plan):
    return "".join(each.endpoint.provider for each in plan.candidates)


def endpoints(**by_name):
    """A change of the file: fields of the endpoint at each of these upstreams."""

    def change(tables):
        for each in tables["model"][0]["endpoint"]:
            each.update(by_name.get(each["upstream"], {}))
        return tables

    return change


def upstreams(**by_name):
    def change(tables):
        for each in tables["upstream"]:
            each.update(by_name.get(each["name"], {}))
        return tables

    return change


def price(**dollars):
    return {"price": [{name: Decimal(value) for name, value in dollars.items()}]}


CHEAP_B = endpoints(
    A=price(prompt="0.3", completion="1"),
    B=price(prompt="0.1", completion="0.3"),
    C=price(prompt="0.2", completion="0.5"),
)


@pytest.mark.parametrize(
    ("provider", "expected", "rule"),
    [
        ({}, "BCA", "price"),
        ({"order": ["C"]}, "CBA", "order"),
        ({"order": ["c", "A"]}, "CAB", "order"),
        ({"order": ["C"], "allow_fallbacks": False}, "C", "order"),
        ({"allow_fallbacks": False}, "B", "price"),
        ({"only": ["A", "C"]}, "CA", "price"),
        ({"ignore": ["B", "nobody"]}, "CA", "price"),
        ({"sort": "price"}, "BCA", "sort=price"),
        ({"sort": {"by": "price"}}, "BCA", "sort=price"),
        ({"max_price": {"prompt": "0.2"}}, "BC", "price"),
        ({"max_price": {"completion": 0.3, "image": 1}}, "B", "price"),
        ({"max_price": {"request": 0}}, "BCA", "price"),
        ({"data_collection": "allow"}, "BCA", "price"),
        ({"zdr": False, "require_parameters": False}, "BCA", "price"),
        ({"order": None, "only": []}, "BCA", "price"),
    ],
)
def test_provider_when_asked_then_these_endpoints_in_this_order(provider, expected, rule):
    plan = plan_of(catalog_of(CHEAP_B), {"provider": provider})
    assert (order(plan), plan.rule) == (expected, rule)


@pytest.mark.parametrize(
    ("provider", "declared"),
    [
        ({"zdr": True}, upstreams(B={"zdr": True})),
        ({"data_collection": "deny"}, upstreams(B={"data_collection": "deny"})),
        ({"data_collection": "deny"}, upstreams(B={"zdr": True})),
        ({"enforce_distillable_text": True}, upstreams(B={"distillable_text": True})),
        ({"quantizations": ["FP8"]}, endpoints(B={"quantization": "fp8"})),
        ({"sort": "exacto"}, endpoints(B={"exacto": True})),
        ({"require_parameters": True}, endpoints(B={"parameters": ["logprobs"]})),
        ({"only": ["b/int4"]}, endpoints(B={"quantization": "int4"})),
    ],
)
def test_provider_when_nobody_declares_it_then_excluded_else_served_by_who_does(provider, declared):
    request = {"provider": provider, "logprobs": True}
    if "only" not in provider:
        nobody = plan_of(catalog_of(), request)
        assert nobody.candidates == []
        assert len(nobody.excluded) == 3
        assert all(why for _, why in nobody.excluded)
    plan = plan_of(catalog_of(declared), request)
    assert order(plan) == "B"


@pytest.mark.parametrize(
    ("request_", "change"),
    [
        ({"tools": [{"type": "function"}]}, endpoints(A={"tools": False}, C={"tools": False})),
        ({}, upstreams(A={"dialects": ["messages"]}, C={"dialects": ["responses"]})),
    ],
)
def test_request_when_an_endpoint_cannot_serve_it_then_excluded(request_, change):
    assert order(plan_of(catalog_of(change), request_)) == "B"


def test_request_when_an_answer_may_be_long_then_who_makes_long_ones_comes_first():
    catalog = catalog_of(endpoints(A={"max_output_tokens": 10}, C={"max_output_tokens": 9}))
    plan = plan_of(catalog, {"max_tokens": 5000})
    assert order(plan)[0] == "B"
    assert len(plan.candidates) == 3


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ({"ordr": ["A"]}, "provider.ordr"),
        ({"order": "A"}, "provider.order"),
        ({"order": ["Z"]}, "provider.order"),
        ({"order": ["A"] * 1000}, "provider.order"),
        ({"ignore": ["z" * 1000]}, "provider.ignore[0]"),
        ({"only": ["Z"]}, "provider.only"),
        ({"sort": "speed"}, "provider.sort"),
        ({"sort": {"by": "price", "partitions": "none"}}, "provider.sort.partitions"),
        ({"max_price": {"prompt": "cheap"}}, "provider.max_price.prompt"),
        ({"max_price": {"tokens": 1}}, "provider.max_price.tokens"),
        ({"preferred_max_latency": {"p51": 1}}, "provider.preferred_max_latency.p51"),
        ({"data_collection": "no"}, "provider.data_collection"),
        ({"zdr": "yes"}, "provider.zdr"),
        ({"options": {"a": {"model": "x"}}}, "provider.options.a.model"),
        ({"options": {"a": {"best_of": 9}}}, "provider.options.a.best_of"),
        ({"options": {"a": {"background": True}}}, "provider.options.a.background"),
        ({"options": {"a": {"prompt": ["x"]}}}, "provider.options.a.prompt"),
        (
            {"options": {"a": {"previous_response_id": "x"}}},
            "provider.options.a.previous_response_id",
        ),
        ({"max_price": {"prompt": "1e999999999"}}, "provider.max_price.prompt"),
    ],
)
def test_provider_when_it_holds_what_is_not_known_then_400_with_its_name(provider, param):
    with pytest.raises(InvalidRequestError) as error:
        plan_of(catalog_of(), {"provider": provider})
    assert error.value.param == param


@pytest.mark.parametrize(
    "request_", [{"plugins": [{"id": "web"}]}, {"transforms": ["middle-out"]}, {"route": "sort"}]
)
def test_request_when_it_asks_for_what_does_not_run_here_then_refused(request_):
    with pytest.raises(InvalidRequestError):
        plan_of(catalog_of(), request_)
    assert plan_of(catalog_of(), {"plugins": [], "transforms": [], "route": "fallback"}).candidates


def two_models(tables):
    first = tables["model"][0]
    free = [{**each, "free": True, "price": []} for each in first["endpoint"][:1]]
    second = {"name": "other/model", "endpoint": [dict(first["endpoint"][2])]}
    first["endpoint"] = [*first["endpoint"][:2], *free]
    tables["model"].append(second)
    return tables


def test_names_when_aliases_suffixes_and_fallbacks_then_resolved():
    catalog = catalog_of(two_models)
    assert catalog.names() == ["test/model", "test/model:free", "other/model"]
    assert [e.endpoint.id for e in plan_of(catalog, {"model": "model:free"}).candidates] == [
        "test/model:free@a"
    ]
    plan = plan_of(catalog, {"models": ["other/model"]})
    assert sorted(order(plan)[:2]) == ["A", "B"]
    assert order(plan)[2] == "C"
    assert [each.name for each in plan.wanted] == ["test/model", "other/model"]
    across = {"models": ["other/model"], "provider": {"sort": {"by": "price", "partition": "none"}}}
    cheap = plan_of(catalog_of(lambda t: endpoints(C=price(prompt="0.01"))(t)), {})
    assert order(cheap)[0] == "C"
    assert len(plan_of(catalog, across).candidates) == 3
    for name in ("test/modle", "other/model:free", "test/model:fast"):
        with pytest.raises(NotFoundError, match="is not served here"):
            plan_of(catalog, {"model": name})
    assert plan_of(catalog, {"model": "test/model:floor"}).rule == "sort=price"


SEEN = [("test/model@a", 0.1, 50), ("test/model@b", 0.5, 200), ("test/model@c", 0.3, 90)]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"model": "test/model:nitro"}, "BCA"),
        ({"provider": {"sort": "throughput"}}, "BCA"),
        ({"provider": {"sort": "latency"}}, "ACB"),
        ({"provider": {"preferred_min_throughput": 100}}, "B"),
        ({"provider": {"preferred_min_throughput": {"p90": 80}, "order": ["A"]}}, "A"),
        ({"provider": {"preferred_max_latency": 0.2}}, "A"),
    ],
)
def test_speed_when_measured_then_sorted_by_it(request_, expected):
    plan = plan_of(catalog_of(), request_, seen=SEEN)
    assert order(plan).startswith(expected)
    assert len(plan.candidates) == 3


def test_speed_when_not_measured_then_tried_first():
    plan = plan_of(catalog_of(), {"model": "test/model:nitro"}, seen=SEEN[:2])
    assert order(plan) == "CBA"


@pytest.mark.parametrize(
    ("provider", "pinned", "expected", "rule"),
    [
        ({}, "c", "C", "session"),
        ({"order": ["A", "C"]}, "c", "C", "session"),
        ({"order": ["A"]}, "c", "A", "order"),
        ({"ignore": ["C"]}, "c", "B", "price"),
        ({"sort": "price"}, "a", "A", "session"),
        ({}, "gone", "B", "price"),
    ],
)
def test_session_when_pinned_then_stays_if_it_may(provider, pinned, expected, rule):
    session = Session(id="s", turns=3, pinned_endpoint=f"test/model@{pinned}")
    plan = plan_of(catalog_of(CHEAP_B), {"provider": provider}, session=session)
    assert (order(plan)[0], plan.rule) == (expected, rule)


def test_session_when_its_endpoint_rests_then_another():
    session = Session(id="s", turns=3, pinned_endpoint="test/model@c")
    plan = plan_of(catalog_of(), session=session, rests=("c",))
    assert sorted(order(plan)) == ["A", "B"]
    assert plan.resting[0][0].endpoint.slug == "c"
    assert "rest" in plan.rule


def test_sessions_when_endpoints_are_equal_then_spread_and_each_always_the_same():
    catalog = catalog_of()
    firsts = [order(plan_of(catalog, session=Session(id=f"s{i}")))[0] for i in range(60)]
    assert set(firsts) == set(NAMES)
    again = [order(plan_of(catalog, session=Session(id=f"s{i}")))[0] for i in range(60)]
    assert firsts == again


def test_price_when_the_session_reads_from_a_cache_then_its_rate_decides():
    catalog = catalog_of(
        endpoints(
            A=price(prompt="0.10", completion="0.1", cache_read="0.10"),
            B=price(prompt="0.15", completion="0.1", cache_read="0.01"),
            C=price(prompt="9", completion="9"),
        )
    )
    assert order(plan_of(catalog)) == "ABC"
    warm = Session(id="s", turns=5, cache_rate=0.9)
    assert order(plan_of(catalog, session=warm)) == "BAC"


def test_price_when_it_changes_then_by_its_day():
    changing = [
        {"valid_from": date(2026, 1, 1), "prompt": Decimal("0.5")},
        {"valid_from": date(2026, 12, 1), "prompt": Decimal("0.1")},
    ]
    (endpoint, *_) = catalog_of(endpoints(A={"price": changing})).endpoints.values()
    prices = [endpoint.price(date(2026, month, 1)).prompt for month in (11, 12)]
    assert prices == [500_000, 100_000]
    assert endpoint.price(date(2025, 1, 1)).prompt == 0


def key(id, **options):
    return ProviderKey(id=id, provider="a", name=id, secret="s", **options)


def keys_of(plan):
    return [f"{c.endpoint.slug}:{c.key.id}" for c in plan.candidates]


def test_keys_when_stored_then_before_the_houses_or_after():
    catalog = catalog_of(names=("A", "B"))
    keys = {"a": [key("k1"), key("k2", is_fallback=True)]}
    asked = {"provider": {"order": ["B", "A"]}}
    assert keys_of(plan_of(catalog, asked, keys=keys)) == ["b:house", "a:k1", "a:house", "a:k2"]
    assert keys_of(plan_of(catalog, keys=keys))[0] == "a:k1"
    required = {"a": [key("k1", is_required=True)]}
    plan = plan_of(catalog, keys=required)
    assert keys_of(plan) == ["a:k1"]
    assert plan.is_byok_only


def test_breaker_when_five_of_ten_fail_then_open_then_one_probe():
    breakers = Breakers(BreakerTable(cooldown_s=10))
    for passed in (True, False) * 4:
        assert breakers.begin("u", 0)
        breakers.succeed("u") if passed else breakers.fail("u", 0)
    assert breakers.state("u", 0) == "closed"
    breakers.fail("u", 0)
    assert not breakers.begin("u", 9.9)
    assert breakers.begin("other", 0)
    assert breakers.state("u", 10) == "half_open"
    assert breakers.begin("u", 10)
    assert not breakers.begin("u", 10)  # one probe at a time
    breakers.fail("u", 11)
    assert breakers.rests_s("u", 12) == 9
    assert breakers.begin("u", 21)
    breakers.succeed("u")
    assert breakers.state("u", 21) == "closed"
    breakers.fail("u", 21)  # the old failures are forgotten
    assert breakers.begin("u", 21)


def test_breaker_when_a_second_cooldown_is_shorter_then_the_longer_holds():
    breakers = Breakers(BreakerTable(rate_limit_s=3))
    breakers.begin("u", 0)
    breakers.begin("u", 0)
    breakers.cool("u", 0, 60)
    breakers.cool("u", 1, None)
    assert breakers.rests_s("u", 1) == 59


def test_breaker_when_a_probe_is_left_by_its_client_then_another_may_try():
    breakers = Breakers(BreakerTable())
    breakers.cool("u", 0, 1)
    assert breakers.begin("u", 2)
    breakers.drop("u")
    assert breakers.begin("u", 2)


def test_breakers_when_keys_are_without_end_then_the_oldest_are_forgotten():
    breakers = Breakers(BreakerTable())
    for i in range(10_050):
        breakers.succeed(f"u#{i}")
    assert len(breakers._all) == 10_000


def _shapes(model, path=()):
    """Every place of an object in a request, to the depth of its models."""
    for name, info in model.model_fields.items():
        yield (*path, name)
        for kind in _models_in(info.annotation):
            yield from _shapes(kind, (*path, name))


def _models_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


@pytest.mark.parametrize("value", [1.5, "x", [1], {"x": 1}, True], ids=str)
@pytest.mark.parametrize("path", list(_shapes(_RoutingFields)), ids=".".join)
def test_wish_when_a_field_is_of_the_wrong_kind_then_no_class_of_ours_is_named(path, value):
    for name in reversed(path):
        value = {name: value}
    said = ""
    try:
        read_wish({"model": "m", **value}, {})
    except InvalidRequestError as error:
        said = error.message.replace("Input", "")
    assert not re.search(r"\b_?[A-Z][a-z]", said), said
