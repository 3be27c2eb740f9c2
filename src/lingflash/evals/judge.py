"""A model that judges answers, where a benchmark has no program for it; its tokens are nobody's."""

from __future__ import annotations

from collections.abc import Sequence

from lingflash.evals.endpoint import Asking, Endpoint, Trace
from lingflash.evals.task import Message
from lingflash.link.http_client import Address

_CONCURRENCY = 8


class Judge:
    """Who judges.

    Args:
        is_judged: it is the model under test itself.
    """

    def __init__(self, address: Address, model: str, *, is_judged: bool) -> None:
        self._address, self._model = address, model
        self.name = f"{model}, the model itself" if is_judged else model
        self._endpoint: Endpoint | None = None

    async def open(self) -> None:
        """Find out whether it answers. See Endpoint.check for what it raises."""
        asking = Asking(model=self._model, temperature=0.0)
        self._endpoint = Endpoint(self._address, asking, _CONCURRENCY)
        await self._endpoint.check(needs_tools=False)

    async def ask(self, messages: Sequence[Message]) -> str:
        """What it says. See Endpoint.ask for what it raises."""
        assert self._endpoint is not None
        return (await self._endpoint.ask(Trace(), messages, (), {})).content
