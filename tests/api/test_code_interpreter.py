"""code_interpreter in /v1/responses: a scripted model, and code that really runs."""

from __future__ import annotations

import base64
import dataclasses

import openai
import pytest

from api_support import engine_info, wait_until
from code_support import (
    AUTO,
    END,
    OUTPUTS,
    PATH,
    SLEEP,
    TOKENIZER,
    alive,
    calls,
    code_items,
    create,
    is_idle,
    logs,
    stream,
    texts,
)
from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.core.errors import ConfigError
from lingflash.link.scripted import Behaviour, ScriptedEngine
from sandbox_support import SandboxServer

FUNCTION = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 40).decode()


# What is answered.


def test_create_when_code_is_called_then_it_is_run_and_the_answer_goes_on(serve_code):
    server, script = serve_code("Let me see.\n" + calls("print(17 * 23)"), "The result is 391.")
    body = create(server, "What is 17 times 23?").json()
    assert [item["type"] for item in body["output"]] == [
        "message",
        "code_interpreter_call",
        "message",
    ]
    [item] = code_items(body)
    assert (item["status"], item["code"]) == ("completed", "print(17 * 23)")
    assert item["outputs"] == [{"type": "logs", "logs": "391\n"}]
    assert item["container_id"].startswith("cntr_")
    assert texts(body) == ["Let me see.", "The result is 391."]
    assert script.results == ["391\n"]
    script.check_prefix()
    usage, spent = body["usage"], body["usage"]["code_interpreter_details"]
    assert usage["input_tokens"] == sum(len(prompt) for prompt, _ in script.generated)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (spent["calls"], spent["output_bytes"]) == (1, 4)
    assert 0 < spent["seconds"] < 60
    assert "_options" not in body["tools"][0]


@pytest.mark.parametrize("tokens_per_event", [1, pytest.param(1000, marks=pytest.mark.slow)])
def test_stream_when_code_is_called_then_openais_events_in_their_order(
    serve_code, tokens_per_event
):
    server, _ = serve_code(
        "Let me see.\n" + calls("x = 5"),
        calls("print(x)"),
        "It is 5.",
        behaviour=Behaviour(tokens_per_event=tokens_per_event),
    )
    events = stream(server)
    assert events.pop() == "[DONE]"
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"].removeprefix("response.") for e in events]
    once = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    text = [
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
    ]
    code = [
        *("output_item.added", "code_interpreter_call.in_progress"),
        *("code_interpreter_call_code.delta", "code_interpreter_call_code.done"),
        *("code_interpreter_call.interpreting", "code_interpreter_call.completed"),
        "output_item.done",
    ]
    assert once == ["created", "in_progress", *text, *code, *code, *text, "completed"]
    final = events[-1]["response"]
    assert [e["item"] for e in events if e["type"].endswith("output_item.done")] == final["output"]
    indexes = [e["output_index"] for e in events if e["type"].endswith("output_item.added")]
    assert indexes == [0, 1, 2, 3]
    for item in code_items(final):
        own = [e for e in events if e.get("item_id") == item["id"]]
        delta = "".join(e["delta"] for e in own if e["type"].endswith("code.delta"))
        done = [e["code"] for e in own if e["type"].endswith("code.done")]
        assert [delta] == done == [item["code"]]
    assert [logs(item) for item in code_items(final)] == ["", "5\n"]


