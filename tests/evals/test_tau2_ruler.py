"""tau2-bench and RULER: their packages' gold answers, and runs against a server told what to say.

Each needs the package's environment, which `make evals` or the test makes in the user's cache.
"""

from __future__ import annotations

import json

import pytest

from evals_support import OddServer, answer, stream
from lingflash.core.hub import bundled_folder
from lingflash.evals.endpoint import Asking
from lingflash.evals.evaluation import Evaluation
from lingflash.evals.helper import Helper
from lingflash.evals.tasks.ruler import Ruler
from lingflash.evals.tasks.tau2 import DOMAINS, Tau2
from lingflash.link.http_client import Address
from lingflash.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Silent(Helper):
    """A user who is never asked: the test brings its words."""

    def __init__(self):
        super().__init__(Address("127.0.0.1", 1), Asking(model="x"), 1, is_tested=False)

    async def open(self, *, needs_tools=False):
        pass


def run_of(task, server, tmp_path, limit):
    return Evaluation(
        task=task, address=server.address, asking=Asking(model="toy"), concurrency=2,
        limit=limit, price=None, out=tmp_path / "out.jsonl", record=tmp_path / "r.json",
        allow_dirty=True,
    )  # fmt: skip


def says(content="", *calls):
    return {
        "content": content,
        "tool_calls": [
            {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ],
        "finish_reason": "stop",
    }


async def play(tau2, item, *, is_gold):
    """A conversation in which both sides do what they should, or nothing."""
    talk = {"domain": item.category, "id": item.data}
    gold = await tau2._package.call("gold", **talk)
    todo = list(gold["calls"]) if is_gold else []
    said = await tau2._package.call("begin", **talk)
    is_told = False
    while "end" not in said:
        who = "user" if said["who"] == "user" else "assistant"
        if todo and todo[0][0] == who:
            _, name, arguments = todo.pop(0)
            words = says("", (name, json.dumps(arguments)))
        elif todo:
            words = says("Go on.")
        elif who == "assistant":
            words, is_told = says("Done. " + " ".join(gold["say"])), True
        else:
            words = says("###STOP###" if is_told or not is_gold else "And?")
        said = await tau2._package.call("go_on", **talk, answer=words)
    return said["end"]


async def test_tau2_when_both_sides_do_what_they_should_then_the_package_rewards_it():
    tau2 = Tau2(Silent())
    try:
        await tau2.open()
        items = tau2.items()
        assert [sum(i.category == d for i in items) for d in DOMAINS] == [50, 114, 114]
        sample, idle = items[::60], []
        for item in sample:
            assert (await play(tau2, item, is_gold=True))["reward"] == 1, item.id
            idle.append((await play(tau2, item, is_gold=False))["reward"])
        # In a few tasks there is nothing to be done.
        assert sum(idle) < len(sample) / 2
    finally:
        await tau2.close()


async def test_tau2_when_a_model_writes_what_never_ends_or_cannot_be_read_then_not_solved():
    tau2 = Tau2(Silent(), ["airline"])
    talk = {"domain": "airline", "id": "0"}
    try:
        await tau2.open()
        await tau2._package.call("begin", **talk)
        await tau2._package.call("go_on", **talk, answer=says("Hello."))
        power = ("calculate", '{"expression": "9**9**9**9"}')
        said = await tau2._package.call("go_on", **talk, answer=says("", power))
        assert said["messages"][-1]["role"] == "tool"
        assert "Invalid characters" in said["messages"][-1]["content"]
        said = await tau2._package.call("go_on", **talk, answer=says("", ("calculate", "{")))
        assert said["end"]["reward"] == 0
        assert said["end"]["why"].startswith("error: JSONDecodeError")
    finally:
        await tau2.close()


async def test_tau2_when_the_model_is_its_own_user_then_only_the_agents_tokens_count(tmp_path):
    def reply(body, number):
        if body.get("max_tokens") == 1:
            return answer(stream("probe"))
        is_user = "<scenario>" in body["messages"][0]["content"]
        asked.append(("user" if is_user else "agent", body))
        if not is_user:
            return answer(stream("How can I help?"))
        turns = sum(m["role"] == "assistant" for m in body["messages"])
        return answer(stream("###STOP###" if turns else "I want to fly."))

    asked = []
    server = await OddServer(reply).start()
    user = Helper(server.address, Asking(model="toy"), 2, is_tested=True)
    assert await run_of(Tau2(user), server, tmp_path, 3).run()
    record = json.loads((tmp_path / "r.json").read_text())
    assert [who for who, _ in asked].count("agent") == 3
    assert [who for who, _ in asked].count("user") == 6
    assert record["derived"]["all"]["completion_tokens"] == 3 * 4
    assert set(record["derived"]["categories"]) == set(DOMAINS)
    assert "toy, the model itself" in record["notes"][0]
    assert record["settings"]["versions"]["user"] == "toy, the model itself"
    for _, body in asked:
        for message in body["messages"]:
            assert all(value is not None for key, value in message.items() if key != "content")


async def test_ruler_then_prompts_have_their_length_and_gold_answers_are_right(tmp_path):
    tokenizer = Tokenizer.from_folder(bundled_folder())
    ruler = Ruler(4000, "ling-nano", ["fwe", "qa_1"])
    try:
        await ruler.open()
        assert len(ruler.items()) == 2 * 500
        for task, index in (("fwe", 0), ("fwe", 19), ("qa_1", 7)):
            place = {"task": task, "index": index}
            prompt = await ruler._package.call("prompt", **place)
            length = len(tokenizer.encode(prompt["text"])) + prompt["max_tokens"]
            assert 2000 < length <= 4000 + prompt["max_tokens"]
            wanted = await ruler._package.call("answer", **place)
            score = await ruler._package.call("score", **place, text=" ".join(wanted).upper())
            assert score == 1
            assert await ruler._package.call("score", **place, text="no idea") == 0
        half = await ruler._package.call("answer", task="fwe", index=0)
        score = await ruler._package.call("score", task="fwe", index=0, text=half[0])
        assert score == pytest.approx(1 / 3)
    finally:
        await ruler.close()


async def test_ruler_when_it_is_asked_then_each_task_has_its_longest_answer(tmp_path):
    server = await OddServer(lambda body, number: answer(stream("no idea"))).start()
    run = run_of(Ruler(4000, "ling-nano", ["fwe"]), server, tmp_path, 3)
    assert await run.run()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["settings"]["task"] == "ruler-4000"
    assert record["derived"]["all"]["ruler"] == 0.0
    assert {body["max_tokens"] for body in server.asked[1:]} == {50}
    assert any(note.startswith("left out: niah_single_1, ") for note in record["notes"])
