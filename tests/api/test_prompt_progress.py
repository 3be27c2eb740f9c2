"""`stream_options.include_progress`: comments of a stream that tell how far the prompt is."""

from __future__ import annotations

import json

import httpx
import pytest

from api_support import parse_events, read_named_events, serve_ling_nano
from lingflash.link.scripted import Behaviour
from lingflash.link.sse_reader import EventReader, event_comment
from lingflash.protocol.sse import PROGRESS

LONG = "one two three four five six seven eight nine ten"
ENDPOINTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
    "/v1/completions": {"prompt": LONG},
    "/v1/responses": {"input": LONG},
}
IN_STEPS = Behaviour(num_cached_tokens=4, prompt_tokens_per_step=8, delay_s=0.01)


def read(client, path, fields):
    with client.stream("POST", path, json={**fields, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        return response.read()


def progress_of(data):
    told = (event_comment(event, PROGRESS) for event in EventReader().feed(data))
    return [json.loads(each) for each in told if each is not None]


def without_comments(data):
    return b"".join(each for each in EventReader().feed(data) if not each.startswith(b":"))


def check_frames(frames, total, cached):
    assert [each["total"] for each in frames] == [total] * len(frames)
    assert [each["cached"] for each in frames] == [cached] * len(frames)
    done = [each["processed"] for each in frames]
    assert done == sorted(set(done))
    assert done[-1] == total
    times = [each["time_ms"] for each in frames]
    assert times == sorted(times)
    assert all(set(each) == {"total", "cached", "processed", "time_ms"} for each in frames)
    return done


@pytest.mark.parametrize("path", ENDPOINTS)
def test_stream_when_progress_is_asked_for_then_comments_before_the_first_token(make_server, path):
    server = make_server(behaviour=IN_STEPS)
    options = {"include_progress": True}
    data = read(server.client, path, {**ENDPOINTS[path], "stream_options": options})
    frames = progress_of(data)
    done = check_frames(frames, total=len(server.engine.requests[-1].prompt_token_ids), cached=4)
    assert [(each - 4) % 8 for each in done[:-1]] == [0] * (len(done) - 1)
    last = data.rindex(f": {PROGRESS} ".encode())
    assert b'"Hel' not in data[:last]
    assert b"delta" in data[last:] or b'"text"' in data[last:]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_stream_when_progress_is_not_asked_for_then_none(make_server, path):
    server = make_server(behaviour=IN_STEPS)
    for options in (None, {"include_progress": False}):
        extra = {} if options is None else {"stream_options": options}
        data = read(server.client, path, {**ENDPOINTS[path], **extra})
        assert PROGRESS.encode() not in data
        assert not server.engine.requests[-1].wants_progress


def test_stream_when_progress_is_asked_for_then_readers_of_events_see_nothing_of_it(make_server):
    server = make_server(behaviour=IN_STEPS)
    plain = ENDPOINTS["/v1/chat/completions"]
    asked = {**plain, "stream_options": {"include_progress": True}}
    both = [read(server.client, "/v1/chat/completions", fields) for fields in (plain, asked)]
    said = [[e["choices"] for e in parse_events(without_comments(d))[:-1]] for d in both]
    assert said[0] == said[1]
    items = read(
        server.client,
        "/v1/responses",
        {**ENDPOINTS["/v1/responses"], "stream_options": {"include_progress": True}},
    )
    assert read_named_events(without_comments(items))[-1] == "[DONE]"


def test_stream_when_there_are_several_prompts_then_the_frames_are_of_all(make_server):
    server = make_server(behaviour=IN_STEPS)
    fields = {"prompt": [LONG, LONG + " eleven"], "stream_options": {"include_progress": True}}
    frames = progress_of(read(server.client, "/v1/completions", fields))
    total = sum(len(each.prompt_token_ids) for each in server.engine.requests[-2:])
    assert frames[-1] | {"time_ms": 0} == {
        "total": total,
        "cached": 8,
        "processed": total,
        "time_ms": 0,
    }


@pytest.mark.parametrize("path", ENDPOINTS)
def test_progress_when_it_is_no_switch_then_refused_by_name(make_server, path):
    fields = {**ENDPOINTS[path], "stream": True, "stream_options": {"include_progress": "yes"}}
    refused = make_server().post(path, fields)
    assert refused.status_code == 400
    assert "include_progress" in refused.text


def test_progress_when_a_real_engine_computes_a_prompt_in_chunks_then_a_frame_for_each():
    with (
        serve_ling_nano("--max-num-batched-tokens", "64") as url,
        httpx.Client(base_url=url.removesuffix("/v1")) as client,
    ):
        fields = {
            "prompt": [5 + i % 50 for i in range(200)],
            "max_tokens": 2,
            "stream_options": {"include_progress": True, "include_usage": True},
        }
        data = read(client, "/v1/completions", fields)
        assert check_frames(progress_of(data), total=200, cached=0) == [64, 128, 192, 200]
        again = read(client, "/v1/completions", fields)
        usage = parse_events(without_comments(again))[-2]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        check_frames(progress_of(again), total=200, cached=cached)
