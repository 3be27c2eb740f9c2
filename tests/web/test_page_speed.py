"""A fast stream: the page draws 400 tokens a second for half a minute and stays quick and small."""

from __future__ import annotations

import json

import pytest

from lingflash.link.scripted import Behaviour

pytestmark = pytest.mark.slow

STREAM_S = 30
TOKENS_PER_S = 400
MAX_TASK_MS = 50
CATEGORY = "disabled-by-default-devtools.timeline"
# What the text itself takes in strings and nodes, several times over.
MAX_GROWTH_BYTES = 8_000_000
PART = (
    "## The weather\n\nThe weather in the city is **fine** today, and the train leaves at nine.\n\n"
    "- take `an umbrella`\n- and a [map](https://example.org/map)\n\n"
    "| hour | wind |\n|---|---|\n| 9 | 3 |\n| 10 | 4 |\n\n"
    "```python\nfor hour in range(9, 18):\n    print(hour)\n```\n\n"
)
TEXTS = {
    "markdown": PART * 400,
    "one long line": "The weather in the city is fine today. " * 1500,
}


def longest_task_ms(trace):
    """Processor time of the longest task of the page's main thread, whatever else runs here."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        e["tdur"] / 1e3
        for e in events
        if e["name"].endswith("RunTask") and "tdur" in e and (e["pid"], e["tid"]) in main
    ]
    return max(tasks)


def test_measure_when_a_task_is_long_then_it_is_seen(browser, make_server, open_tab):
    tab = open_tab(make_server("fine").base_url)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    browser.start_tracing(page=page, categories=[CATEGORY])
    page.evaluate(
        "() => new Promise((done) => setTimeout(() => {"
        " const end = performance.now() + 400; while (performance.now() < end); done(); }))"
    )
    assert longest_task_ms(browser.stop_tracing()) > MAX_TASK_MS


@pytest.mark.parametrize("text", TEXTS, ids=lambda name: name.replace(" ", "-"))
def test_stream_when_fast_then_no_task_is_long_and_memory_stays(
    browser, make_server, open_tab, nano_tokenizer, text
):
    tokens = nano_tokenizer.encode(TEXTS[text])
    seconds = STREAM_S if text == "markdown" else STREAM_S / 3
    count = int(TOKENS_PER_S * seconds)
    assert len(tokens) >= count
    server = make_server(
        lambda request, choice: tokens[:count],
        info={"max_model_len": 20_000},
        behaviour=Behaviour(delay_s=1 / TOKENS_PER_S, is_punctual=True),
    )
    tab = open_tab(server.base_url)
    page = tab.open()
    session = tab.context.new_cdp_session(page)

    def heap_bytes():
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"]

    page.get_by_role("button", name="Call a tool").wait_for()
    before = heap_bytes()
    browser.start_tracing(page=page, categories=[CATEGORY])
    tab.say("hello")
    tab.answers().first.get_by_role("button", name="Retry").wait_for(timeout=seconds * 3e3)
    longest_ms = longest_task_ms(browser.stop_tracing())
    grown = heap_bytes() - before
    measured = tab.answers().first.locator(".measured").inner_text().replace("\n", " ")
    print(f"longest task {longest_ms:.1f} ms of processor time, {grown:,} bytes more; {measured}")
    assert f"Answer {count:,}" in measured
    assert longest_ms < MAX_TASK_MS
    assert grown < MAX_GROWTH_BYTES
