"""HumanEval: 164 functions to be completed, from OpenAI's package; run in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.evals.code import CodeRunner
from lingflash.evals.environment import locked_versions
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict

_TIMEOUT_S = 10.0
_PROMPT = """Complete this Python function. Answer with the whole function, imports included, in \
one block of code.

```python
{prompt}```"""
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


class HumanEval:
    """The benchmark."""

    name = "human-eval"
    needs_tools = False
    notes: Sequence[str] = (
        "one answer for each of the 164 functions, asked as a chat; run in a sandbox, "
        f"{_TIMEOUT_S:g} s each",
    )

    def __init__(self, code_runner: CodeRunner) -> None:
        self._runner = code_runner
        self._package = PackageProcess("human_eval")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task."""
        await self._runner.check()
        await self._package.start()
        problems = await self._package.call("load")
        self._items = [Item(problem["task_id"], self.name, problem) for problem in problems]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        return {"human-eval": locked_versions("human_eval")["human-eval"]}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        prompt = _PROMPT.format(prompt=item.data["prompt"])
        reply = await ask([{"role": "user", "content": prompt}])
        return await self.score(item, code_of(reply.content, item.data["entry_point"]))

    async def score(self, item: Item, completion: str) -> Verdict:
        """Whether a completion, or the whole function, passes the tests."""
        program = check_program(item.data, completion)
        ran = await self._runner.passes(program, _TIMEOUT_S)
        return Verdict(ran.code == 0, "" if ran.code == 0 else ran.why or f"exit code {ran.code}")


def code_of(text: str, name: str) -> str:
    """The last block of an answer that defines the function; else the last one, or all of it."""
    blocks = _BLOCK.findall(text)
    defining = [block for block in blocks if re.search(rf"^def {name}\b", block, re.MULTILINE)]
    return (defining or blocks or [text])[-1]


def check_program(problem: Mapping[str, Any], completion: str) -> str:
    """The prompt, what continues it or defines the function again, and the package's tests."""
    # A prompt that ends in its docstring is a whole function, which may be defined again below it.
    between = "" if completion.startswith((" ", "\t")) else "\n"
    tests = f"{problem['test']}\ncheck({problem['entry_point']})"
    return f"{problem['prompt']}{between}{completion}\n{tests}"
