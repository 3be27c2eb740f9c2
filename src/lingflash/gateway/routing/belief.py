"""What the replicas of an upstream are believed to hold, learned from what they answered.

A prompt is a chain of beginnings, one after each of its pieces (`chain.py`). Whoever served a
prompt is believed to hold all of them, and to be able to go on from some: a recurrent state cannot
be cut back, so that only the places with a checkpoint count. The engine keeps one at the end of
every prompt and where two prompts part, which is what this mirrors:

    turn 1    tools | system | user*
    turn 2    tools | system | user* | assistant | result*
    another   tools | system* | other user*                 which parts from them after `system`

The `cached_tokens` of the answer correct it: fewer than believed, and what lay deeper is forgotten;
more, and the place is learned. Nothing is asked of a replica, and no text is turned into tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from lingflash.gateway.routing.chain import Chain

# A place takes about half a kilobyte, so that this is 50 MB at most; a live session needs two.
MAX_PLACES = 100_000
# What a session's states take beside the cache of its tokens, in tokens: 12,700 for Ling-2.6-flash,
# fewer for small models and 16-bit states. Without it many short sessions would seem to be nothing.
STATE_TOKENS = 4096
# Before anything was answered: text in any language, as JSON.
_FIRST_TOKENS_PER_BYTE = 0.25
# The weight of one answer in what tokens a byte has.
_LEARNING = 0.05
# A checkpoint lies at a block's end, and a template adds to the end of a prompt.
_SLACK_TOKENS = 64


@dataclass(slots=True)
class _Held:
    """What one replica is believed to have of a place.

    Args:
        can_resume: it has a checkpoint there.
        is_end: a prompt ended there, which a session goes on from.
        is_last: nothing has gone on from there yet: a session's states.
        added: tokens between the place before and this one, which its memory holds for it.
    """

    added: int
    can_resume: bool = False
    is_end: bool = False
    is_last: bool = False

    @property
    def kept_tokens(self) -> int:
        return self.added + STATE_TOKENS * self.is_last


@dataclass(slots=True)
class _Place:
    """A beginning that was seen, and its tokens: counted where a prompt ended, else guessed."""

    tokens: int
    held: dict[str, _Held]


@dataclass(frozen=True, slots=True)
class Found:
    """What a replica has of a prompt.

    Args:
        known: tokens that it has in its cache.
        tokens: those of them that it need not compute: it can go on from there.
        is_end: where a prompt ended, so that this one goes on from it, rather than sharing its
            first part with others.
    """

    known: int = 0
    tokens: int = 0
    is_end: bool = False


class Belief:
    """Of all replicas of one upstream; bounded, what was unused for longest goes first."""

    def __init__(self, max_places: int = MAX_PLACES) -> None:
        self._max_places = max_places
        self._places: OrderedDict[int, _Place] = OrderedDict()
        self._kept: dict[str, int] = {}
        self._tokens_per_byte = _FIRST_TOKENS_PER_BYTE

    def __len__(self) -> int:
        return len(self._places)

    @property
    def replicas(self) -> set[str]:
        """All of whom anything is believed."""
        return {replica for place in self._places.values() for replica in place.held}

    def kept_tokens(self, replica: str) -> int:
        """Tokens that its cache is believed to hold, shared ones once, and sessions' states."""
        return self._kept.get(replica, 0)

    def tokens(self, chain: Chain) -> list[int]:
        """About how many tokens there are up to the end of each piece."""
        found: list[int] = []
        tokens = size = 0
        for key, end in zip(chain.keys, chain.sizes, strict=True):
            place = self._places.get(key)
            guess = tokens + round((end - size) * self._tokens_per_byte)
            tokens, size = (guess if place is None else max(place.tokens, tokens)), end
            found.append(tokens)
        return found

    def find(self, chain: Chain) -> dict[str, Found]:
        """What each replica has of a chain; those that have nothing are left out."""
        found: dict[str, Found] = {}
        known: dict[str, int] = {}
        for key in reversed(chain.keys):
            place = self._places.get(key)
            if place is None:
                continue
            for replica, held in place.held.items():
                deepest = known.setdefault(replica, place.tokens)
                if held.can_resume and replica not in found:
                    found[replica] = Found(deepest, place.tokens, held.is_end)
        return {replica: found.get(replica, Found(tokens)) for replica, tokens in known.items()}

    def serve(self, chain: Chain, replica: str) -> None:
        """A prompt was sent to a replica, which will hold all of it."""
        tokens = self.tokens(chain)
        is_new = False
        before = 0
        for i, key in enumerate(chain.keys):
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = _Place(tokens[i], {})
            held = place.held.get(replica)
            if held is None:
                if not is_new and i:
                    # Here it parts from what the replica has.
                    last = self._places[chain.keys[i - 1]].held[replica]
                    last.can_resume = True
                    self._set_last(replica, last, is_last=False)
                is_new = True
                held = place.held[replica] = _Held(max(tokens[i] - before, 0))
                self._kept[replica] = self._kept.get(replica, 0) + held.added
            before = tokens[i]
        if chain.keys:
            end = self._places[chain.keys[-1]].held[replica]
            end.can_resume = end.is_end = True
            if is_new:
                self._set_last(replica, end, is_last=True)
        self._touch(chain)

    def learn(
        self, chain: Chain, replica: str, *, expected: int, prompt_tokens: int, cached_tokens: int
    ) -> None:
        """What the answer said of a prompt that was served.

        Args:
            expected: tokens that were believed to be there when it was sent.
        """
        if not chain.keys or prompt_tokens <= 0:
            return
        ratio = prompt_tokens / max(chain.sizes[-1], 1)
        self._tokens_per_byte += _LEARNING * (ratio - self._tokens_per_byte)
        slack = _SLACK_TOKENS + expected // 32
        tokens = self.tokens(chain)
        tokens[-1] = prompt_tokens
        for key, count in zip(chain.keys[:-1], tokens, strict=False):
            place = self._places.get(key)
            held = None if place is None else place.held.get(replica)
            if held is None:
                continue
            if cached_tokens < expected - slack and count > cached_tokens + slack:
                # It was computed again: the latents are there, a checkpoint is not.
                held.can_resume = False
        if cached_tokens > expected + slack:
            self._learn_more(chain, replica, tokens, cached_tokens + slack)
        last = self._places.get(chain.keys[-1])
        if last is not None:
            last.tokens = prompt_tokens

    def _learn_more(
        self, chain: Chain, replica: str, tokens: list[int], cached_tokens: int
    ) -> None:
        for key, count in reversed(list(zip(chain.keys[:-1], tokens, strict=False))):
            place = self._places.get(key)
            if count <= cached_tokens and place is not None and replica in place.held:
                place.held[replica].can_resume = True
                return

    def fail(self, chain: Chain, replica: str, known: int) -> None:
        """A prompt that was sent was not served: what it would have left is not there.

        Args:
            known: tokens that were there before.
        """
        for key, count in zip(chain.keys, self.tokens(chain), strict=True):
            if count > known:
                self._forget(key, replica)

    def keep_only(self, replicas: Iterable[str]) -> None:
        """Forget all that is believed of any other replica."""
        gone = self._kept.keys() - set(replicas)
        if gone:
            for key in list(self._places):
                for replica in gone:
                    self._forget(key, replica)
            for replica in gone:
                self._kept.pop(replica, None)

    def _set_last(self, replica: str, held: _Held, *, is_last: bool) -> None:
        self._kept[replica] -= held.kept_tokens
        held.is_last = is_last
        self._kept[replica] += held.kept_tokens

    def _forget(self, key: int, replica: str) -> None:
        place = self._places.get(key)
        held = None if place is None else place.held.pop(replica, None)
        if place is None or held is None:
            return
        self._kept[replica] -= held.kept_tokens
        if not place.held:
            del self._places[key]

    def _touch(self, chain: Chain) -> None:
        for key in reversed(chain.keys):  # the first are the most shared, and go last
            if key in self._places:
                self._places.move_to_end(key)
        while len(self._places) > self._max_places:
            key, place = next(iter(self._places.items()))
            for replica in list(place.held):
                self._forget(key, replica)
