"""The page of a real `ling gateway` in Chromium: playground, usage, routes."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect
from test_page_hostile import CORPUS, IN_NAMES, check_harmless

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


def give_key(page, key):
    page.locator("#key").fill(key)
    page.keyboard.press("Enter")


def table(page, name):
    return page.get_by_role("region", name=name, exact=True)


def ask(gateway, model, session, **fields):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Lisbon?"}],
        "max_tokens": 8,
        "session_id": session,
    }
    return gateway.client.post(CHAT, json={**body, **fields})


def measured(answer):
    names, values = (answer.locator(f".measured {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def test_playground_when_a_route_is_a_ling_serve_or_a_vendor_then_each_gets_what_it_takes(
    ling_gateway, open_tab
):
    tab = open_tab(ling_gateway.url, expects=True)
    page = tab.open()
    expect(page.get_by_text("This server asks for an API key.")).to_be_visible()
    give_key(page, "sk-ling-wrong")
    expect(page.get_by_text("The API key is not valid.")).to_be_visible()
    give_key(page, ling_gateway.key)
    expect(page.locator("#key")).to_have_count(0)
    page.get_by_role("button", name="Call a tool").click()
    tab.wait_answer()
    page.get_by_label("Answer by hand").fill("21 degrees, sunny")
    page.get_by_role("button", name="Send result").click()
    answer = tab.wait_answer(1)
    expect(answer).to_contain_text("21 degrees")
    expect(answer.locator(".measured")).to_contain_text("Served by")
    numbers = measured(answer)
    assert numbers["Served by"] == "Home"
    prompt, cached, said = (
        int(numbers[name].replace(",", "")) for name in ("Prompt", "Cached", "Answer")
    )
    cost = ((prompt - cached) * 0.10 + cached * 0.02 + said * 0.30) / 1e6
    assert float(numbers["Cost"].removeprefix("$")) == pytest.approx(cost, rel=1e-3)
    saved = float(numbers["Cache saved"].removeprefix("$"))
    assert saved == pytest.approx(cached * 0.08 / 1e6, rel=1e-3)
    assert saved > 0
    expect(answer.locator(".measured")).to_contain_text("Cache:")
    assert answer.get_by_role("button", name="Prompt").count() == 0
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_label("Model", exact=True).select_option("vendor/model")
    page.get_by_label("Tools, as JSON").fill("")
    tab.say("hello")
    answer = tab.wait_answer()
    expect(answer).to_contain_text("w0 w1")
    expect(answer.locator(".measured")).to_contain_text("Served by")
    assert measured(answer)["Cost"] == "$0.000025"
    assert "First token" in measured(answer)
    page.get_by_label("Top k").fill("5")  # what somebody asks for is not left out
    tab.say("hello")
    expect(tab.wait_answer(1).get_by_role("alert")).to_contain_text("top_k")


def test_usage_when_managed_then_keys_sessions_steps_and_tools_are_those_of_the_accounts(
    ling_gateway, open_tab
):
    hostile = ling_gateway.manager.post("/api/v1/keys", json={"name": IN_NAMES}).json()
    headers = {"authorization": f"Bearer {hostile['key']}"}
    session = CORPUS[2]
    call = {"id": "c", "type": "function", "function": {"name": IN_NAMES, "arguments": "{}"}}
    turn = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny " * 20},
    ]
    for messages in (turn[:1], turn):
        body = {"model": "vendor/model", "messages": messages, "session_id": session}
        answer = ling_gateway.client.post(CHAT, json=body, headers=headers)
        assert answer.status_code == 200
    tab = open_tab(ling_gateway.url)
    page = tab.open("usage")
    expect(page.get_by_text("a management key sees that of all")).to_be_visible()
    give_key(page, ling_gateway.management_key)
    row = table(page, "Keys").locator("tr", has_text=IN_NAMES)
    expect(row).to_contain_text("$0.00005")  # 20 tokens at 1 dollar a million, 10 at 3
    row.get_by_role("button").click()
    expect(page.get_by_role("heading", name=f"Sessions of {IN_NAMES}")).to_be_visible()
    expect(table(page, "Sessions").locator("tbody tr")).to_have_count(1)
    table(page, "Sessions").get_by_role("button", name=session).focus()
    page.keyboard.press("Enter")
    bill = page.get_by_role("region", name="Bill")
    expect(bill.get_by_role("heading", name="Bill of", exact=False)).to_contain_text(session)
    expect(table(page, "Steps").locator("tbody tr")).to_have_count(2)
    expect(table(page, "What tools' results cost").locator("tbody tr")).to_contain_text(IN_NAMES)
    path, whose = f"/api/v1/sessions/{session}", {"api_key_hash": hostile["data"]["hash"]}
    told = ling_gateway.manager.get(path, params=whose).json()["totals"]
    facts = bill.locator(".facts")
    for name in ("cost_usd", "paid_for_resending_usd", "saved_by_cache_usd"):
        shown = float(told[name])
        assert shown >= 0
        expect(facts).to_contain_text(f"${shown:.10f}".rstrip("0").rstrip("."))
    with page.expect_download() as download:
        page.get_by_role("button", name="Steps as CSV").click()
    text = download.value.path().read_text()
    params = {**whose, "format": "csv", "table": "steps"}
    assert text == ling_gateway.manager.get(path, params=params).text
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Sessions of {IN_NAMES} as CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("session_id,key_hash,key_name,")
    assert len(lines) == 2
    check_harmless(page)
    kept = page.evaluate(
        "async () => JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage),"
        " document.cookie, location.href, await caches.keys(), await indexedDB.databases(),"
        " document.documentElement.outerHTML])"
    )
    assert ling_gateway.management_key not in kept
    assert kept.startswith('[[],[],"","http')
    sent = page.evaluate(
        "() => performance.getEntriesByType('resource').concat("
        "performance.getEntriesByType('navigation')).reduce((sum, e) => sum + e.transferSize, 0)"
    )
    assert 0 < sent < 200_000
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_text("manages others and runs no models")).to_be_visible()
    page.get_by_role("link", name="Usage").click()
    page.get_by_role("button", name="Forget keys").click()
    expect(page.locator("#key")).to_be_visible()
    expect(table(page, "Keys")).to_have_count(0)
    give_key(page, hostile["key"])
    expect(table(page, "Keys").locator("tbody tr")).to_have_count(1)
    expect(page.get_by_text("These are your key's own.")).to_be_visible()


def test_routes_when_an_upstream_is_gone_then_its_breaker_and_its_errors_are_shown(
    ling_gateway, open_tab
):
    assert ask(ling_gateway, "ling-nano", "pinned").status_code == 200
    assert ask(ling_gateway, "vendor/model", "s", **{IN_NAMES: 1}).status_code == 400
    while ask(ling_gateway, "gone/model", "s").status_code == 502:
        pass  # until it is left alone
    tab = open_tab(ling_gateway.url, expects=True)
    page = tab.open("routes")
    give_key(page, ling_gateway.key)
    expect(page.get_by_text("This screen needs a management key.")).to_be_visible()
    give_key(page, ling_gateway.management_key)
    gone, home = (page.get_by_role("region", name=name, exact=True) for name in ("Gone", "Home"))
    expect(gone.locator(".tag")).to_contain_text("left alone for")
    expect(table(page, "Failures of Gone").locator("tbody tr").first).to_contain_text(
        "provider_unavailable"
    )
    expect(home.locator(".tag")).to_have_text("in use")
    # What a vendor says may be anything.
    expect(table(page, "Failures of Picky")).to_contain_text(IN_NAMES)
    (told,) = [
        each for each in ling_gateway.manager.get("/api/v1/routes").json()["data"]
        if each["name"] == "Home"
    ]  # fmt: skip
    (endpoint,) = told["endpoints"]
    assert endpoint["pinned_sessions"] > 0
    cells = table(page, "Endpoints of Home").locator("tbody td").all_text_contents()
    assert cells[3:6] == [str(endpoint[name]) for name in ("pinned_sessions", "answered", "failed")]
    check_harmless(page)
    # Both keys are there: no screen asks for another.
    for screen in ("Playground", "Usage", "Routes"):
        page.get_by_role("link", name=screen).click()
        expect(page.locator("#key")).to_have_count(0)
    tab.context.set_offline(True)
    expect(page.get_by_role("alert").filter(has_text="What is below is old")).to_be_visible()
    expect(table(page, "Endpoints of Home")).to_be_visible()
    tab.context.set_offline(False)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert ling_gateway.client.get("/api/v1/routes").status_code == 403
    assert json.dumps(told).count("sk-") == 0
