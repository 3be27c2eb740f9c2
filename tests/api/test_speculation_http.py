"""Speculation over HTTP, on ling-nano: the same answers, counted in usage and metrics."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from api_support import serve_ling_nano

QUESTION = [{"role": "user", "content": "Hello! Who are you?"}]
FIELDS = {"model": "ling-nano", "messages": QUESTION, "temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def answers():
    """By number of drafts: two whole answers, a streamed one's text, and the metrics."""
    found = {}
    for count in ("0", "2"):
        flags = ("--batch-invariant", "--no-prefix-caching", "--num-speculative-tokens", count)
        with (
            serve_ling_nano(*flags) as url,
            openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client,
        ):
            whole = client.chat.completions.create(**FIELDS)
            stopped = client.chat.completions.create(**FIELDS, stop=["small model"])
            chunks = client.chat.completions.create(**FIELDS, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            text = client.completions.create(
                model="ling-nano", prompt="Hello", temperature=0, max_tokens=20
            )
            # The engine's numbers come a few times a second.
            metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
            found[count] = whole, stopped, streamed, text, metrics
    return found


def test_answers_when_speculating_then_equal_whole_stopped_and_streamed(answers):
    plain, drafted = answers["0"], answers["2"]
    for a, b in zip(plain[:2], drafted[:2], strict=True):
        assert a.choices[0].message.content == b.choices[0].message.content
        assert a.choices[0].finish_reason == b.choices[0].finish_reason
        assert a.usage.completion_tokens == b.usage.completion_tokens
    assert plain[1].choices[0].message.content.endswith("the ")
    assert plain[2] == drafted[2] == plain[0].choices[0].message.content
    assert plain[3].choices[0].text == drafted[3].choices[0].text


def test_usage_and_metrics_when_speculating_then_count_drafts(answers):
    for answer in (answers["2"][0], answers["2"][3]):
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens > 0
        assert details.accepted_prediction_tokens < answer.usage.completion_tokens
        assert details.rejected_prediction_tokens >= 0
    assert "accepted_prediction_tokens" not in json.dumps(answers["0"][0].to_dict())
    values = dict(
        line.rsplit(" ", 1)
        for line in answers["2"][4].splitlines()
        if line.startswith("lingflash_spec_decode")
    )
    accepted = float(values["lingflash_spec_decode_accepted_tokens_total"])
    assert 0 < accepted <= float(values["lingflash_spec_decode_draft_tokens_total"])
