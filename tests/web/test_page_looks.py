"""Every screen in both sizes and both colour schemes: nothing overflows, axe finds nothing serious.

PAGE_SCREENSHOTS=FOLDER keeps the pictures. Whoever changes the page looks at them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from page_support import SANDBOX_KEYS
from program_install import install

pytestmark = pytest.mark.slow

SCREENS = {
    "ling serve": ("playground", "dashboard", "evidence"),
    "ling gateway": ("playground", "usage", "routes"),
    "ling sandbox": ("sandboxes",),
}
SIZES = {"phone": (360, 740), "desktop": (1280, 800)}

# Cells whose text goes beyond them, and so over the next one's.
_SPILLED = """() => [...document.querySelectorAll('td, th, dd')]
  .filter((cell) => cell.scrollWidth > cell.clientWidth + 1 && cell.clientWidth)
  .map((cell) => cell.textContent)"""


@pytest.fixture(scope="module")
def axe():
    return (install("axe").parent / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def look(axe, request, tmp_path):
    """Hold what a page shows to the rules, and take its picture."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path)

    def look_at(page, name):
        case = request.node.callspec.id
        page.screenshot(path=folder / f"{case}-{name}.png")
        width = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], f"{name} is wider than the window"
        assert page.evaluate(_SPILLED) == [], f"{name} has text over its neighbour's"
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        told = [(v["id"], v["impact"], [n["target"] for n in v["nodes"]]) for v in found]
        assert [each for each in told if each[1] in ("serious", "critical")] == [], name
        if told:
            print(name, told, file=sys.stderr)

    return look_at


@pytest.fixture(
    params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join
)
def window(request):
    size, scheme = request.param
    width, height = SIZES[size]
    return {"width": width, "height": height, "scheme": scheme}


def test_screens_then_nothing_overflows_and_nothing_keeps_people_out(
    ling_serve, open_tab, look, window
):
    is_phone = window["width"] == SIZES["phone"][0]
    tab = open_tab(ling_serve, **window)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    assert page.locator("nav a").count() == len(SCREENS["ling serve"])
    look(page, "first-visit")
    page.get_by_role("button", name="Call a tool").click()
    tab.wait_answer()
    look(page, "call")
    page.get_by_label("Answer by hand").fill("21 degrees, sunny")
    page.get_by_role("button", name="Send result").click()
    tab.wait_answer(1).get_by_role("button", name="Prompt").click()
    page.locator("pre.prompt").wait_for()
    look(page, "prompt")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Code").click()
    look(page, "code")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare").click()
    if is_phone:
        page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Tools, as JSON").fill("[{]")
    look(page, "compare-and-a-wrong-setting")
    if is_phone:
        page.get_by_role("button", name="Settings", exact=True).click()
    look(page, "compare")
    page.get_by_role("link", name="Dashboard").click()
    # Two readings make a point.
    expect(page.get_by_role("img", name="Tokens: prompt")).not_to_have_accessible_name(
        "Tokens: prompt –, answer –"
    )
    expect(page.get_by_text("Sequences since the server started")).to_be_visible()
    look(page, "dashboard")
    page.get_by_role("link", name="Evidence").click()
    page.get_by_role("heading", name="Records").wait_for()
    look(page, "evidence")


def test_gateway_screens_then_nothing_overflows_and_nothing_keeps_people_out(
    ling_gateway, open_tab, look, window
):
    for step in range(2):
        messages = [{"role": "user", "content": "What is the weather in Lisbon? " * 20}]
        if step:
            call = {"id": "c", "type": "function"}
            call["function"] = {"name": "get_weather", "arguments": "{}"}
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "21 degrees, sunny"},
            ]
        body = {"model": "ling-nano", "messages": messages, "max_tokens": 8}
        ling_gateway.client.post(
            "/v1/chat/completions", json={**body, "session_id": "a-session-of-an-agent"}
        ).raise_for_status()
    ling_gateway.client.post("/v1/chat/completions", json={**body, "model": "gone/model"})
    tab = open_tab(ling_gateway.url, **window)
    page = tab.open("usage")
    page.locator("#key").wait_for()
    look(page, "usage-key")
    page.locator("#key").fill(ling_gateway.management_key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="a-session-of-an-agent").first.click()
    page.get_by_role("region", name="Steps", exact=True).wait_for()
    look(page, "usage")
    page.get_by_role("region", name="Bill").scroll_into_view_if_needed()
    look(page, "usage-bill")
    page.get_by_role("link", name="Routes").click()
    page.get_by_role("region", name="Failures of Gone").wait_for()
    look(page, "routes")
    page.get_by_role("link", name="Playground").click()
    page.locator("#key").fill(ling_gateway.key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="No tool fits").click()
    tab.wait_answer().get_by_text("Served by").wait_for()
    look(page, "gateway-playground")


def test_sandboxes_then_nothing_overflows_and_nothing_keeps_people_out(
    ling_sandbox, open_tab, look, window
):
    key = SANDBOX_KEYS[0]
    box = ling_sandbox.create(key, metadata={"session": "an agent's", "task": "plot " * 20})
    box.run("echo hello; ls -la /; echo 'no such thing' >&2; exit 2")
    tab = open_tab(ling_sandbox.url, **window)
    page = tab.open("sandboxes")
    page.locator("#key").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name=box.id).click()
    page.get_by_text("exit status 2").wait_for()
    page.get_by_role("button", name="Kill", exact=True).click()
    look(page, "sandboxes")
    page.get_by_role("log").scroll_into_view_if_needed()
    look(page, "sandbox-output")
    page.get_by_role("button", name="Kill it").click()
    page.get_by_text("None. What is made with this key").wait_for()
    look(page, "no-sandbox")
