"""Finds out, before the engine is asked, whether a grammar can be compiled.

Grammars are checked in processes with limits (`structured/compile_server.py`), a few at a time.
Each begins in a quick lane, which good ones leave within milliseconds; one that takes longer goes
on in a slow lane or waits for it, at a low priority. In both lanes owners take turns and none can
hold all places, so that what one asks for never stands before another's.
"""

from __future__ import annotations

from collections import OrderedDict

from lingflash.api.answer.fair_slots import FairSlots
from lingflash.core.errors import InvalidRequestError
from lingflash.core.types import GrammarSpec, key_of
from lingflash.structured.compile_client import CompileServer, GrammarTooLargeError
from lingflash.structured.compile_server import VocabularyMessage
from lingflash.text.tokenizer import Tokenizer

# Of processor time. Nine of ten schemas take 5 ms; a hostile one has a quick place no longer.
SLICE_S = 0.025
MAX_KEPT = 1024
_MAX_KEPT_CHARS = 16 * 1024
_WAITING = "grammars of this key wait to be checked"


class _NoRoom(Exception):
    """A grammar takes long, and its owner has enough of those."""


class GrammarChecker:
    """Checks grammars beside the event loop and remembers what came of it.

    Args:
        tokenizer: of the model; without one grammars are checked as far as that goes.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._known: OrderedDict[
            tuple[str, GrammarSpec], tuple[GrammarSpec | InvalidRequestError, str | None]
        ] = OrderedDict()
        self._quick = FairSlots(4, 2, 256, _WAITING)
        self._slow = FairSlots(3, 1, 16, _WAITING)
        self.server = CompileServer(None if tokenizer is None else lambda: _message(tokenizer))

    def known(self, spec: GrammarSpec, owner: str, param: str | None = None) -> GrammarSpec | None:
        """What check() returns for a grammar, if that is known; None if not.

        Args:
            param: the request field that it came in, which an error names.

        Raises:
            InvalidRequestError: it is known not to compile.
        """
        found, named = self._known.get((owner, spec), (None, None))
        if found is None or (isinstance(found, InvalidRequestError) and named != param):
            return None
        self._known.move_to_end((owner, spec))
        if isinstance(found, InvalidRequestError):
            raise InvalidRequestError(found.message, param=found.param)
        return found

    async def check(
        self, spec: GrammarSpec, param: str | None = None, *, owner: str = ""
    ) -> GrammarSpec:
        """Make sure that a grammar can be enforced; cancelled, its work ends.

        Args:
            spec: what is asked for.
            param: the request field that it came in, for messages.
            owner: whose it is, a cache_salt: nothing is shared between owners but the machine.

        Returns:
            The grammar to use: `spec`, or less of it, with what is left to the model in `dropped`.

        Raises:
            InvalidRequestError: it cannot; the message names the keyword.
            CapacityError: too many are being checked.
        """
        known = self.known(spec, owner, param)
        if known is not None:
            return known
        try:
            found: GrammarSpec | InvalidRequestError = await self._check(spec, param, key_of(owner))
        except GrammarTooLargeError:  # on a machine as busy as now
            raise
        except InvalidRequestError as error:
            found = error
        if len(spec.text) <= _MAX_KEPT_CHARS:
            self._known[owner, spec] = found, param
            while len(self._known) > MAX_KEPT:
                self._known.popitem(last=False)
        if isinstance(found, InvalidRequestError):
            raise found
        return found

    async def _check(self, spec: GrammarSpec, param: str | None, owner: str) -> GrammarSpec:
        try:
            return await self._begin(spec, param, owner)
        except _NoRoom:
            pass
        await self._slow.acquire(owner)
        try:
            return await self.server.check(spec, param, _go_on, None)
        finally:
            self._slow.release(owner)

    async def _begin(self, spec: GrammarSpec, param: str | None, owner: str) -> GrammarSpec:
        """Check in the quick lane and, if need be and there is room, on in the slow one."""
        await self._quick.acquire(owner)
        lane = self._quick

        def change_lanes() -> None:
            nonlocal lane
            if not self._slow.try_acquire(owner):
                raise _NoRoom
            lane = self._slow
            self._quick.release(owner)

        try:
            return await self.server.check(spec, param, change_lanes, SLICE_S)
        finally:
            lane.release(owner)

    def close(self) -> None:
        """End the process behind it."""
        self.server.close()


def _go_on() -> None:
    pass


def _message(tokenizer: Tokenizer) -> VocabularyMessage:
    commands = {tokenizer.token_id(content) for content in tokenizer.special_strings}
    special = tokenizer.special_ids | {i for i in commands if i is not None}
    return VocabularyMessage(tokenizer.vocabulary(), sorted(special))
