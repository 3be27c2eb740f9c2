"""Programs of a model in a real sandbox: right ones pass, bad ones are contained and wrong."""

from __future__ import annotations

import asyncio
import json

import pytest

from lingflash.core.errors import AuthenticationError, LingflashError
from lingflash.evals.code import CodeRunner
from lingflash.evals.tasks.files import FileTask
from lingflash.evals.tasks.human_eval import HumanEval
from sandbox_support import SandboxServer, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KEY = "e2b_eval"
# Each is an answer to the first problem.
BAD = {
    "endless loop": "    while True: pass\n",
    "fork bomb": "    import os\n    while True: os.fork()\n",
    "memory eater": "    x = []\n    while True: x.append(bytearray(10**7))\n",
    "file eater": (
        "    import os, shutil\n"
        "    for place in ('/', '/home', '/tmp', os.getcwd(), '/usr'):\n"
        "        shutil.rmtree(place, ignore_errors=True)\n"
        "    open('/tmp/full', 'wb').write(b'x' * 10**9)\n"
    ),
    "early exit": "    import os\n    os._exit(0)\n",
    "early end": "    raise SystemExit(0)\n",
    "output": "    while True: print('x' * 10**6)\n",
    "wrong": "    return None\n",
    "no Python": "    return (\n",
}


@pytest.fixture(scope="module")
def server():
    running = SandboxServer("--warm=0", f"--api-key={KEY}")
    yield running
    running.close()


@pytest.fixture
def runner(server):
    return CodeRunner(server.url, KEY)


async def test_human_eval_when_answers_are_the_references_then_all_164_pass(runner, server):
    task = HumanEval(runner)
    try:
        await task.open()
        assert len(task.items()) == 164
        gate = asyncio.Semaphore(4)

        async def solved(item):
            async with gate:
                return item.id, await task.score(item, item.data["canonical_solution"])

        found = dict(await asyncio.gather(*map(solved, task.items())))
        assert {id: v.why for id, v in found.items() if not v.is_solved} == {}
        first = task.items()[0]
        for name, answer in BAD.items():
            verdict = await task.score(first, answer)
            assert not verdict.is_solved, name
            assert verdict.why, name
        # A whole function instead of what continues it, as chat models answer.
        whole = f"{first.data['prompt']}{first.data['canonical_solution']}"
        assert (await task.score(first, whole)).is_solved
    finally:
        await task.close()
    wait_for(lambda: not any("-I" in p.cmdline() for p in server.ours()), "all programs are gone")


async def test_code_file_when_a_program_reads_and_prints_then_it_is_judged_by_its_tests(
    runner, tmp_path
):
    tests = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -4", "output": "6"}]
    functional = [{"input": "1", "output": "1", "testtype": "functional"}]
    path = tmp_path / "f.jsonl"
    rows = [{"question": "Add.", "tests": tests}, {"question": "Call.", "tests": functional}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = FileTask(path, "code", runner)
    assert len(task.items()) == 1
    assert "1 items call a function: left out" in task.notes
    for text, solved in (
        ("```python\nprint(sum(map(int, input().split())))\n```", True),
        ("```python\nprint(5)\n```", False),
        ("```python\nraise ValueError\n```", False),
        ("print(5)", False),
    ):
        assert (await task.judge_code(tests, text)).is_solved is solved, text


async def test_runner_when_the_key_or_the_server_is_wrong_then_one_line(server):
    with pytest.raises(AuthenticationError, match="--sandbox-key"):
        await CodeRunner(server.url, "e2b_other").check()
    with pytest.raises(LingflashError, match="No sandbox server answers"):
        await CodeRunner("http://127.0.0.1:1", KEY).check()
