"""/v1/completions, /tokenize, /detokenize and /v1/models over real HTTP."""

from __future__ import annotations

import dataclasses

import pytest

from api_support import END, MAX_MODEL_LEN, TOKENIZER, engine_info
from lingflash.link.scripted import Behaviour

IDS = TOKENIZER.encode("the weather")


def test_completion_when_prompt_is_text_then_answers_with_usage(server):
    body = server.complete("the weather", max_tokens=100).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "fine, thank you", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["prompt_tokens"] == len(IDS)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert server.engine.requests[-1].prompt_token_ids == IDS


def test_completion_when_max_tokens_is_missing_then_sixteen(make_server):
    server = make_server("x" * 100)
    body = server.complete().json()
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"
    server.complete([1] * (MAX_MODEL_LEN - 3))
    assert server.engine.requests[-1].sampling.max_tokens == 3


def test_completion_when_prompt_spells_special_tokens_then_they_are_read(server):
    server.complete("a<|role_end|>")
    assert server.engine.requests[-1].prompt_token_ids[-1] == END


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (IDS, [IDS]),
        (["the weather", "x"], [IDS, TOKENIZER.encode("x")]),
        ([IDS, [5]], [IDS, [5]]),
    ],
)
def test_completion_when_prompt_has_another_form_then_one_choice_per_prompt(
    server, prompt, expected
):
    body = server.complete(prompt).json()
    assert [r.prompt_token_ids for r in server.engine.requests] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_completion_when_list_of_prompts_and_n_then_choices_are_ordered(make_server):
    def script(request, choice):
        return TOKENIZER.encode(f"{request.prompt_token_ids[0]}-{choice}")

    server = make_server(script)
    body = server.complete([[5], [6]], n=2).json()
    assert [choice["text"] for choice in body["choices"]] == ["5-0", "5-1", "6-0", "6-1"]
    events = server.stream("/v1/completions", {"prompt": [[5], [6]], "n": 2})
    texts = [""] * 4
    for event in events[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["5-0", "5-1", "6-0", "6-1"]


def test_completion_when_streamed_then_chunks_and_done(server):
    events = server.stream(
        "/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}
    )
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["total_tokens"] > 0
    assert events[-2]["choices"] == []
    assert "".join(e["choices"][0]["text"] for e in events[:-2]) == "fine, thank you"
    assert events[-3]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_completion_when_echo_and_logprobs_then_prompt_is_scored(server, stream):
    fields = {"prompt": "the weather", "echo": True, "logprobs": 2, "max_tokens": 2}
    if stream:
        events = server.stream("/v1/completions", fields)[:-1]
        text = "".join(e["choices"][0]["text"] for e in events)
        logprobs: dict = {}
        for event in events:
            for key, value in (event["choices"][0]["logprobs"] or {}).items():
                logprobs.setdefault(key, []).extend(value)
    else:
        choice = server.post("/v1/completions", fields).json()["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    generated = TOKENIZER.encode("fine, thank you")[:2]
    assert text == "the weather" + TOKENIZER.decode(generated)
    assert logprobs["tokens"] == [TOKENIZER.decode([i]) for i in IDS + generated]
    assert logprobs["token_logprobs"] == [None] + [-0.5] * (len(IDS) + 1)
    assert logprobs["top_logprobs"][0] is None
    assert all(len(top) >= 2 for top in logprobs["top_logprobs"][1:])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[offset : offset + len(token)] == token


def test_completion_when_max_tokens_is_zero_with_echo_then_only_the_prompt(server):
    choice = server.complete("the weather", echo=True, max_tokens=0, logprobs=0).json()["choices"][
        0
    ]
    assert choice["text"] == "the weather"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(IDS)
    body = server.complete(IDS, echo=True, max_tokens=0).json()
    assert body["choices"][0]["text"] == "the weather"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 0
    assert server.complete([1] * MAX_MODEL_LEN, echo=True, max_tokens=0).status_code == 200


def test_completion_when_token_ids_are_asked_for_then_both_sides(server):
    choice = server.complete("the weather", return_token_ids=True).json()["choices"][0]
    assert choice["prompt_token_ids"] == IDS
    assert choice["token_ids"] == TOKENIZER.encode("fine, thank you")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [1] * (MAX_MODEL_LEN + 1)}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "messages": [1]}, "messages"),
        ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_tokens": 1}, "prompt"),
    ],
)
def test_completion_when_a_field_is_bad_then_400_names_it(server, fields, param):
    response = server.post("/v1/completions", fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert server.engine.requests == []


def test_server_when_there_is_no_tokenizer_then_token_id_mode(make_server):
    server = make_server({(): [5, 6, 7]}, model_folder=None)
    body = server.complete([1, 2], logprobs=1).json()
    choice = body["choices"][0]
    assert choice["text"] == ""
    assert choice["token_ids"] == [5, 6, 7]
    assert choice["logprobs"]["tokens"] == ["token_id:5", "token_id:6", "token_id:7"]
    events = server.stream("/v1/completions", {"prompt": [1, 2]})
    assert [i for e in events[:-1] for i in e["choices"][0]["token_ids"]] == [5, 6, 7]
    for path, fields, word in [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "token ids"),
        ("/v1/completions", {"prompt": "x"}, "token ids"),
        ("/v1/completions", {"prompt": [1], "stop": "x"}, "stop_token_ids"),
        ("/tokenize", {"prompt": "x"}, "token ids"),
        ("/detokenize", {"tokens": [1]}, "token ids"),
    ]:
        response = server.post(path, fields)
        assert response.status_code == 400
        assert word in response.json()["error"]["message"]


