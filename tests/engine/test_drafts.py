"""The MTP layer's rows and drafts, and what becomes of drafts that a rule forbids."""

from __future__ import annotations

import pytest
import torch
from test_constrained import CHOICE, STOP, vocabulary

from engine_support import WEATHER_MESSAGES, WEATHER_TOOL, finish, new_engine, request, tokens_of
from lingflash import LLM
from lingflash.core.config import EngineConfig, parse_num_speculative_tokens
from lingflash.core.errors import ConfigError
from lingflash.core.types import EngineRequest, GrammarSpec, SamplingParams
from lingflash.engine.memory.planning import plan_memory
from lingflash.engine.memory.tensors import allocate_cache
from lingflash.engine.run.speculation import Speculator
from lingflash.engine.schedule.speculation_gain import SpeculationGain
from lingflash.models.forward_batch import make_forward_batch, make_mtp_batch
from models_support import CPU, load
from oracle import write_checkpoint

BLOCK = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(
        write_checkpoint(tmp_path_factory.mktemp("m"), {"hidden_size": 64}), max_model_len=256
    )


def engine(model, **changes):
    options = {"num_speculative_tokens": 3, "max_num_batched_tokens": 512, "num_blocks": 40}
    return new_engine(model=model, batch_invariant=True, **(options | changes))


