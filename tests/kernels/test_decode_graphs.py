"""How the engine brings decode steps to the GPU, without graphs where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lingflash.cache.lease import Lease
from lingflash.engine.cuda_graphs import GRAPH_ROWS, DecodeGraphs, graph_sizes
from lingflash.engine.step import ScheduledSequence, SchedulerOutput
from lingflash.models.cuda_decoder import CudaDecoder
from lingflash.models.forward_batch import CacheTensors, make_forward_batch
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


def test_steps_when_slots_change_owners_then_each_reads_its_own_blocks(tmp_path):
    changes = {"num_hidden_layers": 2, "layer_group_size": 2, "num_experts": 4, "n_group": 2}
    folder = write_checkpoint(tmp_path / "m", changes | {"topk_group": 1})
    model = load(folder, dtype=torch.bfloat16, device=DEVICE)
    cache = new_cache(model, slots=5, blocks=40)
    cache = CacheTensors(
        cache.latents.to(DEVICE, torch.bfloat16), cache.states.to(DEVICE),
        cache.tail_k.to(DEVICE), cache.tail_v.to(DEVICE),
    )  # fmt: skip
    graphs = DecodeGraphs(
        CudaDecoder(model, cache), cache, max_num_seqs=4, max_model_len=64, block_size=BLOCK,
        use_graphs=DEVICE.type == "cuda",
    )  # fmt: skip
    graphs.capture_all()

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
        other = CacheTensors(
            cache.latents.clone(), cache.states.clone(), cache.tail_k.clone(), cache.tail_v.clone()
        )
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


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_other_steps_when_asked_then_are_left_to_the_general_path(num_tokens):
    output = SchedulerOutput()
    if num_tokens:
        output.scheduled.append(ScheduledSequence(SimpleNamespace(), 0, num_tokens, True))
    graphs = DecodeGraphs.__new__(DecodeGraphs)
    graphs._sizes = [1]
    assert not graphs.can_run(output)
