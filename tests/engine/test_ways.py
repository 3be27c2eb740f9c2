"""Which way a step runs: the table of engine/run/ways, row by row."""

from __future__ import annotations

import pytest

from engine_support import new_engine, request
from lingflash.engine.run.cuda_graphs import DecodeGraphs
from lingflash.engine.run.ways.cpu_decode import CpuDecode
from lingflash.engine.run.ways.drawn_graph import DrawnGraph
from lingflash.engine.run.ways.general_forward import GeneralForward
from lingflash.engine.run.ways.sampled_graph import SampledGraph
from lingflash.kernels.cpu import load_kernels

PROMPT = [5, 6, 7, 8]
ON_A_CPU = GeneralForward if load_kernels() is None else CpuDecode


def ways_taken(loop, *requests):
    """The way of each step until all have ended, those in a row once."""
    way_of, taken = loop.runner.way_of, []

    def noting(output):
        way = way_of(output)
        if not taken or taken[-1] is not type(way):
            taken.append(type(way))
        return way

    loop.runner.way_of = noting
    for each in requests:
        loop.add(each)
    while loop.has_work:
        loop.step()
    return taken


def ask(name, max_tokens=4, **sampling):
    return request(name, PROMPT, max_tokens=max_tokens, ignore_eos=True, seed=0, **sampling)


def test_steps_when_on_a_cpu_then_one_sequence_decodes_in_c_and_two_by_the_model():
    assert ways_taken(new_engine(), ask("r", top_p=0.5, logprobs=2)) == [GeneralForward, ON_A_CPU]
    taken = ways_taken(new_engine(), ask("a"), ask("b", max_tokens=8))
    assert taken == [GeneralForward, ON_A_CPU]  # alone at the end
    assert ways_taken(new_engine(batch_invariant=True), ask("r")) == [GeneralForward]


# What the step asks for; the way of a decode step on a GPU.
@pytest.mark.parametrize(
    ("sampling", "way"),
    [
        ([{}, {"temperature": 0.0, "top_p": 0.5}], DrawnGraph),
        ([{}, {"top_p": 0.5}], SampledGraph),
        ([{"logprobs": 1}], SampledGraph),
        ([{"min_tokens": 3}], SampledGraph),
        ([{}] * 5, GeneralForward),
    ],
)
def test_decode_step_when_on_a_gpu_then_one_that_the_device_cannot_draw_is_sampled(sampling, way):
    loop = new_engine()
    graphs = DecodeGraphs.__new__(DecodeGraphs)
    graphs._sizes = [1, 2, 4]
    loop.runner.ways = [DrawnGraph(graphs), SampledGraph(graphs, 512), loop.runner.general]
    for i, changes in enumerate(sampling):
        loop.add(ask(f"r{i}", **changes))
    prompts = loop.scheduler.schedule()
    assert type(loop.runner.way_of(prompts)) is GeneralForward
    loop.scheduler.commit(prompts, loop.runner.launch(prompts).results())
    assert type(loop.runner.way_of(loop.scheduler.schedule())) is way


def test_threads_when_the_model_is_wide_then_a_single_token_uses_all_of_them(monkeypatch):
    import torch

    from lingflash.bench.in_engine.dummy_checkpoint import LING_2_6_FLASH
    from lingflash.core.hub import resolve_model
    from lingflash.engine.run.ways import general_forward
    from lingflash.models.config import load_model_config, parse_model_config

    nano = general_forward._multiplications(load_model_config(resolve_model("ling-nano")))
    assert nano == general_forward._LIKE_A_TOKEN
    wide = general_forward._multiplications(parse_model_config(LING_2_6_FLASH))
    assert wide / nano > general_forward._THREADS_FROM
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    for work, expected in ((1, [1, 2]), (general_forward._THREADS_FROM, [2])):
        loop = new_engine()
        loop.runner.general._token_work = work
        loop.runner.ways = [loop.runner.general]
        loop.add(ask("r"))
        seen.clear()
        loop.step()
        assert seen == expected
