"""Rooflines beside the figures they were first computed as, the page, and a rank's slice."""

from __future__ import annotations

import json
import re

import pytest
import torch

from lingflash.bench.in_engine.dummy_checkpoint import MID_SIZE
from lingflash.bench.on_gpu import rank_slice, shapes
from lingflash.bench.on_gpu.latency import Prefill, count_bytes, make_cache
from lingflash.bench.on_gpu.shapes import shape_config
from lingflash.bench.roofline.curves import charts, run_curves
from lingflash.bench.roofline.shapes import DEVICES, SHAPES, decode_rate, prefill_rate
from lingflash.cli import _run, report_errors
from lingflash.models.forward_batch import make_forward_batch

# Tokens/s at outputs of 1K, 4K, 16K, 32K, 64K and 128K: 4 x H20, batch 32, prompt 1,024.
DECODE = {
    (1, "GLM-4.5-Air"): [4948, 4542, 3418, 2571, 1718, 1033],
    (1, "Ling-2.6-flash"): [7043, 6956, 6630, 6239, 5582, 4611],
    (1, "Qwen3.5-122B-A10B"): [5553, 5411, 4910, 4370, 3582, 2633],
    (1, "Nemotron-3-Super"): [4897, 4859, 4715, 4536, 4215, 3693],
    (2, "GLM-4.5-Air"): [2606, 2489, 2109, 1753, 1310, 870],
    (2, "Ling-2.6-flash"): [3672, 3648, 3556, 3441, 3231, 2880],
    (2, "Qwen3.5-122B-A10B"): [2998, 2956, 2800, 2615, 2311, 1875],
    (2, "Nemotron-3-Super"): [2606, 2595, 2553, 2500, 2399, 2220],
}
# Ling-2.6-flash, BF16 and FP8, by length of the prompt.
PREFILL = {
    1024: (45023, 89218), 8192: (43984, 85231), 65536: (37134, 62786), 131072: (31523, 48261),
}  # fmt: skip
FLAGS = {
    "roofline": True, "measure": False, "lengths": [1024, 65536], "batch": 32, "prompt_len": 1024,
    "ranks": 4, "device": "h20", "format_name": "fp8", "layers": None, "repeats": 1,
    "vllm_python": None, "beside": (), "html": None, "out": None, "allow_dirty": True,
    "commit": None,
}  # fmt: skip


@pytest.mark.parametrize(("weight_bytes", "name"), DECODE)
def test_decode_roofline_then_it_is_the_published_figure(weight_bytes, name):
    found = [
        decode_rate(
            SHAPES[name], DEVICES["h20"], batch=32, output=n * 1024, prompt=1024,
            weight_bytes=weight_bytes, ranks=4,
        )
        for n in (1, 4, 16, 32, 64, 128)
    ]  # fmt: skip
    assert [round(x) for x in found] == DECODE[weight_bytes, name]


@pytest.mark.parametrize("length", PREFILL)
def test_prefill_roofline_then_it_is_the_published_figure(length):
    for weight_bytes, wanted in zip((2, 1), PREFILL[length], strict=True):
        rate = prefill_rate(
            SHAPES["Ling-2.6-flash"], DEVICES["h20"], length=length, weight_bytes=weight_bytes,
            ranks=4,
        )  # fmt: skip
        assert round(rate) == wanted


def test_shapes_then_their_weights_are_those_published():
    """In billions, embedding apart; active ones with the head."""
    found = {s.name: (round(s.total * 1e-9, 1), round(s.active * 1e-9, 1)) for s in SHAPES.values()}
    assert found == {
        "GLM-4.5-Air": (106.2, 12.8), "Ling-2.6-flash": (103.5, 6.8),
        "Qwen3.5-122B-A10B": (121.3, 9.0), "Nemotron-3-Super": (120.1, 12.2),
    }  # fmt: skip


