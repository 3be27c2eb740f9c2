"""The page of a real `ling sandbox` in Chromium: what there is, what ran in it, and its end."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from test_page_hostile import CORPUS, IN_NAMES, check_harmless

from page_support import SANDBOX_KEYS
from sandbox_support import wait_for

pytestmark = pytest.mark.slow

KEY, OTHER_KEY = SANDBOX_KEYS


def logs(box, **query):
    with box.server.client(KEY) as client:
        return client.get(f"/v2/sandboxes/{box.id}/logs", params=query)


def test_sandboxes_then_listed_with_limits_and_output_and_killed(ling_sandbox, open_tab):
    box = ling_sandbox.create(
        KEY, metadata={"<script>hit()</script>": IN_NAMES}, templateID=CORPUS[0]
    )
    other = ling_sandbox.create(OTHER_KEY)
    box.run(f"echo '{CORPUS[2]}'; echo 'to stderr' >&2; exit 3")
    tab = open_tab(ling_sandbox.url, expects=True)
    page = tab.open("sandboxes")
    expect(page.get_by_text("This server asks for an API key.")).to_be_visible()
    page.locator("#key").fill("e2b_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The API key is not valid.")).to_be_visible()
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    rows = page.get_by_role("region", name="Sandboxes of this key").locator("tbody tr")
    expect(rows).to_have_count(1)  # another key's is not shown
    expect(rows).to_contain_text(IN_NAMES)
    expect(rows).to_contain_text(CORPUS[0])
    rows.get_by_role("button").click()
    sandbox = page.get_by_role("region", name="Sandbox", exact=True)
    expect(sandbox.locator(".facts")).to_contain_text("256 MiB")
    expect(sandbox.locator(".facts")).to_contain_text("64")
    expect(sandbox.get_by_text(re.compile(r"[\d.]+ MiB of 256 MiB"))).to_be_visible()
    output = sandbox.get_by_role("log")
    expect(output.locator(".info")).to_contain_text(CORPUS[2])
    expect(output.locator(".error")).to_contain_text("to stderr")
    expect(output).to_contain_text("exit status 3")
    box.execute("print('\x1b[31mred\x1b[0m'); 6 * 7")  # what comes later is seen, too
    expect(output).to_contain_text("red")
    expect(output).to_contain_text("42")
    assert "[31m" not in output.inner_text()
    check_harmless(page)
    sandbox.get_by_role("button", name="Kill", exact=True).click()
    sandbox.get_by_role("button", name="Keep it").click()
    assert logs(box).status_code == 200
    sandbox.get_by_role("button", name="Kill", exact=True).click()
    sandbox.get_by_role("button", name="Kill it").click()
    expect(rows).to_have_count(0)
    assert logs(box).status_code == 404
    expect(page.get_by_text("None. What is made with this key")).to_be_visible()
    other.kill()


def test_logs_then_in_both_shapes_and_directions_and_of_the_owner_alone(ling_sandbox):
    box = ling_sandbox.create(KEY)
    box.run("echo one")
    wait_for(lambda: "exit status 0" in logs(box).text, "the end is in the journal")
    entries = logs(box).json()["logs"]
    assert [each["message"] for each in entries] == [
        "/bin/bash -c 'echo one'", "one\n", "exit status 0",
    ]  # fmt: skip
    backward = logs(box, direction="backward", limit=2).json()["logs"]
    assert backward == entries[:0:-1]
    assert logs(box, cursor=2**42).json()["logs"] == []
    with ling_sandbox.client(KEY) as client:
        old = client.get(f"/sandboxes/{box.id}/logs", params={"limit": 1}).json()
        assert old["logEntries"] == entries[:1]
        assert old["logs"] == [
            {"timestamp": entries[0]["timestamp"], "line": entries[0]["message"]}
        ]
        assert "/v2/sandboxes/{sandbox_id}/logs" in client.get("/openapi.json").json()["paths"]
    with ling_sandbox.client(OTHER_KEY) as client:
        assert client.get(f"/sandboxes/{box.id}/logs").status_code == 404
    for query, said in (
        ({"limit": 5000}, "up to 1000"),
        ({"limit": "x"}, "a whole number"),
        ({"direction": "up"}, "forward, backward"),
        ({"level": "info"}, "allowed: cursor, limit, direction"),
    ):
        answer = logs(box, **query)
        assert (answer.status_code, said in answer.json()["message"]) == (400, True)
    box.kill()