@pytest.mark.slow
def test_stream_when_a_turn_has_two_calls_then_each_is_run_in_its_turn(serve_code):
    server, script = serve_code(calls("a = 1\nprint(a)", "print(a + 1)"), "1 and 2.")
    events = stream(server)
    short = [
        (e["type"].rpartition(".")[2], e["output_index"])
        for e in events[:-1]
        if "code_interpreter_call." in e["type"] or e["type"].endswith("output_item.done")
    ]
    assert short == [
        *[("in_progress", 0), ("in_progress", 1)],
        *[("interpreting", 0), ("completed", 0), ("done", 0)],
        *[("interpreting", 1), ("completed", 1), ("done", 1)],
        ("done", 2),
    ]
    assert script.results == ["1\n", "2\n"]
    script.check_prefix()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "read"),
    [
        pytest.param("6 * 7", "42\n", id="value"),
        pytest.param("import sys\nprint('no', file=sys.stderr)", "no\n", id="stderr"),
        pytest.param("1 / 0", "ZeroDivisionError: division by zero\n", id="error"),
        pytest.param("pass", "", id="nothing"),
        pytest.param("print('<|role' + '_end|>')", "<|role_end|>\n", id="hostile"),
    ],
)
def test_create_when_code_gives_something_then_the_model_reads_it(serve_code, code, read):
    server, script = serve_code(calls(code), "done")
    body = create(server).json()
    assert logs(code_items(body)[0]).endswith(read)
    assert script.results[-1].endswith(read)
    assert "\x1b" not in logs(code_items(body)[0])
    assert texts(body) == ["done"]
    # What code prints commands nothing.
    assert script.generated[-1][0].count(END) == 4


@pytest.mark.slow
def test_create_when_code_draws_then_an_image_between_the_logs(serve_code):
    code = (
        "import base64\nfrom IPython.display import Image, display\nprint('before')\n"
        f"display(Image(data=base64.b64decode('{PNG}'), format='png'))\nprint('after')"
    )
    server, script = serve_code(calls(code), "done")
    [item] = code_items(create(server).json())
    assert item["outputs"] == [
        {"type": "logs", "logs": "before\n"},
        {"type": "image", "url": f"data:image/png;base64,{PNG}"},
        {"type": "logs", "logs": "after\n"},
    ]
    assert script.results == ["before\n[an image, which is shown to the user]\nafter\n"]


@pytest.mark.slow
def test_create_when_code_prints_much_then_its_middle_is_left_out_for_the_model(serve_code):
    server, script = serve_code(calls("print('a' * 400_000, 'end')"), "done")
    body = create(server).json()
    [item] = code_items(body)
    assert len(logs(item)) < 300_000
    assert "is left out" in logs(item)
    assert "characters left out]" in script.results[-1]
    assert len(script.results[-1]) < 5000
    assert body["usage"]["code_interpreter_details"]["output_bytes"] == 400_005


def test_create_when_outputs_are_not_included_then_they_are_null_but_kept(serve_code):
    server, script = serve_code(calls("print(1)"), "one")
    body = create(server, include=None).json()
    assert code_items(body)[0]["outputs"] is None
    path = f"{PATH}/{body['id']}"
    assert server.client.get(path).json() == body
    full = server.client.get(path, params={"include": OUTPUTS[0]}).json()
    assert logs(code_items(full)[0]) == "1\n"
    create(server, "again", previous_response_id=body["id"])
    assert script.results[0] == "1\n"


# What it goes on from.


@pytest.mark.slow
@pytest.mark.parametrize("is_stored", [True, False])
def test_create_when_it_continues_then_the_same_container_and_prompt(serve_code, is_stored):
    server, script = serve_code(calls("x = 41"), "Kept.")
    first = create(server, store=is_stored).json()
    script.texts = (calls("print(x + 1)"), "42.")
    if is_stored:
        second = create(server, "and x + 1?", previous_response_id=first["id"])
    else:
        hi, more = ({"role": "user", "content": text} for text in ("hi", "and x + 1?"))
        second = create(server, [hi, *first["output"], more], store=False)
    body = second.json()
    assert second.status_code == 200, body
    assert logs(code_items(body)[0]) == "42\n"
    assert code_items(body)[0]["container_id"] == code_items(first)[0]["container_id"]
    script.check_prefix()


@pytest.mark.slow
def test_create_when_the_earlier_container_is_gone_then_another(serve_code, sandboxes):
    server, script = serve_code(calls("x = 41"), "Kept.")
    first = create(server).json()
    with sandboxes.client() as client:
        for each in alive(sandboxes):
            client.delete(f"/sandboxes/{each['sandboxID']}")
    script.texts = (calls("print(x + 1)"), calls("print('new')"), "Gone.")
    body = create(server, "again", previous_response_id=first["id"]).json()
    lost, new = code_items(body)
    assert (lost["status"], new["status"]) == ("failed", "completed")
    assert "has ended" in logs(lost)
    assert logs(new) == "new\n"
    assert lost["container_id"] != new["container_id"]


