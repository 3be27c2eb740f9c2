"""Finds out, before the engine is asked, whether a grammar can be compiled."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec
from lingflash.structured.grammar import PARAMS, check_grammar

TIMEOUT_S = 5.0
MAX_KEPT = 1024
_MAX_KEPT_CHARS = 16 * 1024


class GrammarChecker:
    """Compiles grammars beside the event loop and remembers the good ones."""

    def __init__(self) -> None:
        self._good: OrderedDict[GrammarSpec, None] = OrderedDict()
        # A hostile schema holds up other schemas at most, and those not for long.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="grammar-check")

    async def check(self, spec: GrammarSpec, param: str | None = None) -> None:
        """Make sure that a grammar can be enforced.

        Raises:
            InvalidRequestError: it cannot; the message names the keyword.
        """
        if spec in self._good:
            self._good.move_to_end(spec)
            return
        work = asyncio.get_running_loop().run_in_executor(self._pool, check_grammar, spec, param)
        try:
            await asyncio.wait_for(work, TIMEOUT_S)
        except TimeoutError:
            raise InvalidRequestError(
                f"The grammar took over {TIMEOUT_S:g} s to compile; make it simpler.",
                param=param or PARAMS[spec.kind],
            ) from None
        if len(spec.text) <= _MAX_KEPT_CHARS:
            self._good[spec] = None
            while len(self._good) > MAX_KEPT:
                self._good.popitem(last=False)
