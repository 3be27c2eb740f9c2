"""Which replica of one upstream serves a request: where the fewest tokens are in its way.

    cost = (2 x tokens to compute + prompts waiting there) / prefill rate
         + answers there beyond its share / decode rate

What is to be computed is believed (`belief.py`); what waits is what this gateway sent, and what a
directory says that others did. Answers under way do not wait for each other, so that they count
only beyond a replica's share: twice the mean for a prompt that goes on from the end of another, so
that sessions rarely move, 1.25 times for any other. Such a one, though it may share its first part
with many, also goes to no replica that would keep more than 1.25 times the mean: or one system
prompt of all would draw all sessions to one replica. Where all that is equal the rendezvous hash of
the session decides, so that several gateways send it to the same place.

Rates are of the upstream's replicas in common: only their ratio has a say in the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from lingflash.core.types import Usage
from lingflash.gateway.routing.belief import MAX_PLACES, STATE_TOKENS, Belief, Found
from lingflash.gateway.routing.chain import Chain
from lingflash.protocol.replicas import Replica

Balance = Literal["belief", "consistent_hash", "least_load", "round_robin"]
BALANCES: tuple[Balance, ...] = get_args(Balance)
# How much more than the mean a replica may hold before new sessions go to others.
BOUND = 1.25
# How many more answers than the mean a replica may have under way before its sessions move.
CROWDED = 2.0
# What is computed for a prompt keeps whoever comes next waiting, too.
_OTHERS = 2
# So many answers run nearly as fast as one.
_FREE_ANSWERS = 8
# Before anything was measured.
_PREFILL_TOKENS_PER_S, _DECODE_TOKENS_PER_S = 5000.0, 500.0
_PROMPT_TOKENS, _ANSWER_TOKENS = 1000.0, 200.0
# The weight of one answer in what is measured.
_LEARNING = 0.02
# A directory's numbers are at most so old: what was sent since may be among them.
_STALE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What of a request decides which replica serves it.

    Args:
        pinned: URL of the replica that served the session last, as the accounts know it; another
            gateway may have sent it there.
        completion_tokens: the longest answer that it asks for, if it does.
    """

    chain: Chain
    session: str
    pinned: str | None = None
    completion_tokens: int | None = None


class Choice(NamedTuple):
    """A replica for a prompt, and what is expected of it."""

    prompt: Prompt
    replica: Replica
    found: Found
    new_tokens: int
    cost_s: float


@dataclass(slots=True)
class _Lane:
    """What this gateway has under way at one replica."""

    prompt: int = 0  # tokens to compute, of requests whose first token is awaited
    answer: float = 0.0  # tokens that are still to be generated
    context: int = 0  # tokens of all, for what others have beside
    running: int = 0
    peak: int = 0
    peak_until_s: float = 0.0


class Sent:
    """One request at one replica, until it has ended.

    Use first() when its first token comes and end() or fail() once.
    """

    def __init__(self, router: ReplicaRouter, choice: Choice, now_s: float) -> None:
        self._router, self._choice = router, choice
        self._began_s = now_s
        self._first_s: float | None = None
        self._is_ended = False
        lane = self._lane = router.lane(choice.replica.url)
        self._ahead = lane.prompt
        self._answer = router.answer_tokens(choice.prompt)
        self._context = choice.found.tokens + choice.new_tokens
        lane.prompt += choice.new_tokens
        lane.answer += self._answer
        lane.context += self._context
        lane.running += 1
        router.belief.serve(choice.prompt.chain, choice.replica.url)

    def first(self, now_s: float) -> None:
        """The first token has come."""
        if self._first_s is None:
            self._first_s = now_s
            self._lane.prompt -= self._choice.new_tokens

    def end(self, now_s: float, usage: Usage | None) -> None:
        """It was answered, or the client left after the first token."""
        if self._is_ended:
            return
        self.first(now_s)
        num_running = self._lane.running
        self._leave(now_s)
        if usage is None:
            return
        self._router.measure(usage, self._began_s, self._first_s, now_s, self._ahead, num_running)
        self._router.belief.learn(
            self._choice.prompt.chain,
            self._choice.replica.url,
            expected=self._choice.found.tokens,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
        )

    def fail(self, now_s: float) -> None:
        """It was not answered: what it would have left there is not."""
        if self._is_ended:
            return
        self.first(now_s)
        self._leave(now_s)
        choice = self._choice
        self._router.belief.fail(choice.prompt.chain, choice.replica.url, choice.found.known)

    def _leave(self, now_s: float) -> None:
        lane = self._lane
        self._is_ended = True
        if lane.context > lane.peak or now_s > lane.peak_until_s:
            lane.peak, lane.peak_until_s = lane.context, now_s + _STALE_S
        lane.answer -= self._answer
        lane.context -= self._context
        lane.running -= 1


