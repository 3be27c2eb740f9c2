"""The dashboard in Chromium: its numbers are those of /metrics."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from api_support import wait_until
from lingflash.link.scripted import Behaviour

pytestmark = pytest.mark.slow


def row(page, name):
    return page.locator("tr", has=page.get_by_role("rowheader", name=name, exact=True))


def test_dashboard_when_requests_ran_then_its_counts_are_those_of_the_metrics(ling_serve, open_tab):
    tab = open_tab(ling_serve)
    page = tab.open("dashboard")
    for prompt in ([5] * 200, [5] * 200, [6, *[5] * 199]):
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        httpx.post(ling_serve + "/v1/completions", json=body, timeout=30).raise_for_status()
    httpx.post(ling_serve + "/v1/completions", json={"prompt": [5], "n": -1})
    series = httpx.get(ling_serve + "/metrics").text

    def metric(name):
        return re.search(rf"^lingflash_{name} (\S+)$", series, re.MULTILINE)[1]

    length = int(float(metric('request_success_total{finished_reason="length"}')))
    expect(row(page, "length").locator("td").last).to_have_text(f"{length:,}")
    lacking = int(float(metric('prefix_cache_lookups_total{result="no_prefix"}')))
    expect(row(page, "nothing begins like it").locator("td").last).to_have_text(f"{lacking:,}")
    blocks = int(float(metric("kv_blocks_total")))
    expect(page.get_by_text(f" of {blocks:,}")).to_be_visible()
    weights = float(metric('memory_plan_bytes{part="weights"}')) / 2**20
    expect(row(page, "weights").locator("td").last).to_have_text(f"{weights:.1f} MiB")
    expect(page.get_by_role("heading", name="Speculation")).to_have_count(0)


def test_dashboard_when_answers_run_then_rates_and_percentiles_follow(make_server, open_tab):
    server = make_server("x " * 4000, behaviour=Behaviour(delay_s=0.02, is_punctual=True))
    tab = open_tab(server.base_url)
    page = tab.open()
    tab.say("hello")
    page.get_by_role("link", name="Dashboard").click()
    tokens = page.get_by_role("img", name="Time between tokens")
    between = re.compile(r"p50 (1\d|2\d|3\d)(\.\d+)? ms, p95 \d")
    expect(tokens).to_have_accessible_name(between)
    expect(page.get_by_role("img", name="Queue")).to_have_accessible_name(
        "Queue: running 1, waiting 0"
    )
    page.get_by_role("link", name="Playground").click()
    page.get_by_role("button", name="Stop").click()
    wait_until(lambda: server.engine.aborted != [])


def test_dashboard_when_the_server_is_gone_then_says_that_its_numbers_are_old(
    make_server, open_tab
):
    server = make_server("fine")
    tab = open_tab(server.base_url, expects=True)
    page = tab.open("dashboard")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    server.call(server.engine.die, for_good=True)
    expect(page.locator(".notice.offline")).to_contain_text("cannot be reached")
