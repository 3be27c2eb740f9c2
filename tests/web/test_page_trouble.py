"""What a person sees in Chromium when something goes wrong: what it is, and what to do."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time

import httpx
import pytest
from playwright.sync_api import expect

from api_support import wait_until
from lingflash.core.hub import bundled_folder
from lingflash.core.types import CacheReport
from lingflash.link.scripted import Behaviour

pytestmark = pytest.mark.slow

LONG_ANSWER = "The weather in the city is fine today. " * 200


def test_server_when_not_ready_then_said_why_and_usable_when_it_is(make_server, open_tab):
    server = make_server("fine")
    server.call(server.engine.die)
    tab = open_tab(server.base_url, expects=True)
    page = tab.open()
    expect(page.get_by_role("alert")).to_contain_text("It is loading the model.")
    expect(page.get_by_text("not ready", exact=False).first).to_be_visible()
    tab.say("hello")
    assert tab.answers().count() == 0
    expect(page.get_by_label("Message", exact=True)).to_have_value("hello")
    server.call(lambda: asyncio.ensure_future(server.engine.start()))
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Send").click()
    expect(tab.wait_answer()).to_contain_text("fine")


def test_server_when_gone_in_mid_answer_then_what_came_stays_and_retry_works(open_tab):
    port = _free_port()
    server = _serve(port)
    try:
        tab = open_tab(f"http://127.0.0.1:{port}", expects=True)
        page = tab.open()
        page.get_by_role("button", name="Call a tool").wait_for()
        tab.say("hello")
        expect(tab.answers().first).to_contain_text("The weather in the city")
        server.kill()
        answer = tab.wait_answer()
        expect(answer.get_by_role("alert")).to_contain_text("The connection was lost")
        expect(answer).to_contain_text("The weather in the city")
        expect(page.locator(".notice.offline")).to_contain_text("cannot be reached")
        server.wait()
        server = _serve(port)
        expect(page.locator(".notice.offline")).to_have_count(0)
        answer.get_by_role("button", name="Retry").click()
        expect(tab.answers().first.get_by_role("alert")).to_have_count(0)
        expect(tab.answers().first).to_contain_text("The weather in the city")
        page.get_by_role("button", name="Stop").click()
        expect(tab.wait_answer()).to_contain_text("Stopped.")
    finally:
        server.kill()
        server.wait()


def _free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _serve(port):
    module = "lingflash.bench.over_http.scripted_server"
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(bundled_folder()), str(port), "20"]
    )

    def is_up():
        assert process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(is_up, timeout_s=30)
    return process


def test_key_when_wrong_then_asked_again_and_never_kept(make_server, open_tab):
    server = make_server("fine", api_keys=("right",))
    tab = open_tab(server.base_url, expects=True)
    page = tab.open()
    field = page.locator("#key")
    expect(page.get_by_text("This server asks for an API key.")).to_be_visible()
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The API key is not valid.")).to_be_visible()
    field.fill("right")
    page.keyboard.press("Enter")
    expect(field).to_have_count(0)
    tab.say("hello")
    expect(tab.wait_answer()).to_contain_text("fine")
    page.get_by_role("button", name="Code").click()
    expect(page.locator("dialog pre")).to_contain_text("$OPENAI_API_KEY")
    kept = page.evaluate(
        "async () => JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage),"
        " document.cookie, location.href, await caches.keys(), await indexedDB.databases(),"
        " document.documentElement.outerHTML])"
    )
    assert "right" not in kept.replace("copyright", "")
    assert kept.startswith('[[],[],"","http')


def test_context_when_full_then_said_what_to_do(make_server, open_tab):
    server = make_server("fine", info={"max_model_len": 64})
    tab = open_tab(server.base_url, expects=True)
    page = tab.open()
    tab.say("one two three four five six seven eight nine ten " * 10)
    answer = tab.wait_answer()
    expect(answer.get_by_role("alert")).to_contain_text("maximum context length")
    expect(answer.get_by_role("alert")).to_contain_text("no longer fits")
    page.get_by_role("button", name="New conversation").click()
    assert tab.answers().count() == 0
    tab.say("one")
    expect(tab.wait_answer()).to_contain_text("fine")


def test_stop_then_the_engine_is_told_and_what_came_stays(make_server, open_tab):
    server = make_server(LONG_ANSWER, behaviour=Behaviour(delay_s=0.02))
    tab = open_tab(server.base_url)
    page = tab.open()
    tab.say("hello")
    expect(tab.answers().first).to_contain_text("The weather")
    page.get_by_role("button", name="Stop").click()
    answer = tab.wait_answer()
    expect(answer).to_contain_text("Stopped.")
    expect(answer).to_contain_text("The weather")
    wait_until(lambda: len(server.engine.aborted) == 1)
    answer.get_by_role("button", name="Retry").click()
    page.get_by_role("button", name="Stop").click()
    wait_until(lambda: len(server.engine.aborted) == 2)


def test_prompt_when_long_then_its_progress_is_shown(make_server, open_tab):
    steps = Behaviour(
        delay_s=0.1,
        prompt_tokens_per_step=64,
        num_cached_tokens=32,
        cache_report=CacheReport("differs", 40),
    )
    server = make_server("fine", behaviour=steps)
    tab = open_tab(server.base_url)
    page = tab.open()
    tab.say("one two three four five six seven eight nine ten " * 80)
    told = page.locator(".progress")
    expect(told).to_contain_text(re.compile(r"Prompt: [\d,]+ of [\d,]+ tokens, 32 from the cache"))
    first = page.locator("progress").get_attribute("value")
    page.wait_for_function(
        "first => Number(document.querySelector('progress')?.value) > Number(first)", arg=first
    )
    answer = tab.wait_answer()
    expect(answer.locator(".progress")).to_have_count(0)
    expect(answer).to_contain_text("goes on with another token at 40: something changed there")
    answer.get_by_role("button", name="Prompt").click()
    expect(page.locator("pre.prompt .known")).to_be_visible()


def test_engine_when_it_fails_in_an_answer_then_its_error_is_shown(make_server, open_tab):
    behaviour = Behaviour(delay_s=0.01, fail_after_tokens=5)
    server = make_server(LONG_ANSWER, behaviour=behaviour)
    tab = open_tab(server.base_url)
    tab.open()
    tab.say("hello")
    answer = tab.wait_answer()
    expect(answer.get_by_role("alert")).to_contain_text("scripted failure")
    behaviour.fail_after_tokens = None
    behaviour.delay_s = 0.0
    answer.get_by_role("button", name="Retry").click()
    expect(tab.wait_answer().get_by_role("alert")).to_have_count(0)


def test_page_then_usable_within_a_second_of_loopback(make_server, open_tab):
    server = make_server("fine")
    tab = open_tab(server.base_url)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    sent = page.evaluate(
        "() => performance.getEntriesByType('resource').concat("
        "performance.getEntriesByType('navigation')).reduce((sum, e) => sum + e.transferSize, 0)"
    )
    assert 0 < sent < 200_000
    # The first load warms both sides up; what counts is that nothing waits for anything else.
    durations = []
    for _ in range(3):
        started = time.monotonic()
        page.reload()
        page.get_by_role("button", name="Call a tool").wait_for()
        durations.append(time.monotonic() - started)
    print(f"transferred {sent} bytes; usable after {min(durations):.2f} s")
    assert min(durations) < 1
