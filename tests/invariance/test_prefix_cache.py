"""The prefix cache: on = off, bit for bit, whatever was kept, evicted, aborted or shared."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_support import check_cache, check_idle
from engine_support import Recorder, finish, new_engine, poison_rows, request, tokens_of
from lingflash.cache.memory_ops import CopyState, SaveState
from lingflash.cache.prefix_tree import block_keys, root_key
from lingflash.core.types import GrammarSpec
from lingflash.engine.run import model_runner
from lingflash.structured.grammar import GrammarCompiler
from lingflash.structured.vocabulary import Vocabulary
from models_support import load
from oracle import write_checkpoint

_small = None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four layers, width 64: small enough for hundreds of conversations."""
    global _small
    if _small is None:
        folder = tmp_path_factory.mktemp("small")
        _small = load(write_checkpoint(folder, {"hidden_size": 64}), max_model_len=256)
    return _small


@pytest.fixture(scope="module", autouse=True)
def machine_checked_once(model):
    """Each engine would compute the same check of the same model again."""
    engine(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_runner, "check_batch_invariance", lambda *args: None)
        yield


def engine(model, **changes):
    options = {"num_blocks": 40, "prefix_caching": True, "max_num_seqs": 4, "max_model_len": 224}
    options |= {"batch_invariant": True, "max_num_batched_tokens": 48}
    return new_engine(model=model, **(options | changes))


# The tokens are the first bytes, one special and one stop token.
GRAMMARS = GrammarCompiler(
    lambda: Vocabulary(
        token_bytes=[bytes([i]) for i in range(126)] + [b"<tag>", b"<stop>"],
        special_ids=[126],
        stop_ids=[127],
        size=128,
        encode=lambda text: list(text.encode()),
    )
)
PAIRS = GrammarSpec("regex", "([a-m][n-z])*")


def start(loop, name, spec):
    spec = dict(spec)
    matcher = GRAMMARS.compile(PAIRS) if spec.pop("constrained") else None
    loop.add(request(name, **spec), matcher)


def fresh(model, spec, cache={}):  # noqa: B006 - one result per request and process is the point
    """Logits and tokens of a request on an engine that has seen nothing."""
    if repr(spec) not in cache:
        with pytest.MonkeyPatch.context() as patch:
            recorder = Recorder()
            recorder.install(patch)
            loop = engine(model, prefix_caching=False, max_num_batched_tokens=256)
            start(loop, "x", spec)
            tokens = tokens_of(finish(loop))
        logits = {key[1:]: row for key, row in recorder.logits.items()}
        cache[repr(spec)] = logits, {choice: ids for (_, choice), ids in tokens.items()}
    return cache[repr(spec)]


# A turn continues one of the conversations so far (or none), at its end or in the middle.
turns = st.lists(
    st.tuples(
        st.integers(0, 5),  # which earlier request it continues, modulo their number
        st.sampled_from([0.0, 0.4, 0.9, 1.0, 1.0, 1.0]),  # how much of its tokens
        st.integers(0, 50),  # new tokens
        st.integers(0, 3),  # whose content
        st.sampled_from([1, 3, 8, 18]),  # max_tokens
        st.sampled_from([0.0, 0.0, 1.0]),  # temperature
        st.sampled_from([1, 1, 2]),  # n
        st.booleans(),  # with a grammar
        st.integers(0, 4),  # steps before the next one comes
    ),
    min_size=2,
    max_size=8,
)


@st.composite
def workloads(draw):
    return {
        "turns": draw(turns),
        # Fewest of all: one sequence of the longest.
        "num_blocks": draw(st.sampled_from([14, 14, 15, 16, 18, 22, 30, 50])),
        "num_host_blocks": draw(st.sampled_from([0, 8, 20, 60, 60])),
        "chunk": draw(st.sampled_from([8, 17, 48, 200])),
        "max_num_seqs": draw(st.integers(1, 4)),
        "abort": draw(st.none() | st.integers(0, 6)),
        "reset": draw(st.none() | st.integers(0, 6)),
        "repeats": draw(st.integers(0, 3)),
        "lost_copy": draw(st.none() | st.integers(0, 9)),
    }