class ReplicaRouter:
    """Chooses among the replicas of one upstream; learns from their answers.

    Args:
        balance: how it chooses; the others are there to be compared with.
        max_places: see Belief.
    """

    def __init__(self, balance: Balance = "belief", max_places: int = MAX_PLACES) -> None:
        self.balance = balance
        self.belief = Belief(max_places)
        self._lanes: dict[str, _Lane] = {}
        self._turn = 0
        self._prefill_rate = _PREFILL_TOKENS_PER_S
        self._decode_rate = _DECODE_TOKENS_PER_S
        self._answer_tokens = _ANSWER_TOKENS
        self._prompt_tokens = _PROMPT_TOKENS

    @property
    def num_running(self) -> int:
        """Requests that were sent and have not ended."""
        return sum(lane.running for lane in self._lanes.values())

    def order(self, prompt: Prompt, replicas: Sequence[Replica], now_s: float) -> list[Choice]:
        """The replicas, the one that is to serve before those to try after it."""
        found = self.belief.find(prompt.chain)
        tokens = self.belief.tokens(prompt.chain)
        total = tokens[-1] if tokens else 0
        if prompt.pinned is not None and not any(each.is_end for each in found.values()):
            old = tokens[prompt.chain.num_old - 1] if prompt.chain.num_old else 0
            known = found.get(prompt.pinned, _NOTHING)
            old = max(old, known.tokens)
            found[prompt.pinned] = Found(max(old, known.known), old, is_end=True)
        lanes = [self._lanes.get(each.url, _IDLE) for each in replicas]
        answers = [
            lane.answer + (self._others(replica, lane, now_s) if replica.tokens_in_flight else 0.0)
            for replica, lane in zip(replicas, lanes, strict=True)
        ]
        # Answers run side by side, and wait for nobody until a replica has more than its share.
        share = max(sum(answers) / max(len(answers), 1), _FREE_ANSWERS * self._answer_tokens)
        choices: list[Choice] = []
        for replica, lane, running in zip(replicas, lanes, answers, strict=True):
            known = found.get(replica.url, _NOTHING)
            new = max(total - known.tokens, 0)
            cost_s = (_OTHERS * new + lane.prompt) / self._prefill_rate
            over = running - (CROWDED if known.is_end else BOUND) * share
            if over > 0:
                cost_s += over / self._decode_rate
            choices.append(Choice(prompt, replica, known, new, cost_s))
        self._sort(choices, prompt.session, total)
        return choices

    def _sort(self, choices: list[Choice], session: str, total: int) -> None:
        def tie(choice: Choice) -> int:
            return _rendezvous(session, choice.replica.url)

        match self.balance:
            case "belief":
                full = self._full(choices, total)
                # Of equals first the one that a prompt parts from: there the next can go on.
                ranks = [
                    (each.replica.url in full, each.cost_s, -each.found.known) for each in choices
                ]
                best = min(ranks, default=None)
                # Hashes are only made of those that are equal: there may be many replicas.
                ties = [
                    (rank, tie(each) if rank == best else 0, i)
                    for i, (rank, each) in enumerate(zip(ranks, choices, strict=True))
                ]
                choices[:] = [choices[i] for *_, i in sorted(ties)]
            case "consistent_hash":
                choices.sort(key=tie)
            case "least_load":
                self._take_turns(choices)
                choices.sort(key=lambda each: self._load(each.replica.url))
            case "round_robin":
                self._take_turns(choices)

    def _full(self, choices: Sequence[Choice], total: int) -> set[str]:
        """Those that would keep too much, were they to serve a prompt that is new to them."""
        kept = [self.belief.kept_tokens(each.replica.url) for each in choices]
        in_all, part = sum(kept), BOUND / max(len(kept), 1)
        full: set[str] = set()
        for own, each in zip(kept, choices, strict=True):
            added = total - each.found.known + STATE_TOKENS
            if own > 0 and not each.found.is_end and own + added > part * (in_all + added):
                full.add(each.replica.url)
        return full

    def _take_turns(self, choices: list[Choice]) -> None:
        choices.sort(key=lambda each: each.replica.url)
        first = self._turn % max(len(choices), 1)
        choices[:] = choices[first:] + choices[:first]

    def _load(self, url: str) -> int:
        return self._lanes.get(url, _IDLE).context

    def send(self, choice: Choice, now_s: float) -> Sent:
        """Send a request to a replica that `order` gave."""
        self._turn += 1
        return Sent(self, choice, now_s)

    def keep_only(self, urls: Iterable[str]) -> None:
        """Forget every other replica; what is under way there ends by itself."""
        urls = set(urls)
        self.belief.keep_only(urls)
        for url in [url for url, lane in self._lanes.items() if url not in urls]:
            if not self._lanes[url].running:
                del self._lanes[url]

    # What the requests under way need

    def lane(self, url: str) -> _Lane:
        return self._lanes.setdefault(url, _Lane())

    def answer_tokens(self, prompt: Prompt) -> float:
        """How long its answer is likely to be."""
        asked = prompt.completion_tokens
        return self._answer_tokens if asked is None else min(self._answer_tokens, asked)

    def measure(
        self,
        usage: Usage,
        began_s: float,
        first_s: float | None,
        ended_s: float,
        ahead_tokens: int,
        num_running: int,
    ) -> None:
        """Learn the rates and sizes of an answer.

        Args:
            ahead_tokens: of prompts that waited there when it began.
            num_running: requests of this gateway there when it ended.
        """
        self._answer_tokens += _LEARNING * (usage.completion_tokens - self._answer_tokens)
        self._prompt_tokens += _LEARNING * (usage.prompt_tokens - self._prompt_tokens)
        if first_s is None or first_s >= ended_s:
            return  # it came whole, so that nobody knows when the prompt was read
        if first_s > began_s:
            new = usage.prompt_tokens - usage.cached_tokens + ahead_tokens
            # By the time that each took, or a few short prompts would say that all are slow.
            weight = min(_LEARNING * (first_s - began_s) * self._prefill_rate / 1000, 0.5)
            self._prefill_rate += weight * (new / (first_s - began_s) - self._prefill_rate)
        # What it can do, not what was asked of it: few at once say nothing of many.
        rate = (usage.completion_tokens - 1) / (ended_s - first_s) * num_running
        weight = _LEARNING if rate > self._decode_rate else _LEARNING / 20
        self._decode_rate += weight * (rate - self._decode_rate)

    def _others(self, replica: Replica, lane: _Lane, now_s: float) -> float:
        """Tokens that are still to be generated there for others, as a directory knows it."""
        own = lane.context if now_s > lane.peak_until_s else max(lane.context, lane.peak)
        # Only the sizes of contexts are known: half an answer of each is left.
        count = max(replica.tokens_in_flight - own, 0) / max(self._prompt_tokens, 1.0)
        return count * self._answer_tokens / 2


_NOTHING = Found()
_IDLE = _Lane()


def _rendezvous(session: str, url: str) -> int:
    seed = f"{session}\0{url}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(seed, digest_size=6).digest(), "big")
