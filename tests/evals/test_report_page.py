"""The page of `ling report` in a browser: phone and desk, light and dark, without network."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingflash.cli import _run, report_errors
from page_support import chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "e.html"
    words = ["report", "--folder", str(ROOT / "benchmarks"), "--out", str(path)]
    assert report_errors(lambda: _run(words)) == 0
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_report_then_nothing_is_cut_off_and_text_stands_out(browser, report, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page, trouble = context.new_page(), []
    page.on("request", lambda request: trouble.append(request.url))
    page.on("console", lambda message: trouble.append(message.text))
    page.goto(report.as_uri())
    assert trouble == [report.as_uri()]
    # Wide tables scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate(
        """() => {
            const rgb = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g);
            return rgb.slice(0, 3).map(Number).every(x => x < 64);
        }"""
    )
    assert dark == (scheme == "dark")
    # No letters are smaller than can be read, and every claim is there.
    sizes = page.evaluate(
        "[...document.querySelectorAll('td, p')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    assert page.get_by_text("ling-nano").count() > 0
    context.close()
