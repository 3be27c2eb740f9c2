"""Scorers beside the packages' own evaluations, and gold answers through the whole server.

Each needs the package's environment, which `make evals` or the test makes in the user's cache.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import httpx
import openai
import pytest

from api_support import RunningServer, engine_info
from evals_gold import damage, gold_calls
from evals_support import OddServer, answer, stream
from lingflash.api.config import ServerConfig
from lingflash.core.hub import bundled_folder
from lingflash.evals.endpoint import Asking
from lingflash.evals.environment import environment_python
from lingflash.evals.evaluation import Evaluation
from lingflash.evals.helper import Helper
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Reply
from lingflash.evals.tasks.aa_lcr import AaLcr
from lingflash.evals.tasks.bfcl import AST, CATEGORIES, MULTI_TURN, NO_CALL, Bfcl, package_result
from lingflash.evals.tasks.ifbench import IfBench
from lingflash.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TESTS = Path(__file__).parents[1]
# What no first value of the answer key satisfies, by bfcl-eval's own verdict: lists of mixed types
# in Java; keys without nested alternatives; required arguments that the key leaves out or has
# nothing for; names that are not those of the function.
NO_GOLD = {
    "simple_java_36", "simple_java_64", "simple_java_65", "parallel_multiple_26",
    "live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_507-149-4",
    "live_multiple_862-181-3", "live_multiple_964-207-0",
}  # fmt: skip
# Where a model's answers lie, the results of `ling eval bfcl`; their verdicts are compared, too.
RESULTS = os.environ.get("BFCL_RESULTS")


async def official(name, environment, argument):
    python = await environment_python(environment)
    done = subprocess.run(
        [str(python), str(TESTS / "evals_official.py"), name, argument],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {category: set(ids) for category, ids in json.loads(done.stdout).items()}


async def gold_results(bfcl):
    found = {}
    for item in bfcl.items():
        key = await bfcl.gold(item.id)
        found[item.id] = gold_calls(key["answer"], key["functions"], item.category)
    return found


async def compare(bfcl, results, path):
    """Ids that are wrong by our run and by bfcl-eval's own; the same for every item."""
    by_category = {}
    ours = {}
    for item in bfcl.items():
        if item.id not in results:
            continue
        result = results[item.id]
        by_category.setdefault(item.category, []).append({"id": item.id, "result": result})
        wrong = ours.setdefault(item.category, set())
        if not (await bfcl.score(item.id, result)).is_solved:
            wrong.add(item.id)
    path.write_text(json.dumps(by_category))
    assert ours == await official("bfcl", "bfcl", str(path))
    return set().union(*ours.values())


async def test_bfcl_when_answers_are_gold_and_damaged_gold_then_verdicts_are_the_packages_own(
    tmp_path,
):
    bfcl = Bfcl(AST)
    try:
        await bfcl.open()
        gold = await gold_results(bfcl)
        assert len(gold) == 2501
        assert await compare(bfcl, gold, tmp_path / "gold.json") == NO_GOLD
        damaged = {id: damage(calls, id) for id, calls in gold.items()}
        wrong = await compare(bfcl, damaged, tmp_path / "damaged.json")
        assert 1800 < len(wrong) < 2501
    finally:
        await bfcl.close()


@pytest.mark.skipif(RESULTS is None, reason="BFCL_RESULTS names no results of `ling eval bfcl`")
async def test_bfcl_when_answers_are_a_models_then_verdicts_are_the_packages_own(tmp_path):
    lines = [json.loads(line) for line in Path(RESULTS).read_text().splitlines()][1:]
    bfcl = Bfcl([*AST, *NO_CALL])
    try:
        await bfcl.open()
        answered = {line["id"]: line for line in lines if line["replies"]}
        results = {}
        for id, line in answered.items():
            [reply] = line["replies"] if line["category"] not in MULTI_TURN else [None]
            if reply is not None:
                calls = [{"function": f} for f in reply.get("tool_calls", ())]
                content = reply.get("content", "")
                results[id] = package_result(Reply(content=content, tool_calls=calls))
        wrong = await compare(bfcl, results, tmp_path / "model.json")
        assert wrong == {id for id in results if not answered[id]["solved"]}
    finally:
        await bfcl.close()


