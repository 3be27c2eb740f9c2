"""The cache's books as a state machine, with a memory of labels: what is read is what was kept."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_support import check_cache, check_idle
from lingflash.cache.block_pool import IndexPool
from lingflash.cache.eviction import EvictionQueue, checkpoint_interval
from lingflash.cache.manager import CacheManager
from lingflash.cache.memory_ops import (
    CopyState,
    LoadBlocks,
    LoadState,
    SaveState,
    StoreBlocks,
    StoreState,
    ZeroBlocks,
    ZeroSlot,
)
from lingflash.cache.prefix_tree import KeyMemo, block_keys, root_key

SIZE = 4
ROOTS = [root_key("a"), root_key("b")]


class LabelMemory:
    """Both tiers with a label in each block, and copies to the host that take their time.

    A slot has two labels, of its states and of its tails.
    """

    def __init__(self):
        self.device, self.host, self.slots = {}, {}, {}
        self.pending = deque()

    def run(self, ops):
        for op in ops:
            match op:
                case ZeroBlocks(blocks):
                    self.device |= dict.fromkeys(blocks, "zeros")
                case ZeroSlot(slot):
                    self.slots[slot] = "zeros", "zeros"
                case CopyState(slot, target):
                    tail = self.slots.get(target, (None, "unknown"))[1]
                    self.slots[target] = self.slots[slot][0], tail
                case SaveState(slot, blocks, with_tail):
                    label = self.slots[slot] if with_tail else self.slots[slot][0]
                    self.device |= {b: (label, i) for i, b in enumerate(blocks)}
                case LoadState(blocks, slot, from_host, with_tail):
                    tier = self.host if from_host else self.device
                    (label,) = {tier[b][0] for b in blocks}
                    assert [tier[b][1] for b in blocks] == list(range(len(blocks)))
                    self.slots[slot] = label if with_tail else (label, self.slots[slot][1])
                case StoreBlocks(blocks, copy):
                    self.pending.append((copy, [self.device[b] for b in blocks]))
                case StoreState(slot, copy):
                    content = [(self.slots[slot][0], i) for i in range(len(copy.blocks))]
                    self.pending.append((copy, content))
                case LoadBlocks(sources, blocks):
                    pairs = zip(blocks, sources, strict=True)
                    self.device |= {b: self.host[source] for b, source in pairs}

    def land(self, succeeds):
        copy, content = self.pending.popleft()
        count = len(content) if succeeds else len(content) // 2
        self.host |= dict(zip(copy.blocks[:count], content[:count], strict=True))
        return copy


class Running:
    """A sequence: its tokens, its lease, and whether its memory was prepared.

    It ends in an unfinished block of `rest` tokens like those of a block that may follow, and one
    that is not computed.
    """

    def __init__(self, root, digits, rest):
        self.root, self.lease, self.is_ready = root, None, False
        self.computed_rest = ()
        self.set_digits(digits, rest)

    def set_digits(self, digits, rest=()):
        self.digits, self.rest = digits, tuple(rest)
        self.tokens = [d for d in digits for _ in range(SIZE)] + [*rest, 9]
        self.keys = block_keys(self.root, self.tokens, SIZE)

    def tokens_at(self, start, count):
        return self.tokens[start : start + count]


class CacheMachine(RuleBasedStateMachine):
    """Leases, steps, copies that land or fail, failures and resets in any order."""

    def __init__(self):
        super().__init__()
        self.cache = CacheManager(
            12, SIZE, 3, 3, 10, end_blocks=4, block_bytes=64, slot_bytes=100
        )  # fmt: skip
        self.memory = LabelMemory()
        self.running = []

    @rule(
        root=st.sampled_from(ROOTS),
        digits=st.lists(st.integers(0, 1), min_size=1, max_size=5),
        rest=st.sampled_from([(), (0,), (1,), (0, 0), (1, 1)]),
    )
    def admit(self, root, digits, rest):
        sequence = Running(root, digits, rest)
        lease = self.cache.admit(len(sequence.tokens), sequence.keys, sequence.tokens_at)
        if lease is None:
            return
        sequence.lease = lease
        keys = sequence.keys[: (len(sequence.tokens) - 1) // SIZE]
        report = self.cache.explain_miss(lease, keys, root, sequence.tokens_at)
        assert (report.result == "found") == (lease.num_hit_tokens >= len(keys) * SIZE)
        if report.result == "differs":
            assert lease.num_hit_tokens <= report.position < len(sequence.tokens)
        self.running.append(sequence)

    @rule(fails=st.sampled_from([False] * 9 + [True]))
    def step(self, fails):
        ops = self.cache.take_ops()
        if fails:
            self.memory.run(ops[: len(ops) // 2])
            for sequence in self.running:
                self.cache.release(sequence.lease, keep_prefix=False)
            self.running = []
            self.cache.step_failed(ops)
            return
        self.memory.run(ops)
        for sequence in self.running:
            lease, keys = sequence.lease, sequence.keys
            if not sequence.is_ready:  # what was found is what this sequence would have computed
                num_hit, part = divmod(lease.num_hit_tokens, SIZE)
                found = tuple(sequence.tokens_at(num_hit * SIZE, part))
                state = ("after", keys[num_hit - 1]) if num_hit else "zeros"
                assert self.memory.slots[lease.state_slot] == (state, found or "zeros")
                for key, block in zip(keys[:num_hit], lease.blocks, strict=False):
                    assert self.memory.device[block] == ("latents", key)
                own = [self.memory.device[b] for b in lease.blocks if b in lease.own_blocks]
                if part:
                    assert own.pop(0) == ("unfinished", keys[num_hit - 1], found)
                assert all(label == "zeros" for label in own)
                sequence.is_ready = True
            for key, block in zip(keys, lease.blocks, strict=False):
                if block in lease.own_blocks:
                    self.memory.device[block] = ("latents", key)
                assert self.memory.device[block] == ("latents", key)
            self.memory.slots[lease.state_slot] = ("after", keys[-1]), sequence.rest or "zeros"
            self.cache.publish(lease, keys, sequence.root, sequence.tokens_at)
            sequence.computed_rest = sequence.rest
            if sequence.rest:
                label = ("unfinished", keys[-1], sequence.rest)
                self.memory.device[lease.blocks[len(keys)]] = label

    def pick(self, data, *, ready=True):
        some = [s for s in self.running if s.is_ready or not ready]
        return data.draw(st.sampled_from(some)) if some else None

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def checkpoint(self, data):
        sequence = self.pick(data)
        if sequence is None or len(sequence.lease.nodes) < len(sequence.keys):
            return
        place = len(sequence.keys) * SIZE
        if not self.cache.checkpoint(sequence.lease, place) and not sequence.lease.is_detached:
            node = sequence.lease.nodes[-1]
            has_one = node.has_device_state or node.host_state is not None
            assert has_one or self.cache.num_free_blocks < 3

    @precondition(lambda self: self.running)
    @rule(data=st.data(), digit=st.integers(0, 1))
    def grow(self, data, digit):
        sequence = self.pick(data)
        if sequence is None or len(sequence.lease.nodes) < len(sequence.keys):
            return
        # The block of the last token was leased with the rest; its tokens are known now.
        if self.cache.grow(sequence.lease, len(sequence.tokens) + SIZE):
            following = sequence.rest[0] if sequence.rest else digit
            sequence.set_digits([*sequence.digits, following])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.sampled_from([True, True, True, False]))
    def release(self, data, keep):
        sequence = self.pick(data, ready=False)
        self.running.remove(sequence)
        end = sequence.computed_rest if keep else ()
        self.cache.release(sequence.lease, keep_prefix=keep, end_tokens=end)

    @precondition(lambda self: self.memory.pending)
    @rule(succeeds=st.sampled_from([True, True, True, False]))
    def land(self, succeeds):
        self.cache.host_copied(self.memory.land(succeeds), succeeded=succeeds)

    @rule(really=st.sampled_from([False] * 5 + [True]))
    def reset(self, really):
        if really:
            self.cache.reset()
            assert len(self.cache._kept.tree) == 0

    @invariant()
    def accounts_are_exact(self):
        check_cache(self.cache, [copy for copy, _ in self.memory.pending if not copy.is_settled])

    def teardown(self):
        for sequence in self.running:
            self.cache.release(sequence.lease)
        self.memory.run(self.cache.take_ops())
        while self.memory.pending:
            self.cache.host_copied(self.memory.land(True))
        check_idle(self.cache)


CacheMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestCacheMachine = CacheMachine.TestCase


class ManySteps(CacheMachine):
    """The same for longer."""


ManySteps.TestCase.settings = settings(max_examples=3000, stateful_step_count=60, deadline=None)
TestManySteps = pytest.mark.slow(pytest.mark.timeout(900)(ManySteps.TestCase))


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "b"]), st.lists(st.integers(0, 1), max_size=14)),
        max_size=25,
    )
)
def test_keys_when_remembered_then_are_those_of_the_tokens(chains):
    memo = KeyMemo(2)
    for salt, tokens in chains:
        assert memo.keys(root_key(salt), tokens) == block_keys(root_key(salt), tokens, 2)


class Talk:
    """Conversations against a cache, each computed at once; for what is found and why not."""

    def __init__(self, num_blocks=30, checkpoint_blocks=2, num_host_blocks=0):
        # One slot: the running sequence has it, and checkpoints lie in blocks.
        self.cache = CacheManager(num_blocks, SIZE, 1, checkpoint_blocks, num_host_blocks)

    def ask(self, tokens, salt="", *, checkpoint=True):
        """Blocks found, and why no more."""
        tokens = list(tokens)
        root = root_key(salt)
        keys = block_keys(root, tokens, SIZE)
        lease = self.cache.admit(len(tokens), keys)
        looked_up = keys[: (len(tokens) - 1) // SIZE]

        def at(start, count):
            return tokens[start : start + count]

        report = self.cache.explain_miss(lease, looked_up, root, at)
        self.cache.publish(lease, keys, root, at)
        if checkpoint:
            self.cache.checkpoint(lease, len(looked_up) * SIZE)
        found = lease.num_hit_tokens // SIZE
        self.cache.release(lease)
        return found, report.result, report.position

    def settle(self):
        """Make all copies."""
        for op in self.cache.take_ops():
            if isinstance(op, StoreBlocks | StoreState):
                self.cache.host_copied(op.copy)


def test_report_when_prefixes_are_partly_known_then_says_where_and_why():
    talk = Talk()
    prompt = list(range(17))
    assert talk.ask(prompt[:4]) == (0, "too_short", None)
    talk = Talk()
    assert talk.ask(prompt) == (0, "no_prefix", 0)
    assert talk.ask(prompt) == (4, "found", None)
    assert talk.ask([*prompt[:16], *range(50, 60)]) == (4, "new_tokens", 16)
    assert talk.ask([*prompt[:16], 50, 51, 0, 0, 0, 0]) == (4, "differs", 18)
    assert talk.ask([*prompt[:10], *[99] * 10]) == (0, "no_checkpoint", 8)
    assert talk.ask([7, *prompt[1:]]) == (0, "no_prefix", 0)
    assert talk.ask([0, 7, 7, 7, 7]) == (0, "differs", 1)


def test_report_when_the_salt_is_anothers_then_knows_nothing():
    talk = Talk()
    talk.ask(range(17), "mine")
    assert talk.ask(range(17), "yours") == (0, "no_prefix", 0)
    assert talk.ask([0, 1, 2, 99, 5], "third") == (0, "no_prefix", 0)


def test_report_when_something_was_evicted_then_says_what():
    talk = Talk(num_blocks=12)
    talk.ask(range(17))
    talk.ask([*range(17), *range(70, 90)], checkpoint=False)
    # The longest unused checkpoint goes first, and only then the blocks that it made usable.
    (node,) = [n for n in talk.cache._kept.tree if n.state is not None]
    talk.cache._kept._evict_state(node)
    assert talk.ask(range(17), checkpoint=False) == (0, "checkpoint_evicted", 16)
    talk.ask(range(500, 540))
    result = talk.ask(range(17))[1]
    assert result == "blocks_evicted"


def test_host_tier_when_the_device_is_full_then_brings_back_what_was_copied_and_no_more():
    talk = Talk(num_blocks=10, num_host_blocks=20)
    prompt = list(range(17))
    talk.ask(prompt)
    talk.ask(range(100, 133))  # takes nine of the ten blocks
    # The copies are under way: they count for nothing.
    assert talk.ask(prompt, checkpoint=False)[0] == 0
    talk = Talk(num_blocks=10, num_host_blocks=20)
    talk.ask(prompt)
    talk.ask(range(100, 133))
    talk.settle()
    assert talk.cache._kept.host.num_used > 0
    assert talk.ask(prompt) == (4, "found", None)
    ops = talk.cache.take_ops()
    assert sum(isinstance(op, LoadBlocks) for op in ops) == 1
    assert any(isinstance(op, LoadState) and op.from_host for op in ops)


def test_eviction_when_one_saves_more_than_another_then_it_stays_longer_but_not_for_ever():
    values = {"long": 5.0, "short": 1.0}
    queue = EvictionQueue(lambda name: values.get(name, 1.0))
    queue.offer("long")
    queue.offer("short")
    assert queue.pop() == "short"
    for number in range(3):
        queue.offer(f"next {number}")
        assert queue.pop() == f"next {number}"
    values["long"] = 1.0  # something else saves the rest by now
    queue.offer("newest")
    assert [queue.pop() for _ in range(3)] == ["long", "newest", None]


def test_eviction_when_an_item_is_used_again_then_goes_later():
    queue = EvictionQueue(lambda name: 1.0)
    for name in "abc":
        queue.offer(name)
    queue.offer("a")
    queue.discard("b")
    assert [queue.pop() for _ in range(3)] == ["c", "a", None]


def test_pool_when_taken_from_both_ends_then_each_has_one_owner():
    pool = IndexPool(6)
    assert pool.take(2) == [0, 1]
    assert pool.take(2, highest=True) == [5, 4]
    pool.give_back([0, 5])
    assert pool.take(2, highest=True) == [5, 3]
    assert pool.take(2) == [0, 2]
    assert pool.take(1) is None


@pytest.mark.parametrize("num_tokens", [100, 5_000, 200_000])
@pytest.mark.parametrize("checkpoint_tokens", [100, 12_700])
def test_interval_then_no_other_costs_less(num_tokens, checkpoint_tokens):
    """Half an interval computed again, and what the checkpoints' memory would have held."""

    def cost(interval):
        return interval / 2 + num_tokens / interval * checkpoint_tokens

    best = checkpoint_interval(num_tokens, checkpoint_tokens, 16)
    assert best % 16 == 0
    others = range(16, 8 * num_tokens, 16)
    assert cost(best) <= 1.01 * min(map(cost, others))
