"""Bytes counted before loading, exact for every format; what does not fit is told what would."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lingflash.bench.in_engine.dummy_checkpoint import tensor_shapes
from lingflash.bench.on_gpu.shapes import shape_config
from lingflash.core.config import EngineConfig
from lingflash.core.errors import NotEnoughMemoryError
from lingflash.core.hub import bundled_folder
from lingflash.engine.memory.planning import available_memory_bytes, plan_checkpoint
from lingflash.engine.memory.weight_bytes import count_weights, in_format
from lingflash.models.checkpoint import TensorEntry, read_checkpoint
from lingflash.models.config import load_model_config
from lingflash.parallel.shard import Shard
from models_support import load
from quant_support import quantize

GIB = 2**30
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def flash():
    """Ling-2.6-flash by its headers alone."""
    config = shape_config("ling-2.6-flash")
    entries = {}
    for name, shape in tensor_shapes(config).items():
        is_bias = name.endswith("expert_bias")
        size = (4 if is_bias else 2) * torch.Size(shape).numel()
        entries[name] = TensorEntry(Path("x"), "F32" if is_bias else "BF16", shape, size)
    return config, entries


_MADE = {}  # these tables take a second each


def converted(flash, name, group_size=32, with_mtp=True):
    key = name, group_size, with_mtp
    if key not in _MADE:
        _MADE[key] = _converted(flash, name, group_size, with_mtp)
    return _MADE[key]


def _converted(flash, name, group_size, with_mtp):
    config, entries = flash
    if not with_mtp:
        entries = {n: e for n, e in entries.items() if not n.startswith("model.layers.32.")}
    found, raw = in_format(entries, name, group_size)
    return replace(config, quantization_config=raw), found


def test_bytes_when_in_the_published_layouts_then_are_the_published_sizes(flash):
    def total(entries):
        return sum(entry.num_bytes for entry in entries.values())

    assert len(flash[1]) == 25015
    assert total(flash[1]) / GIB == pytest.approx(200.22, abs=0.01)
    # The published 101.477 GiB are files, with 6.5 MB of headers for 49,000 tensors.
    assert total(converted(flash, "fp8")[1]) / GIB == pytest.approx(101.471, abs=0.001)
    assert total(converted(flash, "int4", with_mtp=False)[1]) / GIB == pytest.approx(
        60.38, abs=0.01
    )


def plan(checkpoint, gib, **changes):
    options = {"max_num_seqs": 16, "memory_fraction": 0.9} | changes
    return plan_checkpoint(
        EngineConfig(model="flash", **options),
        *checkpoint,
        device=CUDA,
        available=int(gib * GIB * options["memory_fraction"]),
    )


def test_104b_when_int4_then_fits_one_80_gb_card_and_fp8_one_141_gb_card(flash):
    # What such cards report as free: 79.2 and 139.8 GiB.
    small = plan(converted(flash, "int4"), 79.2)
    assert small.max_model_len == 131072
    assert small.weights_bytes / GIB == pytest.approx(62.4, abs=0.3)  # the MTP layer included
    smallest = plan(converted(flash, "int4-fp8", 128), 79.2)
    assert smallest.weights_bytes < small.weights_bytes
    large = plan(converted(flash, "fp8"), 139.8, max_num_seqs=64)
    assert large.max_model_len == 131072
    # The file's bytes, and the router twice as wide in memory.
    assert large.weights_bytes / GIB == pytest.approx(
        101.471 + 32 * 256 * 4096 * 2 / GIB, abs=0.001
    )
    assert large.total_bytes <= large.available_bytes


def test_kept_blocks_when_counted_then_hold_a_checkpoint_and_an_end(flash):
    int4 = converted(flash, "int4")
    usual = plan(int4, 79.2)
    tail = 28 * 32 * 2 * 16 * 128 * 4
    for blocks, size in (
        (usual.checkpoint_blocks, usual.state_bytes_per_seq - tail),
        (usual.end_blocks, usual.state_bytes_per_seq),
    ):
        assert 0 <= blocks * usual.block_bytes - size < usual.block_bytes
    # The MTP layer goes on from anchors only.
    assert plan(int4, 79.2, num_speculative_tokens=2).end_blocks == 0
    assert plan(int4, 79.2, prefix_caching=False).end_blocks == 0


def test_104b_when_it_does_not_fit_then_is_told_what_would(flash):
    with pytest.raises(NotEnoughMemoryError, match=r"--format int4.* one sequence fits, or split"):
        plan(flash, 79.2)
    with pytest.raises(NotEnoughMemoryError, match=r"--format fp8 one sequence fits, or split"):
        plan(flash, 139.8)
    with pytest.raises(NotEnoughMemoryError, match=r"--max-num-seqs \d+ fits"):
        plan(converted(flash, "int4"), 79.2, max_num_seqs=1024)
    with pytest.raises(NotEnoughMemoryError, match=r"context of [\d,]+ tokens .*fits as it is"):
        plan(converted(flash, "fp8"), 118.2, max_num_seqs=8, max_model_len=131072)


def test_104b_when_split_then_each_rank_holds_its_share(flash):
    whole = plan(flash, 300.0)
    half = plan(flash, 139.8, tensor_parallel_size=2)
    quarter = plan(flash, 79.2, tensor_parallel_size=4)
    assert half.state_bytes_per_seq == whole.state_bytes_per_seq // 2
    assert quarter.state_bytes_per_seq == whole.state_bytes_per_seq // 4
    assert half.latent_bytes_per_token == whole.latent_bytes_per_token
    # All but the norms, routers and low-rank projections is split.
    for part, size in ((half, 2), (quarter, 4)):
        replicated = part.weights_bytes * size - whole.weights_bytes
        assert 0 < replicated < 0.002 * size * whole.weights_bytes


@pytest.mark.parametrize("name", ["fp8", "int4", "int4-fp8"])
def test_count_when_nano_is_loaded_then_is_what_it_takes(tmp_path, name):
    folder = quantize(bundled_folder(), tmp_path / "q", name)
    model = load(folder)
    config, entries = load_model_config(folder), read_checkpoint(folder)
    counted, scratch = count_weights(config, entries, torch.float32, Shard())
    held = {}
    seen = set()

    def walk(thing):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, list | tuple):
            for item in thing:
                walk(item)
        elif type(thing).__module__.startswith("lingflash"):
            for key in getattr(thing, "__slots__", ()) or vars(thing):
                if key not in ("_rotary", "_tables", "_decay_rate"):
                    walk(getattr(thing, key))

    walk(model)
    assert sum(held.values()) == counted
    assert scratch > 0


def test_available_memory_when_an_engine_is_garbage_then_that_is_collected_first(monkeypatch):
    class Engine:
        pass

    engine = Engine()
    engine.itself = engine
    alive = weakref.ref(engine)
    del engine
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0 if alive() else 7, 9))
    assert available_memory_bytes(torch.device("cuda")) == 7