def test_tokenize_when_text_or_messages_then_ids_of_what_would_be_served(server):
    body = server.post("/tokenize", {"prompt": "the weather", "return_token_strs": True}).json()
    assert body["tokens"] == IDS
    assert body["count"] == len(IDS)
    assert body["max_model_len"] == MAX_MODEL_LEN
    assert "".join(body["token_strs"]) == "the weather"
    messages = [{"role": "user", "content": "hi"}]
    body = server.post("/tokenize", {"messages": messages}).json()
    server.chat("hi")
    assert body["tokens"] == server.engine.requests[-1].prompt_token_ids
    shorter = server.post("/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert shorter.json()["count"] < body["count"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [{}]}, "tools"),
        ("/tokenize", {"prompt": "a", "x": 1}, "x"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_tokenize_when_a_field_is_bad_then_400_names_it(server, path, fields, param):
    response = server.post(path, fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_detokenize_when_ids_are_given_then_their_text(server):
    assert server.post("/detokenize", {"tokens": [*IDS, END]}).json() == {
        "prompt": "the weather<|role_end|>"
    }


def test_models_then_every_served_name_and_404_for_others(server):
    listed = server.client.get("/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == ["toy", "toy-alias"]
    one = server.client.get("/v1/models/toy-alias").json()
    assert one["max_model_len"] == MAX_MODEL_LEN
    assert server.complete(model="toy-alias").json()["model"] == "toy-alias"
    for response in (
        server.client.get("/v1/models/other"),
        server.chat(model="other"),
        server.complete(model="other"),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model"


def test_completion_when_the_queue_is_full_then_429_and_nothing_of_the_list_stays(make_server):
    info = dataclasses.replace(engine_info(), max_num_seqs=1, max_num_waiting=1)
    server = make_server(info=info, behaviour=Behaviour(hang=True))
    response = server.complete([[1], [2], [3]])
    assert response.status_code == 429
    assert response.headers["retry-after"]
    assert response.json()["error"]["code"] == "queue_full"
    assert len(server.engine.aborted) == 2
    assert server.metric("lingflash_num_requests_waiting") == 0
