"""A model beside the one under test: it judges answers, or plays the user of a conversation.

Its tokens are nobody's: only those of the model under test are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lingflash.evals.endpoint import Asking, Endpoint, Trace
from lingflash.evals.task import Message, Reply
from lingflash.link.http_client import Address


class Helper:
    """Who helps.

    Args:
        asking: how it is asked; as the model under test is, if that is its own helper.
        is_tested: it is the model under test itself.
    """

    def __init__(
        self, address: Address, asking: Asking, concurrency: int, *, is_tested: bool
    ) -> None:
        self.name = f"{asking.model}, the model itself" if is_tested else asking.model
        self.is_tested = is_tested
        self._address, self._asking, self._concurrency = address, asking, concurrency
        self._endpoint: Endpoint | None = None

    async def open(self, *, needs_tools: bool = False) -> None:
        """Find out whether it answers. See Endpoint.check for what it raises."""
        self._endpoint = Endpoint(self._address, self._asking, self._concurrency)
        await self._endpoint.check(needs_tools=needs_tools)

    async def ask(
        self, messages: Sequence[Message], *, tools: Sequence[Any] = (), **fields: Any
    ) -> Reply:
        """See Ask. Endpoint.ask says what it raises."""
        assert self._endpoint is not None
        return await self._endpoint.ask(Trace(), messages, tools, fields)