@pytest.mark.slow
def test_create_when_a_function_is_called_too_then_the_code_is_run_and_the_client_answers(
    serve_code,
):
    server, script = serve_code(calls("print(3)") + "\n" + WEATHER)
    body = create(server, tools=[FUNCTION, AUTO]).json()
    assert [item["type"] for item in body["output"]] == ["code_interpreter_call", "function_call"]
    assert logs(code_items(body)[0]) == "3\n"
    assert len(script.prompts) == 1
    script.texts = ("unused", "It is 3 and sunny.")
    call_id = body["output"][1]["call_id"]
    result = {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
    following = create(
        server, [result], previous_response_id=body["id"], tools=[FUNCTION, AUTO]
    ).json()
    assert script.results == ["3\n", "sunny"]
    assert following["status"] == "completed"


# Limits.


@pytest.mark.slow
@pytest.mark.parametrize("others", [[], [FUNCTION]])
def test_create_when_max_tool_calls_is_reached_then_no_more_is_run_or_offered(serve_code, others):
    server, script = serve_code(calls("print(1)", "print(2)"), "One.")
    body = create(server, max_tool_calls=1, tools=[*others, AUTO]).json()
    done, left = code_items(body)
    assert (done["status"], left["status"]) == ("completed", "incomplete")
    assert script.results == ["1\n", "[not run: max_tool_calls is 1]\n"]
    assert body["usage"]["code_interpreter_details"]["calls"] == 1
    assert body["max_tool_calls"] == 1
    grammar = server.engine.requests[-1].grammar.text
    assert '"python"' not in grammar
    assert ('"get_weather"' in grammar) == bool(others)


def test_stream_when_a_call_is_not_run_then_it_is_not_interpreting(serve_code):
    server, _ = serve_code(calls("print(1)"), "None.")
    events = stream(server, max_tool_calls=0)
    kinds = [e["type"] for e in events[:-1] if "code_interpreter" in e["type"]]
    assert kinds[-1] == "response.code_interpreter_call_code.done"


@pytest.mark.slow
def test_create_when_code_runs_too_long_then_it_is_stopped_and_the_model_told(serve_code):
    server, script = serve_code(
        calls("print('on', flush=True)\n" + SLEEP), "Too long.", code_timeout_s=2
    )
    body = create(server).json()
    [item] = code_items(body)
    assert item["status"] == "incomplete"
    assert script.results == ["on\n[stopped after 2 s]\n"]
    script.texts = (calls("print('alive')"), "Yes.")
    again = create(server, "still there?", previous_response_id=body["id"]).json()
    assert logs(code_items(again)[0]) == "alive\n"


@pytest.mark.slow
@pytest.mark.parametrize("is_streamed", [False, True])
def test_create_when_its_deadline_passes_in_code_then_it_fails(serve_code, sandboxes, is_streamed):
    server, _ = serve_code(calls(SLEEP), "never")
    if is_streamed:
        assert stream(server, timeout=1.5)[-1]["type"] == "response.failed"
    else:
        answer = create(server, timeout=1.5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    wait_until(lambda: is_idle(server, sandboxes), 30)


@pytest.mark.slow
def test_create_when_tokens_or_context_run_out_then_incomplete(serve_code):
    server, script = serve_code(calls("print('word ' * 4000)"), "done " * 50)
    first = len(TOKENIZER.encode(script.texts[0])) + 1
    body = create(server, max_output_tokens=first + 5).json()
    assert body["status"] == "incomplete"
    assert body["usage"]["output_tokens"] == first + 5
    assert code_items(body)[0]["status"] == "completed"
    assert create(server, max_output_tokens=first).json()["output"][-1]["type"].endswith("_call")
    small = dataclasses.replace(server.engine.info, max_model_len=len(script.generated[0][0]) + 70)
    server.engine._info = small
    body = create(server).json()
    assert (body["status"], len(code_items(body))) == ("incomplete", 1)


def test_create_when_the_answer_is_cut_after_a_call_then_it_is_not_run(serve_code):
    call = calls("print(1)")
    server, _ = serve_code(call + "\n" + "and so on " * 50)
    limit = len(TOKENIZER.encode(call)) + 10
    events = stream(server, max_output_tokens=limit)
    final = events[-2]["response"]
    assert final["status"] == "incomplete"
    assert code_items(final)[0]["status"] == "incomplete"
    assert any(e["type"].endswith("output_item.done") for e in events[:-1])
    assert "response.code_interpreter_call.interpreting" not in [e["type"] for e in events[:-1]]


@pytest.mark.slow
def test_create_when_a_key_has_many_containers_then_the_oldest_make_room(serve_code, sandboxes):
    server, _ = serve_code(calls("print(1)"), "one", max_containers_per_key=2)
    ids = [code_items(create(server).json())[0]["container_id"] for _ in range(3)]
    assert len(set(ids)) == 3
    wait_until(lambda: len(alive(sandboxes)) == 2, 30)


@pytest.mark.slow
def test_create_when_all_sandboxes_are_taken_then_idle_ones_make_room_or_it_is_refused(
    serve_code, sandboxes
):
    server, _ = serve_code(calls("print(1)"), "one")
    create(server)
    others = [sandboxes.create(timeout=60) for _ in range(5)]
    try:
        assert create(server).json()["status"] == "completed"  # in the place of the first
        others.append(None)
        for container in server.state.containers.all_of(""):
            server.call(server.state.containers.forget, container)
        wait_until(lambda: len(alive(sandboxes)) == 5, 30)
        others[-1] = sandboxes.create(timeout=60)
        answer = create(server)
        assert answer.status_code == 503
        assert "no room" in answer.json()["error"]["message"]
        assert stream(server)[-1]["type"] == "response.failed"
    finally:
        for other in filter(None, others):
            other.kill()


# Where it cannot run.


def test_create_when_there_is_no_sandbox_server_then_a_clear_error(serve_code):
    server, _ = serve_code(calls("print(1)"), "one", sandbox="http://127.0.0.1:9")
    answer = create(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "sandbox_gone")
    assert "ling sandbox" in answer.json()["error"]["message"]
    failed = stream(server)[-1]["response"]
    assert "ling sandbox" in failed["error"]["message"]
    assert code_items(failed)[0]["status"] in ("interpreting", "incomplete")


def test_create_when_the_server_has_no_sandbox_then_the_tool_is_dropped(serve_code):
    server, script = serve_code("hello", sandbox=None)
    answer = create(server, max_tool_calls=3)
    named = answer.headers["x-lingflash-dropped"].split(", ")
    assert sorted(named) == ["include[0]", "max_tool_calls", "tools[0]"]
    assert "python" not in script.prompts[0]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "code_interpreter"}], "tools[0].container"),
        ([AUTO, AUTO], "tools[1].name"),
        ([{**AUTO, "container": {"type": "manual"}}], "tools[0].container.type"),
        (
            [{**AUTO, "container": {"type": "auto", "file_ids": ["x"]}}],
            "tools[0].container.file_ids",
        ),
        (
            [{**AUTO, "container": {"type": "auto", "memory_limit": "64g"}}],
            "tools[0].container.memory_limit",
        ),
        ([{**AUTO, "colour": "red"}], "tools[0].colour"),
    ],
)
def test_create_when_the_tool_is_malformed_then_its_field_is_named(serve_code, tools, param):
    server, _ = serve_code("hello")
    answer = create(server, tools=tools)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_create_when_the_container_is_not_there_then_404(serve_code):
    server, _ = serve_code("hello")
    answer = create(server, tools=[{**AUTO, "container": "cntr_none"}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "tools.container")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "code_interpreter"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "code_interpreter"}]},
    ],
)
def test_create_when_code_is_required_then_only_once(serve_code, choice):
    server, script = serve_code(calls("print(1)"), "one")
    body = create(server, tool_choice=choice).json()
    assert texts(body) == ["one"]
    first, second = (request.grammar for request in server.engine.requests)
    assert '"calls": "required"' in first.text
    assert second is None or '"calls": "allowed"' in second.text
    assert script.results == ["1\n"]


