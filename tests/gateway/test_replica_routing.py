"""Which replica serves: the pure rules, without servers."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lingflash.core.types import Usage
from lingflash.gateway.routing.belief import STATE_TOKENS, Belief
from lingflash.gateway.routing.chain import Chain, make_chain
from lingflash.gateway.routing.replicas import BALANCES, Prompt, ReplicaRouter
from lingflash.protocol.replicas import Replica

A, B, C = (f"http://10.0.0.{i}:8000" for i in (1, 2, 3))
SYSTEM = ("system", b"s" * 8000)


def replicas(*urls, **fields):
    return [Replica(url=url, ready=True, **fields) for url in urls]


def usage_of(prompt, cached, answer):
    return Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=answer)


def chain_of(*pieces):
    return make_chain([(role, text.encode()) for role, text in pieces])


class Talk:
    """A session that grows turn by turn."""

    def __init__(self, name, system=SYSTEM[1], size=400):
        self.name, self.size = name, size
        self.pieces = [("system", system)]

    def prompt(self, **fields):
        number = len(self.pieces)
        self.pieces.append(("user", f"{self.name} {number}".encode() * (self.size // 8)))
        chain = make_chain(self.pieces)
        self.pieces.append(("assistant", f"answer {self.name} {number}".encode() * 8))
        return Prompt(chain=chain, session=self.name, **fields)


def ask(router, prompt, there, now_s=0.0, cached=None, tokens=None):
    """Send a prompt where it is to go and have it answered; where that was."""
    choice = router.order(prompt, there, now_s)[0]
    sent = router.send(choice, now_s)
    sent.first(now_s + 0.1)
    tokens = tokens or max(prompt.chain.num_bytes // 4, 1)
    cached = choice.found.tokens if cached is None else cached
    sent.end(now_s + 0.5, usage_of(tokens, min(cached, tokens), 20))
    return choice


def test_chain_when_a_prompt_goes_on_from_another_then_its_keys_do():
    first = chain_of(("system", "be kind"), ("user", "hi"))
    second = chain_of(
        ("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")
    )
    assert second.keys[:2] == first.keys
    assert (first.num_old, second.num_old) == (0, 3)
    assert second.sizes == (7, 9, 14, 17)
    assert chain_of(("user", "be kind"), ("user", "hi")).keys[1] != first.keys[1]
    assert make_chain([("user", b"hi")], salt=b"x").keys != make_chain([("user", b"hi")]).keys


def test_chain_when_one_text_grows_then_its_full_parts_are_the_same():
    first, second = make_chain([("text", b"a" * 5000)]), make_chain([("text", b"a" * 9000)])
    assert len(first.keys) == 2
    assert second.keys[:2] == first.keys
    assert (first.num_bytes, second.num_bytes) == (5000, 9000)


def test_session_when_it_goes_on_then_its_replica_serves_it():
    router, there = ReplicaRouter(), replicas(A, B, C)
    talk = Talk("one")
    homes = [ask(router, talk.prompt(), there).replica.url for _ in range(22)]
    assert set(homes) == {homes[0]}
    assert router.order(talk.prompt(), there, 9.0)[0].new_tokens < 400


def test_sessions_when_they_share_a_long_system_prompt_then_they_spread():
    router, there = ReplicaRouter(), replicas(A, B, C)
    talks = [Talk(f"session {i}") for i in range(60)]
    served = Counter(ask(router, talk.prompt(), there).replica.url for talk in talks)
    assert max(served.values()) <= 1.6 * min(served.values()), served
    # And each stays where it began.
    homes = [ask(router, talk.prompt(), there).replica.url for talk in talks]
    assert homes == [ask(router, talk.prompt(), there).replica.url for talk in talks]


def test_new_session_when_its_system_prompt_is_known_then_it_goes_where_there_is_room_for_it():
    router, there = ReplicaRouter(), replicas(A, B)
    for i in range(3):  # two apps: each system prompt has parted prompts at one replica
        for app in (b"x", b"y"):
            ask(router, Talk(f"{app} {i}", system=app * 40_000).prompt(), there)
    known = {}
    for app in (b"x", b"y"):
        choice = router.order(Talk(f"{app} new", system=app * 40_000).prompt(), there, 9.0)[0]
        known[app] = choice.replica.url, choice.new_tokens
    assert all(new < 1000 for _, new in known.values()), known


def test_unknown_session_when_two_gateways_see_it_then_both_choose_the_same():
    there = replicas(A, B, C)
    chosen = Counter()
    for i in range(60):
        prompt = Prompt(chain=chain_of(("user", f"question {i}")), session=f"s{i}")
        first, second = (ReplicaRouter().order(prompt, there, 0.0)[0] for _ in range(2))
        assert first.replica == second.replica
        chosen[first.replica.url] += 1
    assert min(chosen.values()) >= 8


def test_session_when_only_the_accounts_know_its_replica_then_it_goes_on_there():
    there = replicas(A, B, C)
    talk = Talk("one")
    talk.prompt()
    for pinned in (A, B, C):
        prompt = Prompt(chain=make_chain(talk.pieces), session="one", pinned=pinned)
        assert ReplicaRouter().order(prompt, there, 0.0)[0].replica.url == pinned
    gone = Prompt(chain=make_chain(talk.pieces), session="one", pinned="http://10.0.0.9:8000")
    assert ReplicaRouter().order(gone, there, 0.0)[0].replica.url in (A, B, C)


def test_session_when_waiting_costs_more_than_computing_anew_then_it_moves():
    router, there = ReplicaRouter(), replicas(A, B)
    talk = Talk("one")
    home = ask(router, talk.prompt(), there).replica.url
    other = B if home == A else A
    prompt = talk.prompt()
    queue = []
    while router.order(prompt, there, 1.0)[0].replica.url == home:
        large = Prompt(chain=make_chain([("user", b"%d" % len(queue) * 40_000)]), session="large")
        choice = next(c for c in router.order(large, there, 1.0) if c.replica.url == home)
        queue.append(router.send(choice, 1.0))
        assert len(queue) < 20
    assert ask(router, prompt, there, 1.0).replica.url == other
    for sent in queue:
        sent.end(2.0, None)
    assert router.num_running == 0


def test_replica_when_others_keep_it_busy_then_a_new_session_goes_elsewhere():
    router = ReplicaRouter()
    there = [*replicas(A, tokens_in_flight=60_000), *replicas(B)]
    for i in range(10):
        prompt = Prompt(chain=chain_of(("user", "hi")), session=f"s{i}")
        assert router.order(prompt, there, 0.0)[0].replica.url == B


def test_replica_when_it_has_only_what_was_just_sent_then_a_stale_report_moves_no_session():
    router, idle = ReplicaRouter(), replicas(A, B)
    talk = Talk("one")
    home = ask(router, talk.prompt(), idle).replica.url
    stale = [Replica(url=url, ready=True, tokens_in_flight=2000 * (url == home)) for url in (A, B)]
    assert router.order(talk.prompt(), stale, 1.0)[0].replica.url == home


def test_belief_when_less_was_cached_then_it_is_forgotten():
    belief = Belief()
    talk = Talk("one")
    first, second = talk.prompt().chain, talk.prompt().chain
    belief.serve(first, A)
    belief.learn(first, A, expected=0, prompt_tokens=2000, cached_tokens=0)
    expected = belief.find(second)[A].tokens
    assert expected == 2000
    belief.serve(second, A)
    belief.learn(second, A, expected=expected, prompt_tokens=2200, cached_tokens=0)
    # What it just computed is there; the place before it has no checkpoint any more.
    assert belief.find(second)[A].tokens == 2200
    assert belief.find(first)[A].tokens == 0


def test_belief_when_prompts_part_then_a_third_goes_on_from_there():
    belief = Belief()
    prompts = [chain_of(("system", "s" * 4000), ("user", f"question {i}")) for i in range(3)]
    belief.serve(prompts[0], A)
    found = belief.find(prompts[1])[A]  # its state cannot be cut back
    assert (found.known, found.tokens) == (1000, 0)
    belief.serve(prompts[1], A)
    found = belief.find(prompts[2])[A]
    assert (found.tokens, found.is_end) == (1000, False)


def test_belief_when_more_was_cached_than_believed_then_it_learns_the_place():
    belief = Belief()
    prompts = [chain_of(("system", "s" * 4000), ("user", f"question {i}")) for i in range(2)]
    belief.serve(prompts[0], A)
    belief.learn(prompts[0], A, expected=0, prompt_tokens=1010, cached_tokens=1000)
    assert belief.find(prompts[1])[A].tokens == pytest.approx(1000, abs=30)


def test_belief_when_a_prompt_was_not_served_then_nothing_of_it_is_believed():
    router, there = ReplicaRouter(), replicas(A)
    prompt = Talk("one").prompt()
    sent = router.send(router.order(prompt, there, 0.0)[0], 0.0)
    assert router.belief.kept_tokens(A) > 0
    sent.fail(1.0)
    sent.end(1.0, None)  # the second word changes nothing
    assert (len(router.belief), router.belief.kept_tokens(A), router.num_running) == (0, 0, 0)


def test_replica_when_it_is_gone_then_nothing_of_it_is_left_and_its_sessions_go_on_elsewhere():
    router, there = ReplicaRouter(), replicas(A, B)
    talks = [Talk(f"session {i}") for i in range(12)]
    homes = [ask(router, talk.prompt(), there).replica.url for talk in talks]
    assert set(homes) == {A, B}
    router.keep_only([B])
    assert router.belief.replicas == {B}
    assert router.belief.kept_tokens(A) == 0
    assert {ask(router, t.prompt(), replicas(B)).replica.url for t in talks} == {B}
    # They stay when it is back, and new ones go to it.
    back = [ask(router, talk.prompt(), there).replica.url for talk in talks]
    assert back == [B] * 12
    new = [ask(router, Talk(f"new {i}").prompt(), there).replica.url for i in range(6)]
    assert new == [A] * 6


def test_belief_when_it_is_full_then_the_longest_unused_goes():
    belief = Belief(max_places=100)
    chains = [chain_of(("user", f"{i}" * 40)) for i in range(300)]
    for chain in chains:
        belief.serve(chain, A)
        belief.find(chains[0])
    assert len(belief) == 100
    assert belief.find(chains[-1])
    assert not belief.find(chains[0])
    assert belief.kept_tokens(A) == pytest.approx(100 * (120 / 4 + STATE_TOKENS), rel=0.1)


@pytest.mark.parametrize("balance", BALANCES)
def test_order_when_asked_then_every_replica_is_in_it_once(balance):
    router, there = ReplicaRouter(balance), replicas(A, B, C)
    firsts = Counter()
    for i in range(30):
        prompt = Prompt(chain=chain_of(("user", f"question {i}")), session=f"s{i}")
        order = [each.replica.url for each in router.order(prompt, there, 0.0)]
        assert sorted(order) == [A, B, C]
        firsts[ask(router, prompt, there).replica.url] += 1
    assert min(firsts.values()) >= 3
    assert router.order(prompt, [], 0.0) == []


def test_order_when_a_prompt_is_empty_then_it_is_served():
    router = ReplicaRouter()
    choice = router.order(Prompt(chain=Chain(), session=""), replicas(A), 0.0)[0]
    router.send(choice, 0.0).end(1.0, usage_of(3, 0, 1))


def test_traces_when_10000_are_random_then_the_books_are_right():
    """Sessions that fork, fail and are cut off, replicas that come and go, caches that lose all."""
    urls = [A, B, C]
    for seed in range(10_000):
        rng = random.Random(seed)
        router = ReplicaRouter(max_places=rng.choice((8, 40, 1000)))
        talks = [Talk(f"{i}", b"s" * rng.randrange(200), size=16) for i in range(2)]
        alive, running, now_s = set(urls), [], 0.0
        for _ in range(rng.randrange(2, 9)):
            now_s += rng.random()
            match rng.randrange(8):
                case 0:
                    alive = set(rng.sample(urls, rng.randrange(1, 4)))
                    router.keep_only(alive)
                case 1 if running:
                    running.pop(rng.randrange(len(running))).fail(now_s)
                case 2 if running:
                    sent = running.pop(rng.randrange(len(running)))
                    sent.first(now_s)
                    prompt_tokens = rng.randrange(0, 500)
                    cached = rng.randrange(0, prompt_tokens + 1)
                    answer = rng.randrange(0, 50)
                    sent.end(now_s + rng.random(), usage_of(prompt_tokens, cached, answer))
                case 3:
                    talks[1].pieces = talks[0].pieces[: rng.randrange(1, 5)]
                case _:
                    prompt = rng.choice(talks).prompt(pinned=rng.choice([None, *urls]))
                    there = replicas(*sorted(alive), tokens_in_flight=rng.randrange(9))
                    order = router.order(prompt, there, now_s)
                    assert {each.replica.url for each in order} == alive
                    running.append(router.send(rng.choice(order[:2]), now_s))
        check_books(router)
        for sent in running:
            sent.end(now_s, None)
        router.keep_only(())
        check_books(router)
        assert (router.num_running, len(router.belief), router.belief.replicas) == (0, 0, set())


def check_books(router):
    belief = router.belief
    assert len(belief) <= belief._max_places
    held = Counter()
    for place in belief._places.values():
        assert place.held
        assert place.tokens >= 0
        for url, each in place.held.items():
            assert each.added >= 0
            held[url] += each.kept_tokens
    for url in {*held, *belief._kept}:
        assert held[url] == belief.kept_tokens(url), url
    for lane in router._lanes.values():
        assert lane.prompt >= 0
        assert lane.context >= 0
        assert lane.running >= 0
        assert lane.answer >= -1e-6
