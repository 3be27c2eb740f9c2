"""Evaluations against servers that are busy, failing, cut off, dead, or not what was asked for."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from evals_support import OddServer, answer, error, stream, write_choices
from lingflash.cli import report_errors
from lingflash.core.errors import AuthenticationError, ConfigError, EngineError, LingflashError
from lingflash.evals import endpoint as endpoint_module
from lingflash.evals.endpoint import Asking, Endpoint, Trace
from lingflash.evals.evaluation import Evaluation
from lingflash.evals.index import MISSING, print_index
from lingflash.evals.results import ResultsFile
from lingflash.evals.summary import Summary
from lingflash.evals.task import Item, take_evenly
from lingflash.evals.tasks.files import FileTask


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses between attempts are short."""
    sleep = asyncio.sleep
    monkeypatch.setattr(endpoint_module.asyncio, "sleep", lambda s: sleep(min(s, 0.02)))


def evaluation(tmp_path, server, count=12, **changes):
    fields = {
        "task": FileTask(write_choices(tmp_path / "q.jsonl", count), "choice"),
        "address": server.address,
        "asking": Asking(model="toy", patience_s=5.0),
        "concurrency": 4,
        "limit": None,
        "price": None,
        "out": tmp_path / "out.jsonl",
        "record": tmp_path / "record.json",
        "allow_dirty": True,
    }
    return Evaluation(**{**fields, **changes})