async def test_bfcl_when_no_call_is_wanted_then_text_is_right_and_calls_are_wrong(tmp_path):
    bfcl = Bfcl(NO_CALL)
    try:
        await bfcl.open()
        texts = {item.id: "I cannot do that." for item in bfcl.items()}
        wrong = await compare(bfcl, texts, tmp_path / "texts.json")
        assert all(id.startswith("live_relevance") for id in wrong)
        assert len(wrong) == 16
        calls = {item.id: [{"f": "{}"}] for item in bfcl.items()}
        assert len(await compare(bfcl, calls, tmp_path / "calls.json")) == 240 + 884
    finally:
        await bfcl.close()


class GoldServer(RunningServer):
    """The real server around an engine that says what it is told, with ling-nano's text."""

    def __init__(self):
        folder = bundled_folder()
        self.tokenizer = Tokenizer.from_folder(folder)
        self.text = ""
        info = engine_info(
            vocab_size=self.tokenizer.vocab_size,
            stop_token_ids=[self.tokenizer.token_id("<|role_end|>")],
            max_model_len=1 << 17,
        )
        config = ServerConfig(model_folder=folder, served_model_names=("gold",))
        super().__init__(self._script, config=config, info=info)

    def _script(self, request, choice):
        return self.tokenizer.encode(self.text)


def as_text(calls):
    """As the chat template has a model write them."""
    parts = []
    for call in calls:
        [(name, arguments)] = call.items()
        written = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
        parts.append(f"<tool_call>\n{written}\n</tool_call>")
    return "\n".join(parts)


def ask_sdk(client, messages, tools):
    """Through the SDK's stream: calls by name, arguments as text."""
    calls = {}
    with client.chat.completions.create(
        model="gold", messages=messages, tools=tools, stream=True
    ) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                for part in choice.delta.tool_calls or ():
                    call = calls.setdefault(part.index, ["", ""])
                    call[0] += part.function.name or ""
                    call[1] += part.function.arguments or ""
    return [{name: arguments} for _, (name, arguments) in sorted(calls.items())]


async def test_gold_when_it_goes_through_the_server_and_the_sdk_then_all_of_it_is_solved():
    """Text, parser, stream, SDK, scorer: nothing is lost on the way."""
    bfcl, server = Bfcl(AST), GoldServer()
    client = openai.OpenAI(
        base_url=f"{server.base_url}/v1", api_key="none", max_retries=0,
        http_client=httpx.Client(timeout=60),
    )  # fmt: skip
    lost, changed = set(), set()
    try:
        await bfcl.open()
        gold = await gold_results(bfcl)
        for item in bfcl.items():
            question = await bfcl._package.call("question", id=item.id)
            [turn] = question["turns"]
            server.text = as_text(gold[item.id])
            said = ask_sdk(client, turn["messages"], turn["tools"])
            if [{n: json.loads(a) for n, a in c.items()} for c in said] != [
                {n: json.loads(a) for n, a in c.items()} for c in gold[item.id]
            ]:
                changed.add(item.id)
            if not (await bfcl.score(item.id, said)).is_solved:
                lost.add(item.id)
    finally:
        client.close()
        server.stop()
        await bfcl.close()
    assert changed == set()
    assert lost == NO_GOLD


async def test_bfcl_when_several_turns_are_gold_then_they_are_solved_and_nothing_is_left_over():
    bfcl = Bfcl(MULTI_TURN)
    try:
        await bfcl.open()
        assert len(bfcl.items()) == 800
        wrong = []
        for item in bfcl.items()[::16]:
            key = await bfcl.gold(item.id)
            question = await bfcl._package.call("question", id=item.id)
            tools = [tool["function"] for tool in question["turns"][-1]["tools"]]
            names = {f["name"]: list(f["parameters"]["properties"]) for f in tools}
            turns = [[parsed(turn, names)] if turn else ["No."] for turn in key["answer"]]
            verdict = await bfcl.score(item.id, turns)
            wrong += [] if verdict.is_solved else [(item.id, verdict.why)]
        assert wrong == []
        bad = [[{"cd": '{"folder": "x"}'}]] * len(key["answer"])
        assert not (await bfcl.score(item.id, [bad] * len(key["answer"]))).is_solved
    finally:
        await bfcl.close()


def parsed(calls, names):
    """Python calls of the key as a model's: with the names of all arguments."""
    made = []
    for text in calls:
        call = ast.parse(text, mode="eval").body
        given = [*zip(names[call.func.id], call.args, strict=False)]
        given += [(keyword.arg, keyword.value) for keyword in call.keywords]
        values = {name: ast.literal_eval(value) for name, value in given}
        made.append({call.func.id: json.dumps(values)})
    return made