def rows_from_scratch(model, loop, token_ids):
    """The MTP layer's latents [T - 1, R + P] of tokens 1 .., all at once, and two guesses."""
    cache = allocate_cache(model, loop.runner.plan)
    blocks = list(range(len(token_ids) // BLOCK + 1))
    common = {"block_size": BLOCK, "device": CPU}
    batch = make_forward_batch([token_ids], [0], [blocks], [0], [], batch_invariant=True, **common)
    hidden = model.forward(batch, cache)[: len(token_ids)]
    batch = make_mtp_batch([token_ids[1:]], [1], [1], [blocks], [0], **common)
    out = model.mtp_forward(hidden[:-1], batch.token_ids, batch, cache)
    rows = cache.latents[-1, blocks].flatten(0, 1)[1 : len(token_ids)].clone()
    guesses = [int(model.logits(out).argmax())]
    batch = make_mtp_batch([guesses], [len(token_ids)], [1], [blocks], [0], **common)
    out = model.mtp_forward(out, batch.token_ids, batch, cache)
    return rows, [*guesses, int(model.logits(out).argmax())]


def run_and_read(model, loop, prompt, num_steps):
    """Steps of one greedy request; its tokens, its MTP rows and its drafts."""
    loop.add(request("r", prompt, temperature=0.0, max_tokens=60, ignore_eos=True))
    for _ in range(num_steps):
        loop.step()
    (sequence,) = loop.scheduler._running
    token_ids = sequence.prompt_token_ids + sequence.output_token_ids
    rows = loop.runner.cache.latents[-1, sequence.lease.blocks].flatten(0, 1)
    return token_ids, rows[1 : len(token_ids)], sequence


PROMPT = [(7 * t + 3) % 120 for t in range(70)]


@pytest.mark.parametrize("chunk", [5, 16, 23, 512])
@pytest.mark.parametrize("accepted", [False, True])
def test_rows_when_prompts_come_in_chunks_and_drafts_are_accepted_then_as_from_scratch(
    model, chunk, accepted, monkeypatch
):
    plain = new_engine(model=model, batch_invariant=True, max_num_batched_tokens=512)
    plain.add(request("x", PROMPT, temperature=0.0, max_tokens=60, ignore_eos=True))
    truth = PROMPT + tokens_of(finish(plain))["x", 0]
    if accepted:
        monkeypatch.setattr(
            Speculator,
            "_choose",
            lambda self, out, drafts: [
                truth[d.sequence.num_tokens + len(d.tokens)] for d in drafts
            ],
        )
    loop = engine(model, max_num_batched_tokens=max(chunk, 8))
    num_steps = -(-len(PROMPT) // max(chunk, 8)) + 9
    token_ids, rows, sequence = run_and_read(model, loop, PROMPT, num_steps)
    assert token_ids == truth[: len(token_ids)]
    assert sequence.mtp_first == 1
    assert sequence.mtp_end == len(token_ids)
    expected, guesses = rows_from_scratch(model, loop, token_ids)
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)
    if not accepted:
        assert sequence.draft_tokens[:2] == guesses


def test_rows_when_the_prompt_is_found_again_then_as_from_scratch(model):
    loop = engine(model, prefix_caching=True)
    loop.add(request("first", PROMPT, temperature=0.0, max_tokens=30, ignore_eos=True))
    said = tokens_of(finish(loop))["first", 0]
    prompt = PROMPT + said + [5, 6, 7]
    token_ids, rows, sequence = run_and_read(model, loop, prompt, 6)
    assert sequence.num_cached_tokens >= 80
    assert sequence.mtp_first == 1
    expected, _ = rows_from_scratch(model, loop, token_ids)
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)


def test_rows_when_speculation_was_off_then_go_on_after_the_gap(model):
    loop = engine(model, prefix_caching=True)
    count = loop.speculation.num_draft_tokens
    loop.add(request("r", PROMPT, temperature=0.0, max_tokens=60, ignore_eos=True))
    for off in [False] * 4 + [True] * 5 + [False] * 4:
        loop.speculation.num_draft_tokens = (lambda n: 0) if off else count
        loop.step()
    (sequence,) = loop.scheduler._running
    assert sequence.mtp_first > len(PROMPT) + 4
    assert sequence.mtp_end == sequence.num_tokens
    assert sequence.draft_tokens
    # A prompt whose blocks hold no rows begins with its own.
    loop.abort("r")
    other = engine(model, prefix_caching=True)
    other.speculation.num_draft_tokens = lambda n: 0
    other.add(request("a", PROMPT, max_tokens=2, seed=0))
    finish(other)
    other.speculation.num_draft_tokens = count
    _, _, found = run_and_read(model, other, PROMPT, 2)
    assert found.num_cached_tokens == 64
    assert found.mtp_first == 65


def test_drafts_when_the_grammar_leaves_one_token_then_it_is_drafted_without_the_model():
    loop = new_engine(num_speculative_tokens=4, batch_invariant=True)
    loop.grammars.__init__(vocabulary)
    asked = []
    logits = loop.runner.model.logits

    class Counting:
        def __getattr__(self, name):
            return getattr(logits.__self__, name)

        def logits(self, hidden, row_multiple=1):
            asked.append(hidden.shape[0])
            return logits(hidden, row_multiple)

    loop.runner.speculator._model = Counting()
    grammar = GrammarSpec("regex", "xyzxyzxyz[ab]")
    loop.add(
        EngineRequest(
            request_id="r",
            prompt_token_ids=[1, 2, 3],
            sampling=SamplingParams(seed=1, max_tokens=40),
            grammar=grammar,
        )
    )
    answer = tokens_of(finish(loop))["r", 0]
    assert bytes(answer)[:9] == b"xyzxyzxyz"
    stats = loop.stats()
    assert stats.accepted_draft_tokens >= 7
    assert stats.num_steps <= 4
    assert len(asked) <= 1, "only the last letter is open"


def test_drafts_when_the_grammar_forbids_them_then_cut_before_verification(monkeypatch):
    """The layer's guesses are nonsense here; none that breaks the grammar is ever verified."""
    loop = new_engine(num_speculative_tokens=4, batch_invariant=True)
    loop.grammars.__init__(vocabulary)
    monkeypatch.setattr(Speculator, "_choose", lambda self, out, drafts: [200] * len(drafts))
    loop.add(
        EngineRequest(
            request_id="r",
            prompt_token_ids=[1, 2, 3],
            sampling=SamplingParams(seed=1, max_tokens=40),
            grammar=CHOICE,
        )
    )
    finish(loop)
    assert loop.stats().draft_tokens == 0


def test_drafts_when_the_grammar_forbids_them_at_verification_then_the_matcher_lives_on():
    def run(drafts):
        loop = new_engine(num_speculative_tokens=2 if drafts else 0, batch_invariant=True)
        loop.grammars.__init__(vocabulary)
        sampling = SamplingParams(seed=1, max_tokens=40)
        grammar = GrammarSpec("regex", "abcabc[abc]{2,9}")
        loop.add(
            EngineRequest(request_id="r", prompt_token_ids=[1], sampling=sampling, grammar=grammar)
        )
        events = loop.step()
        while loop.has_work:
            for sequence in loop.scheduler._running:
                sequence.draft_tokens = list(drafts)
            events += loop.step()
        return tokens_of(events)

    assert run([200, 97]) == run([97, 200]) == run([STOP, STOP]) == run([])


def test_drafts_when_one_gives_nan_then_the_sequence_is_computed_again_without(model, monkeypatch):
    prompt = PROMPT[:30]
    plain = new_engine(model=model, batch_invariant=True)
    plain.add(request("r", prompt, temperature=0.0, max_tokens=40, ignore_eos=True))
    expected = tokens_of(finish(plain))
    poison = next(t for t in range(120) if t not in expected["r", 0] and t not in prompt)
    monkeypatch.setattr(Speculator, "_choose", lambda self, out, drafts: [poison] * len(drafts))
    loops = [
        new_engine(model=model, num_speculative_tokens=3, batch_invariant=batch_invariant)
        for batch_invariant in (True, False)
    ]
    saved = model.w_embed[poison].clone()
    try:
        model.w_embed[poison] = float("nan")
        for loop in loops:
            loop.add(request("r", prompt, temperature=0.0, max_tokens=40, ignore_eos=True))
            events = finish(loop)
            assert loop.stats().num_preemptions == 1
            assert tokens_of(events) == expected
            assert events[-1].finish_reason == "length"
    finally:
        model.w_embed[poison] = saved


def test_events_when_drafts_are_accepted_then_count_them(model):
    loop = new_engine(num_speculative_tokens=2, batch_invariant=True, stop_token_ids=(STOP,))
    loop.add(request("r", [1, 2, 3], temperature=0.0, max_tokens=30, ignore_eos=True))
    events = finish(loop)
    stats = loop.stats()
    accepted, rejected = (sum(e.drafts[i] for e in events if e.drafts) for i in (0, 1))
    assert stats.accepted_draft_tokens == accepted
    assert stats.draft_tokens == accepted + rejected > 0
    assert sum(len(e.token_ids) for e in events) == 30


def decode(gain, num_seqs, num_steps, step_s):
    """Steps of a batch whose times and tokens are given for on and off; how many were on."""
    times = {True: 0.0, False: 0.0}
    for _ in range(num_steps):
        is_on = gain.num_draft_tokens(num_seqs) > 0
        tokens, seconds = step_s[is_on]
        times[is_on] += seconds
        gain.observe(num_seqs, tokens * num_seqs, seconds)
    return times


def test_gain_when_speculation_is_slower_then_off_and_costs_under_two_percent():
    gain = SpeculationGain(3)
    step_s = {True: (2, 0.05), False: (1, 0.01)}
    decode(gain, 1, 60, step_s)
    assert gain.num_draft_tokens(1) == 0
    times = decode(gain, 1, 40_000, step_s)
    assert times[True] > 0, "it is tried again now and then"
    lost = times[True] - times[True] / 0.05 * 2 * 0.01
    assert lost < 0.02 * times[False]


def test_gain_when_faster_for_few_and_slower_for_many_then_by_batch_size():
    gain = SpeculationGain(3)
    for _ in range(30):
        decode(gain, 1, 10, {True: (2.5, 0.012), False: (1, 0.01)})
        decode(gain, 32, 10, {True: (2.5, 0.09), False: (1, 0.02)})
    assert gain.num_draft_tokens(1) == 3
    assert gain.num_draft_tokens(32) == gain.num_draft_tokens(17) == 0
    assert gain.num_draft_tokens(33) == 0, "as its neighbour, until it is judged"


def test_gain_when_the_work_changes_then_decides_anew():
    gain = SpeculationGain(2)
    decode(gain, 4, 100, {True: (2.5, 0.01), False: (1, 0.01)})
    assert gain.num_draft_tokens(4) == 2
    decode(gain, 4, 3000, {True: (1.1, 0.02), False: (1, 0.01)})
    assert gain.num_draft_tokens(4) == 0


def test_config_when_the_number_is_wrong_or_no_layer_is_there_then_says_so(tmp_path):
    for wrong in (5, -1):
        with pytest.raises(
            ConfigError, match=r"num-speculative-tokens is .*auto, or 0 \(off\) to 4"
        ):
            EngineConfig(num_speculative_tokens=wrong)
    with pytest.raises(ConfigError, match="num-speculative-tokens is 'many'"):
        parse_num_speculative_tokens("many")
    assert parse_num_speculative_tokens("auto") == "auto"
    folder = write_checkpoint(tmp_path / "none", {"num_nextn_predict_layers": 0})
    with pytest.raises(ConfigError, match=r"has no tensors of the MTP layer \(model.layers.4"):
        plan_memory(EngineConfig(model=str(folder), num_speculative_tokens=2))
    assert plan_memory(EngineConfig(model=str(folder))).num_speculative_tokens == 0
    plan = plan_memory(EngineConfig(num_speculative_tokens=4, device="cpu"))
    assert plan.num_speculative_tokens == 4
    assert plan_memory(EngineConfig(device="cpu")).num_speculative_tokens == 0


def test_ling_nano_when_speculating_then_the_same_answers_in_fewer_steps():
    """The bundled model's own layer, several tokens an event, stop strings and tool grammars."""
    greedy = SamplingParams(temperature=0.0, max_tokens=60, logprobs=2)
    params = [
        greedy,
        SamplingParams(temperature=1.2, seed=3, max_tokens=60, n=2, logprobs=1),
        SamplingParams(temperature=0.0, max_tokens=60, stop=("tomorrow", "bon"), min_tokens=3),
        SamplingParams(temperature=0.7, seed=5, max_tokens=30, frequency_penalty=0.4, top_p=0.9),
    ]

    def run(num_drafts):
        llm = LLM(
            batch_invariant=True,
            num_speculative_tokens=num_drafts,
            max_num_seqs=4,
            max_model_len=512,
        )
        loop = llm._loop
        if num_drafts:
            loop.speculation.is_adaptive = False
        asked = {"tools": [WEATHER_TOOL]}
        free = llm.chat([WEATHER_MESSAGES] * len(params), params, **asked)
        bound = llm.chat(WEATHER_MESSAGES, greedy, tool_choice="required", **asked)
        outputs = [o for answer in [*free, *bound] for o in answer.outputs]
        found = [(o.text, o.token_ids, o.logprobs, o.finish_reason, o.stop_reason) for o in outputs]
        return found, loop.stats()

    expected, plain = run(0)
    assert "get_weather" in expected[0][0]
    for num_drafts in (1, 3):
        found, stats = run(num_drafts)
        assert found == expected
        assert stats.accepted_draft_tokens > 0.3 * stats.draft_tokens
        assert stats.num_steps < 0.8 * plain.num_steps