def right(body, number):
    """The right letter of each question."""
    asked = int(re.search(r"Question (\d+)", body["messages"][0]["content"] + "Question 0")[1])
    return answer(stream(f"Well. Answer: {'AB'[asked % 2]}"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain(path):
    """A file without what differs from run to run."""
    return [{k: v for k, v in line.items() if k != "run"} for line in lines(path)]


async def test_run_when_all_is_well_then_score_tokens_and_record(tmp_path):
    server = await OddServer(right).start()
    assert await evaluation(tmp_path, server).run()
    record = json.loads((tmp_path / "record.json").read_text())
    found = record["derived"]["all"]
    assert (found["items"], found["solved"], found["score"]) == (12, 12, 100.0)
    assert found["completion_tokens"] == 48
    assert found["cached_tokens"] == 72
    assert found["reasoning_tokens"] == 12
    assert found["completion_tokens_per_solved"] == 4.0
    assert len(record["derived"]["samples"]) == 12
    assert [line["id"] for line in lines(tmp_path / "out.jsonl")[1:]] == [
        f"q{i}" for i in range(12)
    ]
    assert server.most_in_flight <= 4


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("429", error(429, "slow down", Retry_After="0")),
        ("503", error(503, "loading")),
        ("500", error(500, "oh")),
        ("cut stream", answer(stream("Answer: A", end=None))),
        ("cut stream", answer(stream("Answer: A", end="error"))),
        ("cut stream", answer(b'data: {"error": {"message": "oh"}}\n\n')),
        ("cut stream", answer(b"{}", content_type="application/json")),
        ("cut stream", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"),
        ("cut stream", b"garbage\r\n\r\n"),
    ],
)  # fmt: skip
async def test_run_when_every_third_attempt_fails_then_all_are_solved_and_it_is_counted(
    tmp_path, kind, bad
):
    server = await OddServer(
        lambda body, n: bad if n % 3 == 0 and body.get("stream") else right(body, n)
    ).start()
    assert await evaluation(tmp_path, server).run()
    derived = json.loads((tmp_path / "record.json").read_text())["derived"]
    assert derived["all"]["solved"] == 12
    assert derived["failures"].keys() == {kind}
    in_lines = sum(len(x["run"].get("failures", ())) for x in lines(tmp_path / "out.jsonl")[1:])
    assert derived["failures"][kind] == in_lines > 3


async def test_run_when_one_item_fails_for_ever_then_the_rest_is_there_and_the_next_run_asks_it(
    tmp_path, capsys
):
    def reply(body, number):
        bad = body.get("stream") and "Question 7?" in body["messages"][0]["content"]
        return error(500, "oh") if bad else right(body, number)

    server = await OddServer(reply).start()
    assert not await evaluation(tmp_path, server).run()
    assert "PARTIAL: 1 of 12" in capsys.readouterr().out
    server.reply = right
    num_asked = len(server.asked)
    assert await evaluation(tmp_path, server).run()
    assert len([b for b in server.asked[num_asked:] if b.get("stream")]) == 1
    assert [line["id"] for line in lines(tmp_path / "out.jsonl")[1:]] == [
        f"q{i}" for i in range(12)
    ]


async def test_run_when_an_item_is_refused_then_it_counts_as_not_solved(tmp_path):
    def reply(body, number):
        long = body.get("stream") and "Question 3?" in body["messages"][0]["content"]
        return error(400, "The prompt is too long.") if long else right(body, number)

    server = await OddServer(reply).start()
    assert await evaluation(tmp_path, server).run()
    line = next(x for x in lines(tmp_path / "out.jsonl") if x.get("id") == "q3")
    assert line["why"] == "refused: 400: The prompt is too long."
    assert not line["solved"]


async def test_run_when_the_server_dies_and_comes_back_then_it_goes_on(tmp_path):
    server = await OddServer(right).start()
    server.delay_s = 0.01
    running = asyncio.create_task(evaluation(tmp_path, server, 60).run())
    while len(server.asked) < 20:
        await asyncio.sleep(0.005)
    await server.stop()
    while not running.done() and server.in_flight:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    await server.start()
    assert await running
    derived = json.loads((tmp_path / "record.json").read_text())["derived"]
    assert derived["all"]["solved"] == 60
    assert derived["failures"]["no connection"] > 0


async def test_run_when_the_server_stays_dead_then_one_line_and_the_answers_are_kept(tmp_path):
    server = await OddServer(right).start()
    server.delay_s = 0.01
    asking = Asking(model="toy", patience_s=0.3)
    running = asyncio.create_task(evaluation(tmp_path, server, 60, asking=asking).run())
    while len(server.asked) < 20:
        await asyncio.sleep(0.005)
    await server.stop()
    with pytest.raises(EngineError, match="has given no answer for"):
        await running
    kept = len(lines(tmp_path / "out.jsonl"))
    assert 10 < kept < 60
    await server.start()
    assert await evaluation(tmp_path, server, 60).run()
    assert len(lines(tmp_path / "out.jsonl")) == 61


async def test_run_when_the_server_says_429_then_fewer_are_in_flight_and_later_more(tmp_path):
    def reply(body, number):
        busy = server.in_flight > 2 and body.get("stream")
        return error(429, "busy") if busy else right(body, number)

    server = OddServer(reply)
    server.delay_s = 0.003
    await server.start()
    endpoint_run = evaluation(tmp_path, server, 80, concurrency=16)
    assert await endpoint_run.run()
    settings = json.loads((tmp_path / "record.json").read_text())["settings"]
    assert settings["least_concurrency"] <= 2
    assert len(lines(tmp_path / "out.jsonl")) == 81


async def test_run_when_usage_is_missing_then_it_is_unmetered(tmp_path, capsys):
    server = await OddServer(lambda body, n: answer(stream("Answer: A", usage=None))).start()
    assert await evaluation(tmp_path, server).run()
    found = json.loads((tmp_path / "record.json").read_text())["derived"]["all"]
    assert found["metered"] is False
    assert "completion_tokens" not in found
    assert "unmetered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "listed", "kind", "words"),
    [
        (lambda b, n: error(401, "no"), ("toy",), AuthenticationError, "--api-key"),
        (right, ("other", "more"), ConfigError, "--model is 'toy'; the server has: other, more"),
        (lambda b, n: error(404, "no such model"), ("toy",), ConfigError, "--base-url and --model"),
        (
            lambda b, n: error(400, "no tools here") if "tools" in b else right(b, n),
            ("toy",), ConfigError, "the server takes none: .*no tools here",
        ),
        (
            lambda b, n: error(400, "temperature must be 1"), ("toy",),
            ConfigError, "refuses .400.: temperature must be 1",
        ),
    ],
)  # fmt: skip
async def test_check_when_the_server_is_not_what_is_needed_then_one_line_before_any_item(
    tmp_path, reply, listed, kind, words
):
    server = await OddServer(reply, listed).start()
    asked = evaluation(tmp_path, server)
    asked.task.needs_tools = True
    with pytest.raises(kind, match=words) as caught:
        await asked.run()
    assert "\n" not in caught.value.message
    assert not any(body.get("stream") for body in server.asked)
    assert not (tmp_path / "out.jsonl").exists()