@pytest.mark.slow
def test_tools_when_a_function_is_called_python_then_both_can_be_called(serve_code):
    mine = {"type": "function", "name": "python", "parameters": {"type": "object"}}
    server, script = serve_code(calls("print(1)", name="code_interpreter"), "one")
    body = create(server, tools=[AUTO, mine]).json()
    assert logs(code_items(body)[0]) == "1\n"
    assert script.results == ["1\n"]


def test_count_when_code_is_offered_then_the_tool_is_counted(serve_code):
    server, script = serve_code("hello")
    body = {"input": "hi", "tools": [AUTO]}
    count = server.post(PATH + "/input_tokens", body).json()["input_tokens"]
    create(server)
    assert count == len(script.generated[0][0])


# The openai package.


@pytest.mark.slow
def test_openai_package_when_code_runs_then_it_reads_all(serve_code):
    server, _ = serve_code("See:\n" + calls("print(17 * 23)", "1 / 0"), "The result is 391.")
    client = openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=0)
    fields = {"model": "ling-nano", "input": "17 * 23?", "tools": [AUTO], "include": OUTPUTS}
    whole = client.responses.create(**fields)
    kinds = [item.type for item in whole.output]
    assert kinds == ["message", "code_interpreter_call", "code_interpreter_call", "message"]
    assert whole.output[1].outputs[0].logs == "391\n"
    assert whole.output_text.endswith("The result is 391.")
    typed = {event.type for event in client.responses.create(**fields, stream=True)}
    assert len([kind for kind in typed if "code_interpreter_call" in kind]) == 5
    with client.responses.stream(**fields) as events:
        for _ in events:
            pass
        final = events.get_final_response()
    assert [item.type for item in final.output] == kinds
    assert final.output[2].outputs[0].logs.endswith("ZeroDivisionError: division by zero\n")
    given = [{"role": "user", "content": "17 * 23?"}, *final.output]
    again = client.responses.create(
        **{**fields, "input": [*given, {"role": "user", "content": "?"}]}
    )
    assert again.status == "completed"
    assert client.responses.retrieve(whole.id, include=OUTPUTS).output[1].outputs[0].logs == "391\n"


