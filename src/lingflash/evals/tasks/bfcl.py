"""BFCL-V4, with the data, simulators and scorers of the bfcl-eval package.

What each category asks and how it is judged is the package's own code, in an environment of its
own; what is ours is who asks. Web search needs the internet and memory an embedding model, so those
categories are left out, and with them the benchmark's total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lingflash.core.errors import ConfigError
from lingflash.evals.environment import locked_versions
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Reply, Verdict

AST = (
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel",
    "parallel_multiple", "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
)  # fmt: skip
NO_CALL = ("irrelevance", "live_irrelevance", "live_relevance")
MULTI_TURN = (
    "multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context",
)  # fmt: skip
CATEGORIES = (*AST, *NO_CALL, *MULTI_TURN)
LEFT_OUT = {
    "web_search": "needs the internet",
    "memory": "needs an embedding model",
    "format_sensitivity": "is about prompts without tools, and scores nothing",
}


class Bfcl:
    """The benchmark.

    Args:
        categories: of CATEGORIES; all if none.

    Raises:
        ConfigError: one is not known, or left out.
    """

    name = "bfcl"
    needs_tools = True

    def __init__(self, categories: Sequence[str] = ()) -> None:
        for category in categories:
            if category not in CATEGORIES:
                why = LEFT_OUT.get(category)
                said = f"{category} {why}; it is left out" if why else f"--category is {category}"
                raise ConfigError(f"{said}; allowed: {', '.join(CATEGORIES)}.", param="category")
        self._categories = [c for c in CATEGORIES if c in (categories or CATEGORIES)]
        missing = [*LEFT_OUT, *(c for c in CATEGORIES if c not in self._categories)]
        self.notes: Sequence[str] = (
            f"BFCL's total is not computed, because categories are left out: {', '.join(missing)}",
        )
        self._package = PackageProcess("bfcl")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task."""
        await self._package.start()
        found = await self._package.call("load", categories=self._categories)
        self._items = [Item(id, category) for category, ids in found.items() for id in ids]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        return {"bfcl-eval": locked_versions("bfcl")["bfcl-eval"]}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        question = await self._package.call("question", id=item.id)
        if item.category in MULTI_TURN:
            result: Any = await self._converse(item, question, ask)
        else:
            [turn] = question["turns"]
            result = package_result(await ask(turn["messages"], tools=turn["tools"]))
        return await self.score(item.id, result)

    async def score(self, item_id: str, result: Any) -> Verdict:
        """The package's verdict on a result in its own form."""
        said = await self._package.call("score", id=item_id, result=result)
        return Verdict(said["valid"], "" if said["valid"] else said["error_type"] or "wrong")

    async def gold(self, item_id: str) -> dict[str, Any]:
        """The answer key, and the functions by the names that a model is told."""
        return await self._package.call("gold", id=item_id)

    async def _converse(self, item: Item, question: Mapping[str, Any], ask: Ask) -> list[list[Any]]:
        """Each turn's steps, in the package's form, as its own loop makes them."""
        messages: list[Mapping[str, Any]] = []
        result: list[list[Any]] = []
        for turn in question["turns"]:
            messages += turn["messages"]
            steps: list[Any] = []
            result.append(steps)
            while True:
                reply = await ask(messages, tools=turn["tools"])
                messages.append(reply.as_message())
                steps.append(package_result(reply))
                said = await self._package.call("execute", id=item.id, calls=steps[-1])
                if said is None:
                    break
                messages += [
                    {"role": "tool", "tool_call_id": call["id"], "content": text}
                    for call, text in zip(reply.tool_calls, said, strict=False)
                ]
                # A model that goes on for ever has lost: its turns are fewer than the right ones.
                if len(steps) > question["max_steps"]:
                    return result
        return result


def package_result(reply: Reply) -> Any:
    """An answer as bfcl-eval writes it down: calls by name, arguments as text; else the content."""
    functions = [call["function"] for call in reply.tool_calls]
    return [{f["name"]: f["arguments"]} for f in functions] or reply.content
