"""How the engine brings decode steps to the GPU, without graphs where there is none."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from lingflash.cache.lease import Lease
from lingflash.core.types import SamplingParams
from lingflash.engine.memory.tensors import GRAPH_ROWS, graph_sizes
from lingflash.engine.run.cuda_graphs import NOT_FINITE, DecodeGraphs
from lingflash.engine.schedule.step import ScheduledSequence, SchedulerOutput
from lingflash.kernels.graph_capture import capture_graph
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import make_forward_batch
from models_support import BLOCK, load, new_cache
from oracle import write_checkpoint

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FakeSequence:
    def __init__(self, lease, token_ids):
        self.lease, self.token_ids = lease, token_ids

    def tokens(self, start, count):
        return self.token_ids[start : start + count]


def test_graph_sizes_when_limited_then_the_last_holds_the_limit():
    assert graph_sizes(1) == [1]
    assert graph_sizes(33)[-2:] == [32, 40]
    assert graph_sizes(4096) == list(GRAPH_ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"num_hidden_layers": 2, "layer_group_size": 2, "num_experts": 4, "n_group": 2}
    folder = write_checkpoint(tmp_path_factory.mktemp("m"), changes | {"topk_group": 1})
    return load(folder, dtype=torch.bfloat16, device=DEVICE)


def new_graphs(model):
    cache = new_cache(model, slots=5, blocks=40)
    graphs = DecodeGraphs(
        CudaDecoder(model, cache), cache, max_num_seqs=4, max_model_len=64, block_size=BLOCK,
        use_graphs=DEVICE.type == "cuda",
    )  # fmt: skip
    graphs.capture_all()
    return graphs, cache


def test_steps_when_slots_change_owners_then_each_reads_its_own_blocks(model):
    graphs, cache = new_graphs(model)

    def forward(cache, lease, tokens, start):
        batch = make_forward_batch(
            [tokens], [start], [lease.blocks], [lease.state_slot], [], block_size=BLOCK,
            device=DEVICE,
        )  # fmt: skip
        return model.logits(model.forward(batch, cache))

    def begin(slot, blocks, length):
        cache.forget_slots([slot])
        cache.forget_blocks(blocks)
        sequence = FakeSequence(
            Lease(slot, list(blocks)), [(7 * slot + 3 * t) % 100 for t in range(64)]
        )
        forward(cache, sequence.lease, sequence.token_ids[:length], 0)
        return sequence, length

    def step(running):
        """One decode step of all, beside the general path on a copy of the memory."""
        other = copy.deepcopy(cache)
        expected = [forward(other, s.lease, s.tokens(n, 1), n)[0] for s, n in running]
        scheduled = [ScheduledSequence(s, n, 1, True) for s, n in running]
        assert graphs.can_run(SchedulerOutput(scheduled))
        got = graphs.run(scheduled)
        for mine, theirs in zip(got, expected, strict=True):
            assert (mine - theirs).norm() < 0.05 * theirs.norm()
        return [(s, n + 1) for s, n in running]

    running = [begin(0, [4, 9], 14), begin(3, [7], 5), begin(2, [20, 3], 20)]
    for _ in range(3):
        running = step(running)
    # Slot 3 goes to another sequence, with other blocks; another one leaves.
    running = [begin(3, [11, 12], 17), running[0]]
    running = step(running)
    running[0][0].lease.blocks.append(13)
    step(running)


def test_launch_when_tokens_are_in_flight_then_equal_to_steps_one_by_one(model):
    """Three steps launched before any token is known, against steps that are given each token."""

    def begin(slot, blocks, length, temperature):
        sequence = FakeSequence(Lease(slot, blocks), [(7 * slot + 3 * t) % 100 for t in range(20)])
        sequence.token_ids = sequence.token_ids[:length]
        sequence.sampling = SamplingParams(temperature=temperature, seed=slot)
        sequence.choice = slot % 2
        return sequence

    def sequences():
        return [begin(0, [4, 9], 14, 0.0), begin(3, [7, 8], 5, 1.0), begin(2, [20, 3], 16, 3.0)]

    def launch(graphs, running, ahead):
        # The second sequence leaves after two steps.
        rows = running if ahead < 2 else running[::2]
        items = [ScheduledSequence(s, len(s.token_ids) - 1 + ahead, 1, True) for s in rows]
        return graphs.launch(items)

    ahead, _ = new_graphs(model)
    running = sequences()
    # At most two are in flight: the first is asked for before the third is launched.
    first, second = launch(ahead, running, 0), launch(ahead, running, 1)
    got = [first()]
    third = launch(ahead, running, 2)
    got += [second(), third()]

    plain, _ = new_graphs(model)
    running, expected = sequences(), []
    for step in range(3):
        rows = running if step < 2 else running[::2]
        expected.append(launch(plain, rows, 0)())
        for sequence, token in zip(rows, expected[-1], strict=True):
            sequence.token_ids.append(token)
    assert got == expected
    assert len(expected[2]) == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NaN
def test_launch_when_logits_are_not_finite_then_says_so_and_the_next_step_runs(model):
    graphs, cache = new_graphs(model)
    good, bad = FakeSequence(Lease(0, [4]), [5, 6]), FakeSequence(Lease(1, [5]), [5, 6])
    for sequence in (good, bad):
        sequence.sampling, sequence.choice = SamplingParams(temperature=1.0, seed=1), 0
    cache.states[:, 1] = float("nan")
    items = [ScheduledSequence(s, 1, 1, True) for s in (good, bad)]
    first = graphs.launch(items)
    second = graphs.launch([ScheduledSequence(s, 2, 1, True) for s in (good, bad)])
    tokens = first()
    assert tokens[0] >= 0
    assert tokens[1] == NOT_FINITE
    tokens = second()
    assert tokens[0] >= 0
    assert tokens[1] == NOT_FINITE


@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU on this machine")
def test_capture_when_what_is_read_is_on_its_way_then_waits_for_it():
    given, copied = torch.zeros(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    given.fill_(7.0)
    graph, _ = capture_graph(lambda: copied.copy_(given))  # takes no memory, which would wait, too
    assert copied.eq(7.0).all()
    given.fill_(8.0)
    graph.replay()
    assert copied.eq(8.0).all()


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_other_steps_when_asked_then_are_left_to_the_general_path(num_tokens):
    output = SchedulerOutput()
    if num_tokens:
        output.scheduled.append(ScheduledSequence(SimpleNamespace(), 0, num_tokens, True))
    graphs = DecodeGraphs.__new__(DecodeGraphs)
    graphs._sizes = [1]
    assert not graphs.can_run(output)