async def test_check_when_nothing_answers_then_it_says_where(tmp_path):
    server = await OddServer(right).start()
    await server.stop()
    with pytest.raises(LingflashError, match="No server answers at http://127"):
        await evaluation(tmp_path, server).run()


async def test_check_when_it_is_no_such_server_then_it_says_so(tmp_path):
    server = await OddServer(right).start()
    server.listed = ()
    with pytest.raises(ConfigError, match="--model is 'toy'"):
        await Endpoint(server.address, Asking(model="toy"), 1).check(needs_tools=False)


def test_results_when_a_line_was_cut_then_it_goes_and_the_rest_stays(tmp_path):
    path = tmp_path / "r.jsonl"
    results = ResultsFile(path, {"task": "t"})
    results.add({"id": "a", "x": "é\ud800"})
    results.close()
    whole = path.read_bytes()
    for size in range(1, 20):
        path.write_bytes(whole + b'{"id": "b", "solved": true'[:size])
        results = ResultsFile(path, {"task": "t"})
        assert "a" in results
        assert "b" not in results
        results.close()
        assert path.read_bytes() == whole


_NUMBERED = '{"lingflash_eval": 1, "task": "t"}\n{"id": 1}\n'


@pytest.mark.parametrize(
    "text", ["hello\n", "[1]\n", '{"a": 1}\n', "\x00\xff\n", "[" * 100_000 + "\n", _NUMBERED]
)
def test_results_when_the_file_is_something_else_then_it_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "r.jsonl"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="no file of `ling eval`"):
        ResultsFile(path, {"task": "t"})
    assert path.read_text(encoding="latin-1") == text


async def test_ask_when_a_task_has_a_longest_answer_then_the_flag_is_stronger():
    server = await OddServer(right).start()
    for flag, sent in ((None, 5), (7, 7)):
        endpoint = Endpoint(server.address, Asking(model="toy", max_tokens=flag), 1)
        await endpoint.ask(Trace(), [{"role": "user", "content": "x"}], (), {"max_tokens": 5})
        assert server.asked[-1]["max_tokens"] == sent


def test_results_when_another_run_made_the_file_then_it_says_what_differs(tmp_path):
    path = tmp_path / "r.jsonl"
    ResultsFile(path, {"task": "t", "model": "a"}).close()
    with pytest.raises(ConfigError, match="model 'a' and now 'b'"):
        ResultsFile(path, {"task": "t", "model": "b"})


def test_results_when_two_runs_write_then_the_second_is_refused(tmp_path):
    first = ResultsFile(tmp_path / "r.jsonl", {})
    with pytest.raises(ConfigError, match="another run is writing"):
        ResultsFile(tmp_path / "r.jsonl", {})
    first.close()


def test_take_evenly_when_limited_then_categories_share_it_in_the_tasks_order():
    items = [Item(f"{c}{i}", c) for c, n in (("a", 10), ("b", 2), ("c", 5)) for i in range(n)]
    assert [i.id for i in take_evenly(items, 8)] == ["a0", "a1", "a2", "b0", "b1", "c0", "c1", "c2"]
    assert take_evenly(items, None) == items
    assert [i.id for i in take_evenly(items, 1)] == ["a0"]


def summary_line(solved, completion, category="c"):
    tokens = {"prompt": 100, "completion": completion, "reasoning": 0}
    return {
        "id": "x", "category": category, "solved": solved, "tokens": tokens, "run": {"cached": 50},
    }  # fmt: skip


def test_summary_then_failures_count_among_the_tokens_of_a_solved_task():
    given = [summary_line(True, 10), summary_line(False, 90), summary_line(True, 20)]
    found = Summary.of(given).whole.as_dict()
    assert found["completion_tokens_per_solved"] == 60.0
    assert found["score"] == 66.67
    low, high = found["completion_tokens_per_solved_interval"]
    assert 10 <= low < 60 < high


def test_summary_then_its_intervals_hold_the_truth_as_often_as_they_say():
    generator, held = random.Random(1), 0
    for _ in range(100):
        given = [summary_line(generator.random() < 0.3, 1) for _ in range(100)]
        low, high = Summary.of(given).whole.as_dict()["score_interval"]
        held += low <= 30 <= high
    assert 88 <= held <= 100


def test_summary_when_nothing_is_solved_then_there_is_no_quotient():
    found = Summary.of([summary_line(False, 5)]).whole.as_dict()
    assert found["completion_tokens_per_solved"] is None
    assert found["completion_tokens_per_solved_interval"] is None


