"""The openai package against the server, as its users would."""

from __future__ import annotations

import openai
import pytest

from api_support import TOKENIZER
from lingflash.link.scripted import Behaviour

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def client_of(server, **options):
    options = {"api_key": "unused", "max_retries": 0, **options}
    return openai.OpenAI(base_url=server.base_url + "/v1", **options)


def test_client_when_chatting_then_typed_answer(server):
    answer = client_of(server).chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].message.content == "fine, thank you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].bytes
    assert answer._request_id


def test_client_when_streaming_then_deltas_and_usage(server):
    stream = client_of(server).chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        "fine, thank you"
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == len(TOKENIZER.encode("fine, thank you")) + 1


def test_client_when_it_goes_through_a_tool_call_then_the_prompt_goes_on_as_generated(make_server):
    def script(request, choice):
        has_result = "<role>tool</role>" in TOKENIZER.decode(request.prompt_token_ids)
        return TOKENIZER.encode("The sum is 6." if has_result else CALL)

    server = make_server(script)
    client = client_of(server)
    messages = [{"role": "user", "content": "add them"}]
    first = client.chat.completions.create(model="toy", messages=messages, tools=[TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls[0].function.arguments == '{"a": 1, "b": [2, 3]}'
    messages.append(message)  # as the client's own object, with all its empty fields
    messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "6"})
    second = client.chat.completions.create(model="toy", messages=messages, tools=[TOOL])
    assert second.choices[0].message.content == "The sum is 6."
    prompt = server.engine.requests[-1].prompt_token_ids
    start = prompt.index(TOKENIZER.token_id("<tool_call>"))
    assert prompt[start : start + len(TOKENIZER.encode(CALL))] == TOKENIZER.encode(CALL)


def test_client_when_tool_calls_are_streamed_then_accumulated(make_server):
    server = make_server("ok\n" + CALL)
    with client_of(server).chat.completions.stream(
        model="toy", messages=[{"role": "user", "content": "x"}], tools=[TOOL]
    ) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "ok"
    assert message.tool_calls[0].function.name == "add"
    assert message.tool_calls[0].function.arguments == '{"a": 1, "b": [2, 3]}'


def test_client_when_using_completions_and_models_then_typed(server):
    client = client_of(server)
    answer = client.completions.create(
        model="toy", prompt=["a", "b"], echo=True, logprobs=1, max_tokens=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert [model.id for model in client.models.list()] == ["toy", "toy-alias"]
    assert client.models.retrieve("toy").id == "toy"
    pieces = client.completions.create(model="toy", prompt="a", stream=True)
    assert "".join(p.choices[0].text for p in pieces) == "fine, thank you"


def test_client_when_something_is_wrong_then_its_own_exceptions(make_server):
    server = make_server("x " * 50, api_keys=("k",), behaviour=Behaviour(fail_after_tokens=5))
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.AuthenticationError):
        client_of(server).models.list()
    client = client_of(server, api_key="k")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=messages)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="toy", messages=messages, top_p=7)
    assert bad.value.param == "top_p"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model="toy", messages=messages, extra_body={"frobnicate": True}
        )
    assert unknown.value.param == "frobnicate"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="toy", messages=messages)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="toy", messages=messages, stream=True))


async def test_client_when_it_leaves_a_stream_then_the_request_is_aborted(make_server):
    server = make_server("x " * 500, behaviour=Behaviour(delay_s=0.01))
    async with openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="x") as client:
        stream = await client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "x"}], stream=True
        )
        async for _ in stream:
            break
        await stream.close()
    from api_support import wait_until

    wait_until(lambda: server.engine.aborted)
    wait_until(lambda: not server.state.in_flight)