# Keys.


@pytest.mark.slow
def test_create_when_the_sandbox_server_has_keys_then_the_right_one_is_needed(serve_code):
    locked = SandboxServer("--warm=0", "--api-key=sesame")
    try:
        server, _ = serve_code(calls("print(1)"), "one", sandbox=locked.url, sandbox_key="sesame")
        assert create(server).json()["status"] == "completed"
        for key in ("wrong", None):
            server, _ = serve_code(calls("print(1)"), "one", sandbox=locked.url, sandbox_key=key)
            answer = create(server)
            assert answer.status_code == 502
            assert "--sandbox-key" in answer.json()["error"]["message"]
    finally:
        locked.close()


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"sandbox_key": "x"}, "sandbox_key"),
        ({"sandbox": "http://x", "code_timeout_s": 0}, "code_timeout_s"),
        ({"sandbox": "http://x", "sandbox_key": ""}, "sandbox_key"),
        ({"sandbox": "http://x", "max_containers_per_key": 0}, "max_containers_per_key"),
    ],
)
def test_config_when_it_makes_no_sense_then_refused(config, param):
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**config)
    assert caught.value.param == param


def test_server_when_the_sandboxs_url_is_none_then_refused():
    with pytest.raises(ConfigError, match="--sandbox is 'ftp://x'"):
        create_app(ScriptedEngine({}, engine_info()), ServerConfig(sandbox="ftp://x"))