def test_curves_then_the_page_keeps_three_kinds_apart_and_needs_no_network(tmp_path):
    measured = {
        "schema": 1, "case": "curves", "command": "ling bench curves --measure", "commit": "c" * 40,
        "date": "2026", "notes": ["a <b>note</b>"],
        "settings": {"kind": "measured", "model": "Ling-2.6-flash", "format": "fp8", "batch": 32,
                     "ranks": 4, "gpu": {"name": "H200"}},
        "results": {"decode c1024": {"median": 9000.0}, "prefill 1024": {"median": 80000.0}},
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(measured))
    run_curves(**{**FLAGS, "beside": [tmp_path / "m.json"], "html": tmp_path / "p.html"})
    text = (tmp_path / "p.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|<script""", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert len(text) < 100_000
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        f"p-{name}.svg" for name in ("decode", "decode-ratio", "prefill", "prefill-ratio")
    }


def test_charts_then_no_line_has_two_kinds():
    record = run_curves(**FLAGS).as_dict()
    drawn = charts([record])
    assert [c.title.split(":")[0] for c in drawn] == ["Decode", "Decode", "Prefill", "Prefill"]
    announced = [line for c in drawn for line in c.lines if line.kind == "announced"]
    assert {(line.name, line.points[0]) for line in announced} == {
        ("Ling-2.6-flash", (65536, 4.38)), ("Nemotron-3-Super", (65536, 3.37)),
        ("Qwen3.5-122B-A10B", (65536, 1.90)), ("Ling-2.6-flash", (65536, 4.68)),
        ("Nemotron-3-Super", (65536, 2.12)),
    }  # fmt: skip
    assert not [line for c in drawn for line in c.lines if line.kind == "measured"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--roofline or --measure is both or none"),
        (["--roofline", "--device", "a100"], "--device is a100; allowed: h20, h20-3e, h200"),
        (["--roofline", "--format", "int4"], "--format is int4"),
        (["--roofline", "--batch", "0"], "--batch is 0"),
        (["--roofline", "--beside", "/nowhere"], "--beside is /nowhere"),
    ],
)
def test_curves_when_a_flag_is_wrong_then_one_line_says_what(words, said, capsys):
    assert report_errors(lambda: _run(["bench", "curves", *words])) == 2
    assert said in capsys.readouterr().err


def test_curves_when_there_is_no_gpu_then_measure_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert report_errors(lambda: _run(["bench", "curves", "--measure"])) == 2
    assert "--roofline needs neither" in capsys.readouterr().err


def test_slice_when_it_runs_alone_then_it_has_a_ranks_share_and_its_tokens_differ(monkeypatch):
    """The rehearsal of --measure: the same model and prompts, on a CPU, of a smaller shape."""
    monkeypatch.setitem(shapes.SHAPES, "mid", MID_SIZE)
    cpu, layers = torch.device("cpu"), 5
    whole = count_bytes(rank_slice.make_slice("mid", layers, "bf16", cpu, 256, 1))
    model = rank_slice.make_slice("mid", layers, "bf16", cpu, 256, 4)
    part = count_bytes(model)
    assert part.expert * 4 == whole.expert
    assert part.sequence * 4 == whole.sequence
    assert part.token == whole.token
    assert whole.dense / 4 < part.dense < whole.dense / 3
    case = Prefill(model, 96)
    logits = case.run()
    words = shape_config("mid", layers).vocab_size // 4
    assert logits.shape == (1, words)
    assert torch.isfinite(logits).all()
    # A step after it, of two sequences with unlike tokens.
    cache = make_cache(model.config, 2, 64, cpu)
    batch = make_forward_batch(
        [[1], [words - 1]], [8, 8], [[0], [1]], [0, 1], [0, 1], block_size=64, device=cpu
    )
    with torch.inference_mode():
        hidden = model.forward(batch, cache)
    assert not torch.equal(hidden[0], hidden[1])
