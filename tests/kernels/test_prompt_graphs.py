"""Short prompts as graphs against the general path; without a GPU launched one by one."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from engine_support import finish, new_engine, request, tokens_of
from lingflash.engine.memory.tensors import MOST_PROMPT_ROWS, PROMPT_ROWS
from lingflash.engine.run import model_runner, prompt_graphs
from lingflash.engine.run.prompt_graphs import PromptGraphs
from lingflash.engine.run.ways.general_forward import GeneralForward
from lingflash.engine.run.ways.prompt_graph import PromptGraph
from lingflash.engine.schedule.step import StepResult
from lingflash.models import forward_batch
from lingflash.models.forward_batch import make_forward_batch
from models_support import BLOCK, load, new_cache
from oracle import write_checkpoint

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32


def plan_for_a_gpu(monkeypatch):
    for name in ("plan_lightning", "plan_mla"):
        plan = partial(getattr(forward_batch, name), for_gpu=True)
        monkeypatch.setattr(forward_batch, name, plan)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # Two MLA layers: one between pieces, and the last.
    changes = {"num_hidden_layers": 4, "layer_group_size": 2, "num_experts": 8, "n_group": 2}
    folder = write_checkpoint(tmp_path_factory.mktemp("m"), changes | {"topk_group": 1})
    return load(folder, dtype=DTYPE, device=DEVICE)


def new_graphs(model, cache):
    graphs = PromptGraphs(model, cache, use_graphs=HAS_GPU)
    graphs.capture_all(None)
    return graphs


def near(mine, theirs, tolerance):
    return (mine.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()


def test_steps_when_padded_then_are_those_of_the_model_and_touch_nothing_else(model, monkeypatch):
    """Prompts that begin, go on and end in a step, alone and beside sequences that decode."""
    plan_for_a_gpu(monkeypatch)
    cache = new_cache(model, slots=6, blocks=60)
    for pool in (cache.latents, cache.states, cache.tail_k, cache.tail_v):
        pool.normal_()  # what the padding must not write
    cache.forget_slots([0, 1, 3])
    if not HAS_GPU:  # the interpreter is slow
        monkeypatch.setattr(prompt_graphs, "PROMPT_ROWS", {3: [24], 7: [32]})
    graphs = new_graphs(model, cache)
    tables = [list(range(20)), list(range(20, 30)), list(range(30, 40))]
    slots = [3, 0, 1]
    ids = [[(7 * t + 3 * i) % 100 for t in range(300)] for i in range(3)]
    done = [0, 0, 0]

    # Query tokens of each sequence; rows of the last layer that are wanted.
    for lens, wanted in (
        ([19, 0, 0], [0]), ([9, 0, 0], []), ([1, 5, 18], [0, 2]),
    ):  # fmt: skip
        who = [i for i in range(3) if lens[i]]
        batch = make_forward_batch(
            [ids[i][done[i] : done[i] + lens[i]] for i in who], [done[i] for i in who],
            [tables[i] for i in who], [slots[i] for i in who], [], block_size=BLOCK,
            device=DEVICE, only_last=[who.index(i) for i in wanted],
        )  # fmt: skip
        other = copy.deepcopy(cache)
        expected = model.forward(batch, other)
        got = graphs.forward(batch)
        tolerance = 2e-2 if HAS_GPU else 1e-5
        assert got.shape == expected.shape == (len(wanted), model.config.hidden_size)
        assert near(got, expected, tolerance)
        for mine, theirs in (
            (cache.latents, other.latents), (cache.states, other.states),
            (cache.tail_k, other.tail_k), (cache.tail_v, other.tail_v),
        ):  # fmt: skip
            rest = [n for n in range(mine.shape[1] - 1) if mine is cache.latents or n not in slots]
            is_spare = mine.shape[1] - 1
            assert near(mine[:, :is_spare], theirs[:, :is_spare], tolerance)
            if mine is not cache.latents:
                assert torch.equal(mine[:, rest], theirs[:, rest])
                assert torch.equal(mine[:, is_spare], theirs[:, is_spare])
        done = [a + b for a, b in zip(done, lens, strict=True)]


class SavingRunner(model_runner.ModelRunner):
    """As on a GPU: prompts as graphs, states left on the way; launched one by one."""

    def __init__(self, model, plan, **options) -> None:
        original = model_runner.allocate_cache
        model_runner.allocate_cache = lambda model, plan: original(
            model, model_runner.replace(
                plan, num_state_slots=plan.num_state_slots + 2, num_blocks=plan.num_blocks + 1
            ),
        )  # fmt: skip
        try:
            super().__init__(model, plan, **options)
        finally:
            model_runner.allocate_cache = original
        self.save_slot = plan.num_state_slots
        graphs = PromptGraphs(model, self.cache, use_graphs=False)
        self.ways = [PromptGraph(graphs, self.general), self.general]


@pytest.mark.skipif(HAS_GPU, reason="there the runner makes its own graphs (tests/models)")
def test_turns_when_states_are_left_on_the_way_then_take_one_step_and_are_found_as_before(
    model, monkeypatch
):
    monkeypatch.setattr(prompt_graphs, "PROMPT_ROWS", {5: [48]})

    def talk(runner_type):
        loop = new_engine(
            model=model, prefix_caching=True, num_blocks=100, block_size=2 * BLOCK,
            max_num_batched_tokens=512, runner_type=runner_type,
        )  # fmt: skip
        steps, way_of, found, answers = [], loop.runner.way_of, [], []

        def noting(output):
            steps.append((type(way_of(output)), [item.num_tokens for item in output.scheduled]))
            return way_of(output)

        loop.runner.way_of = noting

        def ask(prompt):
            loop.add(request("r", prompt, max_tokens=1, temperature=0.0, ignore_eos=True))
            events = finish(loop)
            found.append(events[0].num_cached_tokens)
            answers.append(tokens_of(events)["r", 0])
            return answers[-1]

        said = [(7 * t) % 100 for t in range(48)]
        for turn in range(2):
            answer = ask(said)
            said += answer + [(5 * t + turn) % 100 for t in range(47)]
        # The last prompt again: its states are found where a block ends.
        ask(said[:-48])
        return [s for s in steps if max(s[1]) > 1], found, answers

    cut_steps, cut_found, cut_answers = talk(model_runner.ModelRunner)
    plan_for_a_gpu(monkeypatch)
    steps, found, answers = talk(SavingRunner)
    assert found == cut_found
    assert answers == cut_answers
    assert {way for way, _ in steps} == {PromptGraph}
    assert {way for way, _ in cut_steps} == {GeneralForward}
    assert [counts for _, counts in steps] == [[48], [48], [32]]
    assert [counts for _, counts in cut_steps] == [[32], [16], [16], [32], [32]]
    # The whole first turn; of the second all but the block of its last token.
    assert found == [0, 48, 64]


def test_steps_when_too_large_or_of_another_kind_then_are_left_to_the_general_path(model):
    graphs = PromptGraphs.__new__(PromptGraphs)
    assert all(rows[-1] == MOST_PROMPT_ROWS for rows in PROMPT_ROWS.values())
    loop = new_engine(
        model=model, max_num_batched_tokens=4096, max_model_len=4096, num_blocks=400,
        max_num_seqs=64,
    )  # fmt: skip
    way = PromptGraph(graphs, loop.runner.general)

    def can_run(*lengths, **sampling):
        for i, length in enumerate(lengths):
            loop.add(request(f"r{i}", [5] * length, max_tokens=2, **sampling))
        output = loop.scheduler.schedule()
        for i in range(len(lengths)):
            loop.abort(f"r{i}")
        loop.scheduler.commit(output, [StepResult()] * len(output.scheduled))
        return way.can_run(output)

    assert can_run(2)
    assert can_run(MOST_PROMPT_ROWS)
    assert not can_run(MOST_PROMPT_ROWS + 1)
    assert not can_run(1, 1)  # decode graphs are for these
    assert can_run(*[2] * 33)
    assert not can_run(*[2] * 34)
    assert not can_run(20, prompt_logprobs=1)