@st.composite
def evictions(draw):
    """Long prompts in turns over little memory: most of what is found comes from the host tier."""
    contents = draw(st.lists(st.integers(0, 2), min_size=4, max_size=9))
    lengths = draw(st.lists(st.sampled_from([60, 97, 130]), min_size=9, max_size=9))
    return {
        "turns": [
            (0, 0.0, length, content, draw(st.sampled_from([1, 1, 2])), 0.0, 1, False, 9)
            for content, length in zip(contents, lengths, strict=False)
        ],
        "num_blocks": draw(st.sampled_from([14, 15, 18])),
        "num_host_blocks": draw(st.sampled_from([16, 40, 80])),
        "chunk": draw(st.sampled_from([48, 200])),
        "max_num_seqs": draw(st.integers(1, 3)),
        "abort": None,
        "reset": draw(st.sampled_from([None, None, 3])),
        "repeats": 3,
        "lost_copy": draw(st.none() | st.integers(0, 9)),
    }


def lose_copies(loop, lost):
    """Make one copy to the host tier fail in its middle, half of it written."""
    host = loop.runner.memory.host
    if host is None or lost is None:
        return
    write, count = host.write, itertools.count()

    def failing(content, places):
        if next(count) == lost:
            write(torch.full_like(content[:1], 77), places[:1])
            raise OSError("lost power")
        write(content, places)

    host.write = failing


def play(
    model,
    turns,
    num_blocks,
    num_host_blocks,
    chunk,
    max_num_seqs,
    abort,
    reset,
    repeats,
    lost_copy,
):
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        loop = engine(
            model,
            num_blocks=num_blocks,
            num_host_blocks=num_host_blocks,
            max_num_batched_tokens=chunk,
            max_num_seqs=max_num_seqs,
        )
        lose_copies(loop, lost_copy)
        specs, events = [], []
        for i, turn in enumerate(turns):
            source, part, new, content, max_tokens, temperature, n, constrained, steps = turn
            base = []
            if specs:
                j = source % len(specs)
                said = tokens_of(events).get((f"r{j}", 0), [])
                base = specs[j]["token_ids"] + said
                base = base[: int(len(base) * part)]
            token_ids = (base + [(content * 31 + 7 * t + 1) % 120 for t in range(new)])[:180] or [5]
            spec = {
                "token_ids": token_ids,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": content,
                "n": n,
                "ignore_eos": True,
                "constrained": constrained,
            }
            specs.append(spec)
            start(loop, f"r{i}", spec)
            for _ in range(steps):
                events += loop.step()
                check(loop)
            if i == abort:
                events += loop.abort(f"r{i}")
            if i == reset:
                loop.reset_prefix_cache()
            check(loop)
        events += finish(loop)
        settle(loop)
        # What was evicted by then has come to rest in the host tier.
        for spec in specs[:repeats]:
            specs.append(spec)
            start(loop, f"r{len(specs) - 1}", spec)
            events += finish(loop)
            check(loop)
    assert not recorder.clashes, "a recomputed position gave other bits"
    for (name, choice, position), row in recorder.logits.items():
        expected, _ = fresh(model, specs[int(name[1:])])
        assert torch.equal(row, expected[choice, position]), (name, choice, position)
    for (name, choice), tokens in tokens_of(events).items():
        expected = fresh(model, specs[int(name[1:])])[1][choice]
        complete = abort is None or name != f"r{abort}"
        assert tokens == (expected if complete else expected[: len(tokens)])
    stats = loop.stats()
    settle(loop)
    check_idle(loop.scheduler.cache)
    return stats


def under_way(loop):
    host = loop.runner.memory.host
    return [] if host is None else [copy for copy, _ in host._pending]


