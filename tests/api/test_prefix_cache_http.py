"""The prefix cache over HTTP, on ling-nano: what is reported, and who may share."""

from __future__ import annotations

import httpx
from test_ling_nano import base_url, client  # noqa: F401 - fixtures

LONG = "Please remember this list of words: " + " ".join(f"word{i}" for i in range(60))


def ask(client, messages, **fields):  # noqa: F811
    return client.chat.completions.create(
        model="ling-nano", messages=messages, temperature=0, max_tokens=20, **fields
    )


def test_turns_when_continued_then_cached_tokens_grow_with_the_conversation(client):  # noqa: F811
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


def test_salt_when_different_then_nothing_is_found(client):  # noqa: F811
    messages = [{"role": "user", "content": LONG + " salted"}]
    for salt, found in (("a", False), ("a", True), ("b", False)):
        usage = ask(client, messages, extra_body={"cache_salt": salt}).usage
        # Even the template's first words were computed under this salt only.
        assert (usage.prompt_tokens_details.cached_tokens > 0) == found, salt


def test_metrics_when_prefixes_were_found_then_say_so(client, base_url):  # noqa: F811
    ask(client, [{"role": "user", "content": LONG}])
    ask(client, [{"role": "user", "content": LONG}])
    text = httpx.get(base_url.removesuffix("/v1") + "/metrics").text
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("lingflash_prefix")
    )
    assert float(values["lingflash_prefix_cache_hits_total"]) > 0
    assert float(values["lingflash_prefix_cache_blocks"]) > 0
