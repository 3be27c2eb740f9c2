"""Compiles grammars beside the loop, so that a large one stops no other request.

A server has checked them in a process with limits, so each compiles in about a second at most; of
those that take long there may be many, all the same. So a few threads of a low priority take turns
between owners, and no owner has more than some of them.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lingflash.core.errors import InvalidRequestError, LingflashError, QueueFullError
from lingflash.core.priority import lower_priority
from lingflash.core.types import EngineRequest, TokenEvent, key_of
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


_THREADS = 4
_THREADS_OF_ONE = 2
_NICE = 10


class GrammarThreads:
    """Compiles requests' grammars in threads; all methods belong to the engine's loop.

    Args:
        deliver: called in a thread with each result.
        max_waiting: requests that may wait to be compiled.
    """

    def __init__(
        self, grammars: GrammarCompiler, deliver: Callable[[Compiled], None], max_waiting: int
    ) -> None:
        self._grammars = grammars
        self._deliver = deliver
        self._max_waiting = max(max_waiting, 1)
        self._pool = ThreadPoolExecutor(
            _THREADS, "grammar", initializer=lower_priority, initargs=(_NICE,)
        )
        self._pending: dict[str, EngineRequest] = {}
        self._lock = threading.Lock()  # of the next two
        self._running: Counter[str] = Counter()  # per owner
        self._queues: OrderedDict[str, deque[EngineRequest]] = OrderedDict()  # in order of turns

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
        with self._lock:
            self._queues.setdefault(key_of(request.cache_salt), deque()).append(request)
        # Each call of _work takes one request, not always this one: that of whose turn it is.
        self._pool.submit(self._work)

    def _work(self) -> None:
        """Thread: compile one request, and those that had to wait for its owner's place."""
        while (turn := self._begin()) is not None:
            owner, request = turn
            try:
                # Left by the client before its turn came: skip the work; meanwhile: its result.
                if self._is_pending(request):
                    compiled = Compiled(request, self._compile(request))
                    if self._is_pending(request):
                        self._deliver(compiled)
            finally:
                with self._lock:
                    self._running[owner] -= 1
                    if not self._running[owner]:
                        del self._running[owner]

    def _begin(self) -> tuple[str, EngineRequest] | None:
        """Whose turn it is, and what to compile; None if nobody's."""
        with self._lock:
            for owner, queue in self._queues.items():
                if self._running[owner] < _THREADS_OF_ONE:
                    self._running[owner] += 1
                    request = queue.popleft()
                    del self._queues[owner]
                    if queue:
                        self._queues[owner] = queue  # at the end
                    return owner, request
        return None

    def _is_pending(self, request: EngineRequest) -> bool:
        return self._pending.get(request.request_id) is request

    def _compile(self, request: EngineRequest) -> TokenMatcher | LingflashError:
        assert request.grammar is not None
        try:
            return self._grammars.compile(request.grammar, request.cache_salt)
        except LingflashError as error:
            return error
        except BaseException as error:  # a panic in the grammar library must not end the engine
            return InvalidRequestError(
                f"The grammar could not be compiled ({type(error).__name__})."
            )

    def is_wanted(self, compiled: Compiled) -> bool:
        """Whether the request still waits for this result; it does no longer then."""
        request_id = compiled.request.request_id
        if not self._is_pending(compiled.request):
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