def check(loop):
    check_cache(loop.scheduler.cache, under_way(loop))


def settle(loop):
    """Carry out what waits and wait for what is under way."""
    memory, cache = loop.runner.memory, loop.scheduler.cache
    memory.run(cache.take_ops())
    while under_way(loop):
        for copy, succeeded in memory.poll():
            cache.host_copied(copy, succeeded=succeeded)


EXAMPLES = int(os.environ.get("LINGFLASH_TEST_EXAMPLES", "1200"))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=evictions())
def test_answers_when_prefixes_come_back_from_the_host_then_bitwise_equal(model, workload):
    play(model, **workload)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_answers_when_conversations_share_and_branch_then_bitwise_equal_to_fresh(model, workload):
    play(model, **workload)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads() | evictions())
def test_answers_when_many_conversations_share_and_branch_then_bitwise_equal(model, workload):
    play(model, **workload)


def ask(loop, name, token_ids, **sampling):
    options = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}
    loop.add(request(name, token_ids, **(options | sampling)))
    return finish(loop)


def cached(events):
    return next(e.num_cached_tokens for e in events)


PROMPT = [(7 * t) % 120 for t in range(100)]


def test_prompt_when_repeated_then_all_but_its_last_block_is_found(model):
    for length in (100, 96, 97, 112):
        loop = engine(model)
        prompt = (PROMPT + PROMPT)[:length]
        assert cached(ask(loop, "a", prompt)) == 0
        events = ask(loop, "b", prompt)
        assert cached(events) == (length - 1) // 16 * 16


def test_conversation_when_continued_then_only_the_tail_is_computed(model):
    loop = engine(model)
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=30))["a", 0]
    before = loop.stats().prompt_tokens
    longer = PROMPT + said + PROMPT[:20]
    assert cached(ask(loop, "b", longer)) == len(PROMPT) + len(said) - 1  # the last is not computed
    assert loop.stats().prompt_tokens - before == 20 + 1
    assert cached(ask(loop, "c", PROMPT)) == 96
    assert loop.stats().prefix_hit_tokens == 129 + 96


def test_conversation_when_continued_twice_then_the_second_finds_full_blocks(model):
    loop = engine(model)
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=30))["a", 0]
    for content, hit in ((1, 129), (2, 128)):
        assert cached(ask(loop, f"b{content}", PROMPT + said + [content] * 20)) == hit


def test_conversation_when_its_end_was_rendered_otherwise_then_finds_the_last_full_block(model):
    loop = engine(model)
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=34))["a", 0]
    assert cached(ask(loop, "b", PROMPT + said[:31] + [5] * 20)) == 128


def test_end_when_others_need_the_memory_then_it_goes_first(model):
    loop = engine(model, max_num_seqs=1)
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=30))["a", 0]
    ask(loop, "other", [9] * 150)  # takes the only slot: the states move to blocks
    assert cached(ask(loop, "b", PROMPT + said + [3] * 9)) == 129
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=30))["a", 0]
    ask(loop, "large", [8] * 220)
    ask(loop, "larger", [7] * 220)
    assert cached(ask(loop, "b", PROMPT + said + [3] * 9)) % 16 == 0


def test_end_when_the_cache_is_reset_then_it_is_not_found(model):
    loop = engine(model)
    said = tokens_of(ask(loop, "a", PROMPT, max_tokens=30))["a", 0]
    loop.reset_prefix_cache()
    assert cached(ask(loop, "b", PROMPT + said + [3] * 9)) == 0


def test_conversations_when_they_part_then_the_third_finds_the_common_part(model):
    loop = engine(model)
    for name, other in (("a", 1), ("b", 2)):
        ask(loop, name, PROMPT[:64] + [other] * 40)
    assert cached(ask(loop, "c", PROMPT[:64] + [3] * 40)) == 64


