"""The prefix cache over HTTP, on ling-nano: what is reported, and who may share."""

from __future__ import annotations

import httpx
import openai
import pytest

from api_support import serve_ling_nano


@pytest.fixture(scope="module")
def base_url():
    with serve_ling_nano("--admin-api-key", "boss", "--host-cache-gib", "0.05") as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0) as opened:
        yield opened


LONG = "Please remember this list of words: " + " ".join(f"word{i}" for i in range(60))


def ask(client, messages, **fields):
    return client.chat.completions.create(
        model="ling-nano", messages=messages, temperature=0, max_tokens=20, **fields
    )


def test_turns_when_continued_then_cached_tokens_grow_with_the_conversation(client):
    messages = [{"role": "user", "content": LONG}]
    first = ask(client, messages)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    again = ask(client, messages)
    hit = again.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens - hit <= 16
    assert again.choices[0].message.content == first.choices[0].message.content
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And now?"},
    ]
    third = ask(client, messages)
    assert third.usage.prompt_tokens_details.cached_tokens >= hit


def test_salt_when_different_then_nothing_is_found(client):
    messages = [{"role": "user", "content": LONG + " salted"}]
    for salt, found in (("a", False), ("a", True), ("b", False)):
        usage = ask(client, messages, extra_body={"cache_salt": salt}).usage
        # Even the template's first words were computed under this salt only.
        assert (usage.prompt_tokens_details.cached_tokens > 0) == found, salt


def test_metrics_when_prefixes_were_found_then_say_so(client, base_url):
    ask(client, [{"role": "user", "content": LONG}])
    ask(client, [{"role": "user", "content": LONG}])
    text = httpx.get(base_url.removesuffix("/v1") + "/metrics").text
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("lingflash_prefix")
    )
    assert float(values["lingflash_prefix_cache_hits_total"]) > 0
    assert float(values["lingflash_prefix_cache_blocks"]) > 0


def report_of(client, text, **fields):
    extra = {"return_cache_report": True, **fields}
    usage = ask(client, [{"role": "user", "content": text}], extra_body=extra).usage
    (report,) = usage.cache_report
    assert report["cached_tokens"] == usage.prompt_tokens_details.cached_tokens
    return report["result"], report["position"]


def test_report_when_asked_then_names_the_first_token_that_differs(client):
    assert report_of(client, LONG, cache_salt="r") == ("no_prefix", 0)
    assert report_of(client, LONG, cache_salt="r") == ("found", None)
    result, position = report_of(client, "Please remember! " + LONG, cache_salt="r")
    assert result == "differs"
    assert 0 < position < 40
    # Another salt learns nothing of it.
    assert report_of(client, LONG, cache_salt="s") == ("no_prefix", 0)


def test_reset_when_called_then_nothing_is_found_and_it_is_counted(client, base_url):
    root = base_url.removesuffix("/v1")
    report_of(client, LONG, cache_salt="t")
    assert report_of(client, LONG, cache_salt="t")[0] == "found"
    response = httpx.post(root + "/reset_prefix_cache", headers={"x-api-key": "boss"})
    assert response.status_code == 200, response.text
    assert response.json()["blocks"] > 0
    assert response.json()["checkpoints"] > 0
    assert report_of(client, LONG, cache_salt="t") == ("no_prefix", 0)
    text = httpx.get(root + "/metrics").text
    assert "lingflash_prefix_cache_resets_total 1.0" in text
    assert 'lingflash_prefix_cache_lookups_total{result="no_prefix"}' in text


def test_self_test_when_it_passed_then_ready_and_metrics_say_so(base_url):
    root = base_url.removesuffix("/v1")
    ready = httpx.get(root + "/ready").json()
    assert (ready["status"], ready["prefix_cache"]) == ("ready", "live")
    text = httpx.get(root + "/metrics").text
    assert "lingflash_prefix_cache_live 1.0" in text
    assert 'lingflash_cache_bytes{use="checkpoints"}' in text