SERVER = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from evals_support import OddServer
from test_runner import right
async def main():
    server = OddServer(right)
    server.delay_s = 0.01
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()
sys.path.insert(0, {here!r})
asyncio.run(main())
"""


def test_command_when_it_is_killed_again_and_again_then_the_file_is_as_without(tmp_path, request):
    here = str(request.path.parent)
    code = SERVER.format(tests=str(request.path.parents[1]), here=here).replace(
        "from test_runner", f"sys.path.insert(0, {here!r})\nfrom test_runner"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        questions = write_choices(tmp_path / "q.jsonl", 150)
        command = [
            *(sys.executable, "-c", "from lingflash.cli import main; main()", "eval", "file"),
            *(str(questions), "--kind", "choice", "--base-url", url, "--model", "toy"),
            *("--concurrency", "2", "--out"),
        ]
        subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
        broken = tmp_path / "broken"
        for wanted in (3, 40, 90):
            killed = subprocess.Popen(
                [*command, str(broken)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 60
            while not broken.exists() or broken.read_bytes().count(b"\n") < wanted:
                assert time.monotonic() < deadline
                assert killed.poll() is None
                time.sleep(0.002)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        assert broken.read_bytes().count(b"\n") < 151
        subprocess.run([*command, str(broken)], check=True, capture_output=True)
        assert plain(broken) == plain(tmp_path / "whole")
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bfcl", "--model", "x", "--base-url", "ftp://x"], "--base-url is 'ftp://x'"),
        (["bfcl"], "--model is missing"),
        (["bfcl", "--model", "x", "--price", "1", "-1", "1"], "--price is"),
        (["aa-lcr", "--model", "x", "--judge-url", "x"], "--judge-url is 'x'"),
        (["nothing", "--model", "x"], "TASK is 'nothing'; allowed: bfcl"),
        (["CCAlignBench", "--model", "x"], "no public source"),
        (["bfcl", "--model", "x", "--category", "memory"], "memory needs an embedding model"),
        (["bfcl", "--model", "x", "--category", "odd"], "--category is odd; allowed: simple"),
        (["ifbench", "--model", "x", "--category", "a"], "only: bfcl, tau2, ruler"),
        (["tau2", "--model", "x", "--category", "bank"], "--category is bank; allowed: airline"),
        (["tau2", "--model", "x", "--user-url", "x"], "--user-url is 'x'"),
        (["bfcl", "--model", "x", "--user-model", "y"], "--user-model was given, and bfcl"),
        (["ifbench", "--model", "x", "--judge-model", "y"], "--judge-model was given, and ifbench"),
        (["bfcl", "--model", "x", "--length", "9000"], "--length was given, and bfcl takes none"),
        (["ruler", "--model", "x"], "--tokenizer is missing"),
        (["ruler", "--model", "x", "--tokenizer", "/nowhere"], "--tokenizer is /nowhere"),
        (["ruler", "--model", "x", "--length", "99"], "--length is 99; allowed: 4000 or more"),
        (["ruler", "--model", "x", "--category", "vx"], "--category is vx; allowed: niah_single"),
        (["file", "--model", "x"], "--kind is None; allowed: choice"),
        (["file", "--model", "x", "--kind", "choice"], "FILE is missing"),
        (["file", "/nowhere", "--model", "x", "--kind", "choice"], "FILE is /nowhere; it cannot"),
    ],
)  # fmt: skip
def test_command_when_something_is_wrong_then_one_line_says_what(words, said, capsys):
    from lingflash.cli import _run

    assert report_errors(lambda: _run(["eval", *words])) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_index_then_each_part_is_printed_and_the_missing_ones_are_named(capsys):
    group = Summary.of([summary_line(True, 10), summary_line(False, 30)]).whole
    print_index("toy", {"IFBench": group})
    said = capsys.readouterr().out
    assert re.search(r"IFBench .*50\.0 .* 40 .* 40\.0", said)
    assert all(f"missing: {part}: " in said for part in MISSING)
    assert "missing: AA-LCR" not in said
    assert "not computed" in said


def test_index_when_one_file_is_named_for_all_parts_then_it_is_refused(capsys):
    from lingflash.cli import _run

    assert report_errors(lambda: _run(["eval", "index", "--model", "x", "--out", "f"])) == 2
    assert "--out is not for index" in capsys.readouterr().err
