"""Compiles grammars beside the loop, so that a large one stops no other request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lingflash.core.errors import InvalidRequestError, LingflashError, QueueFullError
from lingflash.core.types import EngineRequest, TokenEvent
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.masks import TokenMatcher


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request whose grammar has been dealt with.

    Args:
        outcome: the matcher, or why there is none.
    """

    request: EngineRequest
    outcome: TokenMatcher | LingflashError

    def result(self) -> TokenMatcher:
        """The matcher.

        Raises:
            LingflashError: there is none.
        """
        if isinstance(self.outcome, LingflashError):
            raise self.outcome
        return self.outcome


class GrammarThread:
    """Compiles requests' grammars in a thread of its own; all methods belong to the engine's loop.

    Args:
        deliver: called in the thread with each result.
        max_waiting: requests that may wait to be compiled.
    """

    def __init__(
        self, grammars: GrammarCompiler, deliver: Callable[[Compiled], None], max_waiting: int
    ) -> None:
        self._grammars = grammars
        self._deliver = deliver
        self._max_waiting = max(max_waiting, 1)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._pending: dict[str, EngineRequest] = {}

    def submit(self, request: EngineRequest) -> None:
        """Compile this request's grammar; the result is delivered later.

        Raises:
            InvalidRequestError: its id is in use.
            QueueFullError: too many wait already.
        """
        if request.request_id in self._pending:
            raise InvalidRequestError(
                f"Request id {request.request_id!r} is already running.", param="request_id"
            )
        if len(self._pending) >= self._max_waiting:
            raise QueueFullError(
                f"{len(self._pending)} requests wait for their grammars already; try again later."
            )
        self._pending[request.request_id] = request
        self._pool.submit(self._work, request)

    def _work(self, request: EngineRequest) -> None:
        assert request.grammar is not None
        outcome: TokenMatcher | LingflashError
        try:
            # Left by the client before its turn came: skip the work.
            if self._pending.get(request.request_id) is not request:
                return
            outcome = self._grammars.compile(request.grammar)
        except LingflashError as error:
            outcome = error
        except BaseException as error:  # a panic in the grammar library must not end the engine
            outcome = InvalidRequestError(
                f"The grammar could not be compiled ({type(error).__name__})."
            )
        self._deliver(Compiled(request, outcome))

    def is_wanted(self, compiled: Compiled) -> bool:
        """Whether the request still waits for this result; it does no longer then."""
        request_id = compiled.request.request_id
        if self._pending.get(request_id) is not compiled.request:
            return False
        del self._pending[request_id]
        return True

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request that waits here; unknown ids give no events."""
        request = self._pending.pop(request_id, None)
        if request is None:
            return []
        return [
            TokenEvent(request_id=request_id, choice=choice, finish_reason="aborted")
            for choice in range(request.sampling.n)
        ]
