"""A whole cluster on a clock of its own: sessions, gateways that route, replicas that answer.

What routes is the gateway's own `routing/replicas.py`; what a replica keeps is the engine's own
bookkeeping. Made up are times between sessions, and how long things take, from measured rates.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lingflash.cluster.simulation.cache import CacheShape, Text
from lingflash.cluster.simulation.replica import Rates, Replica, Request
from lingflash.cluster.simulation.sessions import Session
from lingflash.core.types import Usage
from lingflash.gateway.routing.chain import Chain
from lingflash.gateway.routing.replicas import Balance, Choice, Prompt, ReplicaRouter, Sent
from lingflash.protocol.replicas import Replica as Listed

_BYTES_PER_TOKEN = 4
# A directory is asked so often.
_LISTED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """What is simulated.

    Args:
        num_gateways: each learns by itself; the sessions' last replicas they share, as by the
            accounts' database. A session's turns come to any of them.
        warm_up_s: not counted.
    """

    num_replicas: int
    rates: Rates
    cache: CacheShape
    balance: Balance = "belief"
    num_gateways: int = 1
    warm_up_s: float = 0.0
    duration_s: float = float("inf")


@dataclass(slots=True)
class Outcome:
    """What came of it, from the end of the warm-up on.

    Args:
        new_tokens: prompt tokens that no replica could have had: of first turns but for what they
            share, and what later turns add to the last answer.
        computed_tokens: prompt tokens that were computed.
        first_s: from each request to its first token.
        busy: part of the time that each replica worked.
        running: answers that each had under way, mean over the time.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    answer_tokens: int = 0
    moved_turns: int = 0
    first_s: list[float] = field(default_factory=list[float])
    busy: list[float] = field(default_factory=list[float])
    running: list[float] = field(default_factory=list[float])
    seconds: float = 0.0

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    @property
    def recomputed_tokens(self) -> int:
        """Computed although some replica had computed them before."""
        return self.computed_tokens - self.new_tokens

    @property
    def hit_rate(self) -> float:
        """Part of the prompts that was not computed."""
        return self.cached_tokens / max(self.prompt_tokens, 1)

    def first_at(self, share: float) -> float:
        """Seconds that this part of the first tokens stayed below."""
        ordered = sorted(self.first_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclass(slots=True, eq=False)
class _Talk:
    """A session under way."""

    session: Session
    text: Text
    turn: int = 0
    keys: list[int] = field(default_factory=list[int])
    sizes: list[int] = field(default_factory=list[int])
    home: int | None = None

    def add(self, key: int, tokens: int) -> None:
        self.keys.append(key)
        self.sizes.append((self.sizes[-1] if self.sizes else 0) + tokens * _BYTES_PER_TOKEN)


class Cluster:
    """Replicas and gateways; `play` or `play_in_turn` once."""

    def __init__(self, shape: ClusterShape, seed: int = 0) -> None:
        self.shape = shape
        self.outcome = Outcome()
        self._replicas = [Replica(shape.rates, shape.cache) for _ in range(shape.num_replicas)]
        self._routers = [ReplicaRouter(shape.balance) for _ in range(shape.num_gateways)]
        width = len(str(shape.num_replicas))
        self._urls = {f"replica-{i:0{width}}": i for i in range(shape.num_replicas)}
        self._listed = [Listed(url=url, ready=True) for url in self._urls]
        self._listed_s = 0.0
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._shared: dict[str, int] = {}
        self._known_shared: set[str] = set()
        self._sent: dict[Request, tuple[Sent, _Talk]] = {}
        self._events: list[tuple[float, int, _Talk | int, int]] = []
        self._count = itertools.count()
        self._versions = [0] * shape.num_replicas
        self._before = [(0.0, 0.0)] * shape.num_replicas

    def play(self, arrivals: Iterable[tuple[float, Session]]) -> Outcome:
        """Sessions that begin at these times, ascending, until the shape's duration is over."""
        coming = iter(arrivals)
        is_warm, now_s = False, 0.0
        self._next_arrival(coming)
        while self._events:
            now_s, _, what, version = heapq.heappop(self._events)
            if now_s > self.shape.duration_s:
                break
            if not is_warm and now_s >= self.shape.warm_up_s:
                is_warm = True
                self._before = [(each.busy_s, each.answer_s) for each in self._replicas]
            if isinstance(what, int):
                if version == self._versions[what]:
                    self._advance(what, now_s)
            else:
                if not what.turn:
                    self._next_arrival(coming)
                self._ask(what, now_s)
        return self._finish(min(now_s, self.shape.duration_s))

    def play_in_turn(self, sessions: Sequence[Session], order: Sequence[int]) -> Outcome:
        """One request at a time: the next turns of sessions, by their numbers."""
        talks = [self._talk(each) for each in sessions]
        now_s = 0.0
        for number in order:
            index = self._ask(talks[number], now_s)
            while self._sent:
                now_s = self._replicas[index].next_s()
                self._advance(index, now_s)
            self._events.clear()
        return self._finish(now_s)

    def _finish(self, now_s: float) -> Outcome:
        outcome = self.outcome
        outcome.seconds = now_s - min(self.shape.warm_up_s, now_s)
        if outcome.seconds > 0:
            for each, (busy_s, answer_s) in zip(self._replicas, self._before, strict=True):
                outcome.busy.append((each.busy_s - busy_s) / outcome.seconds)
                outcome.running.append((each.answer_s - answer_s) / outcome.seconds)
        return outcome

    def _talk(self, session: Session) -> _Talk:
        number = next(self._numbers)
        return _Talk(session, Text(number, session.shared, session.shared_tokens))

    def _next_arrival(self, coming: Iterable[tuple[float, Session]]) -> None:
        for at_s, session in coming:
            self._push(at_s, self._talk(session))
            return

    def _push(self, at_s: float, what: _Talk | int, version: int = 0) -> None:
        heapq.heappush(self._events, (at_s, next(self._count), what, version))

    def _ask(self, talk: _Talk, now_s: float) -> int:
        """Send a session's next turn; the replica that it went to."""
        turn, text = talk.session.turns[talk.turn], talk.text
        new = turn.new_tokens
        if not talk.turn and text.shared_tokens:
            shared = self._shared.setdefault(text.shared, len(self._shared))
            talk.add((1 << 60) + shared, text.shared_tokens)
            new -= text.shared_tokens
        old = len(talk.keys) if talk.turn else 0
        talk.add((text.number << 24) + len(talk.keys), max(new, 0))
        text.tokens += turn.new_tokens
        prompt = Prompt(
            chain=Chain(tuple(talk.keys), tuple(talk.sizes), old),
            session=talk.session.name,
            pinned=None if talk.home is None else self._listed[talk.home].url,
        )
        router = self._routers[0]
        if len(self._routers) > 1:
            router = self._rng.choice(self._routers)
            self._list(now_s)
        choice = router.order(prompt, self._listed, now_s)[0]
        index = self._urls[choice.replica.url]
        self._advance(index, now_s)
        request = Request(text, text.tokens, turn.answer_tokens, now_s)
        self._sent[request] = (router.send(choice, now_s), talk)
        self._note(talk, choice, now_s)
        talk.home = index
        self._replicas[index].add(request)
        self._schedule(index)
        return index

    def _note(self, talk: _Talk, choice: Choice, now_s: float) -> None:
        """What of a request is known when it is sent."""
        if now_s < self.shape.warm_up_s:
            self._known_shared.add(talk.text.shared)
            return
        turn = talk.session.turns[talk.turn]
        new = turn.new_tokens + (1 if talk.turn else 0)  # an answer's last token was not computed
        if not talk.turn and talk.text.shared in self._known_shared:
            new -= talk.text.shared_tokens
        self._known_shared.add(talk.text.shared)
        self.outcome.new_tokens += new
        url = None if talk.home is None else self._listed[talk.home].url
        self.outcome.moved_turns += talk.turn > 0 and url != choice.replica.url

    def _advance(self, index: int, now_s: float) -> None:
        for request in self._replicas[index].advance(now_s):
            sent, talk = self._sent[request]
            if not request.ended_s:
                sent.first(now_s)
            else:
                self._end(request, sent, talk, now_s)
        self._schedule(index)

    def _end(self, request: Request, sent: Sent, talk: _Talk, now_s: float) -> None:
        del self._sent[request]
        usage = Usage(
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            completion_tokens=request.answer_tokens,
        )
        sent.end(now_s, usage)
        talk.text.tokens += request.answer_tokens
        talk.add((talk.text.number << 24) + len(talk.keys), request.answer_tokens)
        if request.arrived_s >= self.shape.warm_up_s:
            outcome = self.outcome
            outcome.requests += 1
            outcome.prompt_tokens += usage.prompt_tokens
            outcome.cached_tokens += usage.cached_tokens
            outcome.answer_tokens += usage.completion_tokens
            outcome.first_s.append(request.first_s - request.arrived_s)
        if talk.session.turns[talk.turn].is_rewritten:
            block_tokens = self.shape.cache.block_tokens
            talk.text.rewrite(request.prompt_tokens, block_tokens)
        talk.turn += 1
        if talk.turn < len(talk.session.turns):
            self._push(now_s + talk.session.turns[talk.turn].pause_s, talk)

    def _schedule(self, index: int) -> None:
        self._versions[index] += 1
        next_s = self._replicas[index].next_s()
        if next_s < float("inf"):
            self._push(next_s, index, self._versions[index])

    def _list(self, now_s: float) -> None:
        """What the directory says, as old as it would be."""
        if now_s - self._listed_s >= _LISTED_EVERY_S:
            self._listed_s = now_s
            self._listed = [
                Listed(url=url, ready=True, tokens_in_flight=replica.tokens_in_flight)
                for url, replica in zip(self._urls, self._replicas, strict=True)
            ]
