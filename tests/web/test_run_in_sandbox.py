"""Code of a call, run in a real `ling sandbox` from the playground, in Chromium."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from api_support import wait_until
from code_support import Rounds, calls
from page_support import PATIENCE_S, SANDBOX_KEYS

pytestmark = pytest.mark.slow

KEY = SANDBOX_KEYS[0]
PARAMETERS = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
TOOL = {"type": "function", "function": {"name": "python", "parameters": PARAMETERS}}
RUN, STOP = "Run it in the sandbox", "Stop it"


@pytest.fixture
def open_playground(make_server, ling_sandbox, open_tab):
    """A playground whose model says these texts, one after each result."""

    def open_one(*texts, **options):
        server = make_server(Rounds(*texts), sandbox=ling_sandbox.url, sandbox_key=KEY)
        tab = open_tab(server.base_url, **options)
        page = tab.open()
        page.get_by_role("button", name="Run code").wait_for()
        page.get_by_label("Tools, as JSON").fill(json.dumps([TOOL]))
        tab.say("calculate")
        tab.wait_answer()
        return tab, server

    return open_one


def ours(ling_sandbox):
    with ling_sandbox.client(KEY) as client:
        return client.get("/v2/sandboxes").json()


def test_call_when_run_then_the_model_goes_on_with_what_its_code_gave(
    open_playground, ling_sandbox
):
    tab, _ = open_playground(
        calls("x = 6 * 7\nprint(x)"), calls("print(x, '<img src=x onerror=window.hit=1>')"), "done"
    )
    page = tab.page
    cards = page.locator(".tool-card")
    expect(cards.nth(0).locator("pre").first).to_have_text("x = 6 * 7\nprint(x)")
    page.get_by_role("button", name=RUN).click()
    expect(cards.nth(0)).to_contain_text("42")
    (first,) = ours(ling_sandbox)
    # Its variables are still there.
    tab.wait_answer(1)
    page.get_by_role("button", name=RUN).click()
    expect(cards.nth(1)).to_contain_text("42 <img src=x onerror=window.hit=1>")
    expect(tab.wait_answer(2)).to_contain_text("done")
    assert page.evaluate("() => window.hit") is None
    assert [each["sandboxID"] for each in ours(ling_sandbox)] == [first["sandboxID"]]
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.get_by_role("button", name="Run code")).to_be_visible()
    wait_until(lambda: ours(ling_sandbox) == [], PATIENCE_S)


def test_call_when_its_code_has_no_end_or_its_sandbox_is_gone_then_stopped_and_run_elsewhere(
    open_playground, ling_sandbox
):
    tab, _ = open_playground(calls("import time\ntime.sleep(600)"), "fine", expects=True)
    page = tab.page
    page.get_by_role("button", name=RUN).click()
    page.get_by_role("button", name=STOP).click()
    expect(page.get_by_role("button", name=RUN)).to_be_visible()
    assert page.locator(".tool-card .problems").count() == 0
    with ling_sandbox.client(KEY) as client:
        for each in ours(ling_sandbox):
            client.delete(f"/sandboxes/{each['sandboxID']}").raise_for_status()
    page.get_by_role("button", name=RUN).click()
    wait_until(lambda: len(ours(ling_sandbox)) == 1, PATIENCE_S)
    page.get_by_role("button", name=STOP).click()
    page.get_by_label("Answer by hand").fill("nothing came of it")
    page.get_by_role("button", name="Send result").click()
    expect(tab.wait_answer(1)).to_contain_text("fine")
    page.get_by_role("button", name="New", exact=True).click()


def test_call_when_it_has_no_code_or_there_is_no_sandbox_then_answered_by_hand_alone(
    open_playground, make_server, open_tab
):
    call = json.dumps({"name": "python", "arguments": {"codes": "1"}})
    tab, _ = open_playground(f"<tool_call>\n{call}\n</tool_call>")
    expect(tab.page.get_by_label("Answer by hand")).to_be_visible()
    assert tab.page.get_by_role("button", name=RUN).count() == 0
    bare = open_tab(make_server(Rounds(calls("print(1)"))).base_url)
    page = bare.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    assert page.get_by_role("button", name="Run code").count() == 0
    page.get_by_label("Tools, as JSON").fill(json.dumps([TOOL]))
    bare.say("calculate")
    bare.wait_answer()
    assert page.get_by_role("button", name=RUN).count() == 0
