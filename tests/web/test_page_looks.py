"""Every screen in both sizes and both colour schemes: nothing overflows, axe finds nothing serious.

PAGE_SCREENSHOTS=FOLDER keeps the pictures. Whoever changes the page looks at them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from program_install import install

pytestmark = pytest.mark.slow

SCREENS = ("playground", "dashboard")
SIZES = {"phone": (360, 740), "desktop": (1280, 800)}


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
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        told = [(v["id"], v["impact"], [n["target"] for n in v["nodes"]]) for v in found]
        assert [each for each in told if each[1] in ("serious", "critical")] == [], name
        if told:
            print(name, told, file=sys.stderr)

    return look_at


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_screens_then_nothing_overflows_and_nothing_keeps_people_out(
    ling_serve, open_tab, look, size, scheme
):
    width, height = SIZES[size]
    tab = open_tab(ling_serve, width=width, height=height, scheme=scheme)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    assert page.locator("nav a").count() == len(SCREENS)
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
    if size == "phone":
        page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Tools, as JSON").fill("[{]")
    look(page, "compare-and-a-wrong-setting")
    if size == "phone":
        page.get_by_role("button", name="Settings", exact=True).click()
    look(page, "compare")
    page.get_by_role("link", name="Dashboard").click()
    # Two readings make a point.
    expect(page.get_by_role("img", name="Tokens: prompt")).not_to_have_accessible_name(
        "Tokens: prompt –, answer –", timeout=15_000
    )
    expect(page.get_by_text("Sequences since the server started")).to_be_visible()
    look(page, "dashboard")