async def test_bfcl_when_a_model_writes_python_into_a_name_then_it_is_not_run(tmp_path):
    bfcl = Bfcl(["multi_turn_base"])
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').write('x')"
    try:
        await bfcl.open()
        for call in (
            {f"(lambda: {code})": "{}"},
            {"ls": json.dumps({f"a=True) or {code} or dict(b": 1})},
            {"open": json.dumps({"file": str(mark), "mode": "w"})},
        ):
            said = await bfcl._package.call("execute", id="multi_turn_base_0", calls=[call])
            assert "Error" in said[0]
            await bfcl.score("multi_turn_base_0", [[[call]]] * 4)
        said = await bfcl._package.call("execute", id="multi_turn_base_0", calls=[{"pwd": "{}"}])
        assert "current_working_directory" in said[0]
    finally:
        await bfcl.close()
    assert not mark.exists()


async def test_ifbench_when_answers_are_its_sample_then_verdicts_are_the_packages_own():
    ifbench = IfBench()
    strict, loose = set(), set()
    try:
        await ifbench.open()
        for item in ifbench.items():
            text = await ifbench._package.call("sample", key=item.id)
            verdict = await ifbench.score(item.id, text)
            if not verdict.is_solved:
                loose.add(item.id)
            if not verdict.scores["strict"]:
                strict.add(item.id)
    finally:
        await ifbench.close()
    assert await official("ifbench", "ifbench", "-") == {"strict": strict, "loose": loose}
    # The package has 294 of IFBench's 300 prompts: 25.2 strict, 28.9 loose.
    assert (294 - len(strict), 294 - len(loose)) == (74, 85)


async def test_multi_if_then_its_verifiers_are_those_of_ifeval():
    package = PackageProcess("ifbench")
    try:
        await package.start()
        names = ["length_constraints:number_words", "punctuation:no_comma"]
        values = [{"num_words": 4, "relation": "at least"}, {}]
        for text, wanted in (
            ("One two three four", [True, True]),
            ("One, two", [False, False]),
            ("Intro, gone\nOne two three four", [True, True]),
            ("", [False, False]),
        ):
            said = await package.call("follows", names=names, values=values, text=text)
            assert said == wanted, text
    finally:
        await package.stop()


async def test_aa_lcr_when_a_judge_compares_then_its_word_is_read_and_its_tokens_are_not_counted(
    tmp_path,
):
    def reply(body, number):
        text = body["messages"][0]["content"]
        if "Reply only with CORRECT or INCORRECT." in text:
            verdicts = {"one": "CORRECT", "two": "INCORRECT", "six": "Maybe"}
            answered = text.split("CANDIDATE ANSWER TO ASSESS: ")[1].split("\n")[0]
            return answer(stream(verdicts[answered]))
        assert len(text) > 50_000 or not body.get("stream")
        asked.append(text)
        return answer(stream(["one", "two", "six"][len(asked) % 3]))

    asked = []
    server = await OddServer(reply).start()
    judge = Helper(server.address, Asking(model="toy"), 8, is_tested=True)
    run = Evaluation(
        task=AaLcr(judge), address=server.address, asking=Asking(model="toy"), concurrency=2,
        limit=9, price=None, out=tmp_path / "out.jsonl", record=tmp_path / "r.json",
        allow_dirty=True,
    )  # fmt: skip
    assert await run.run()
    record = json.loads((tmp_path / "r.json").read_text())
    found = record["derived"]["all"]
    assert (found["items"], found["solved"], found["completion_tokens"]) == (9, 3, 36)
    assert record["derived"]["reasons"] == {"another answer": 3, "the judge said neither": 3}
    assert "judged by toy, the model itself" in record["notes"]


@pytest.mark.parametrize(
    ("gold", "text", "same"),
    [
        ("\\frac{1}{2}", "so \\boxed{0.5}", True),
        ("204", "Thus \\boxed{204}.", True),
        ("204", "\\boxed{205}", False),
        ("204", "204 or so", True),
        ("p - q", "\\boxed{p-q}", True),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", True),
        ("3", "\\boxed{", False),
        ("3", "", False),
        ("3", "\\boxed{\\frac{", False),
    ],
)  # fmt: skip
async def test_boxed_then_forms_of_the_same_answer_are_the_same(gold, text, same):
    package = PackageProcess("math")
    try:
        await package.start()
        assert await package.call("same", gold=gold, text=text) is same
    finally:
        await package.stop()


def test_categories_then_they_are_all_of_bfcl_but_those_left_out():
    assert len(CATEGORIES) == 17