def test_salts_when_different_then_nothing_is_shared(model):
    loop = engine(model)
    for salt, hit in (("a", 0), ("b", 0), ("a", 96), ("", 0)):
        loop.add(replace(request("r", PROMPT, max_tokens=2, seed=0), cache_salt=salt))
        assert cached(finish(loop)) == hit, salt


def test_choices_and_twins_when_sent_together_then_the_prompt_is_computed_once(model):
    loop = engine(model, max_num_batched_tokens=512)
    loop.add(request("a", PROMPT, n=3, max_tokens=2, seed=1))
    loop.add(request("b", PROMPT, max_tokens=2, seed=1))
    finish(loop)
    assert loop.stats().prompt_tokens == 100 + 3 * 4


def test_prompt_logprobs_when_asked_for_then_nothing_is_taken_from_the_cache(model):
    loop = engine(model)
    ask(loop, "a", PROMPT)
    events = ask(loop, "b", PROMPT, prompt_logprobs=1)
    assert cached(events) == 0
    assert len(events[0].prompt_logprobs) == 100


def test_nan_when_a_request_gave_it_then_its_blocks_are_not_found(model):
    loop = engine(model)
    poison_rows(loop, "bad")
    ask(loop, "bad", PROMPT)
    assert cached(ask(loop, "good", PROMPT)) == 0
    assert loop.stats().free_blocks == 40


def test_step_when_it_fails_then_its_copies_are_not_trusted(model):
    loop = engine(model)
    ask(loop, "a", PROMPT, max_tokens=20)  # leaves a copy to be made by the next step
    launch, failed = loop.runner.launch, []

    def failing(output):
        assert any(isinstance(op, CopyState | SaveState) for op in output.memory_ops)
        failed.append(True)
        raise RuntimeError("lost power")

    loop.runner.launch = failing
    ask(loop, "b", [3, 4])
    loop.runner.launch = launch
    assert failed
    assert cached(ask(loop, "again", PROMPT)) == 0
    expected = tokens_of(ask(engine(model), "c", PROMPT + [1] * 20))
    assert tokens_of(ask(loop, "c", PROMPT + [1] * 20)) == expected


def test_keys_when_tokens_salt_or_prefix_differ_then_differ():
    chains = [
        block_keys(root_key(salt), ids, 16)
        for salt in ("", "s")
        for ids in ([1] * 48, [1] * 32 + [2] * 16, [2] + [1] * 47)
    ]
    assert [len(c) for c in chains] == [3] * 6
    assert chains[0][:2] == chains[1][:2]
    assert len({key for chain in chains for key in chain}) == 2 * (3 + 1 + 3)


def test_fast_mode_when_cached_then_close_to_off_and_divergences_have_a_near_tie():
    """The default mode promises closeness, not bits: count divergences and look at their margin."""

    def run(caching, number):
        recorder, prompt = Recorder(), [(13 * t + 31 * number) % 500 for t in range(40 + number)]
        with pytest.MonkeyPatch.context() as patch:
            recorder.install(patch)
            loop = new_engine(prefix_caching=caching, num_blocks=40)
            first = tokens_of(ask(loop, "first", prompt, max_tokens=9))["first", 0]
            # Given to both, so that the second turn's prompts are the same.
            events = ask(loop, "second", prompt + firsts.setdefault(number, first) + [7] * 11)
        return recorder.logits, cached(events)

    firsts, diverged = {}, 0
    for number in range(12):
        off, none = run(False, number)
        on, found = run(True, number)
        assert (none, found > 0) == (0, True)
        for key in sorted(off, key=lambda key: (key[0], key[2])):
            if key not in on:
                break
            # Only a flipped expert or an earlier flipped token moves logits this far.
            if (on[key] - off[key]).abs().max() > 2e-3:
                diverged += 1
                break
            if on[key].argmax() != off[key].argmax():
                best = off[key].topk(2).values
                assert best[0] - best[1] < 4e-3, key
                diverged += 1
                break
    assert diverged <= 2, f"{diverged} of 12 conversations diverged"
