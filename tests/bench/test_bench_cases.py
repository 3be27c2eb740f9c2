"""The benchmarks themselves, tiny: what they count and refuse, not how long anything takes."""

import json
import mmap
import subprocess
import sys
import time

import pytest
import torch

from lingflash.bench.in_engine.dummy_checkpoint import MID_SIZE, tensor_shapes, write_checkpoint
from lingflash.bench.in_engine.host import DEVICE_MS, run_host
from lingflash.bench.in_engine.in_process import TimedEngine, prefill_flops, random_prompts
from lingflash.bench.in_engine.lightning import Case, HeadShape, run_lightning
from lingflash.bench.in_engine.load import _probe
from lingflash.bench.in_engine.load_probe import PeakWatch
from lingflash.bench.in_engine.throughput import logit_difference, run_throughput
from lingflash.cli import main
from lingflash.core.errors import ConfigError
from lingflash.kernels.lightning_attn import lightning_attention_reference
from lingflash.models.config import load_model_config, parse_model_config
from lingflash.models.loader import load_model
from models_support import CHECKPOINT, CPU

TINY = MID_SIZE | {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_kv_heads_for_linear_attn": 4, "head_dim": 16, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "intermediate_size": 64,
    "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip


def throughput(**changes):
    options = {
        "model": str(CHECKPOINT), "prompt_lens": [24], "batch_sizes": [1, 3],
        "decode_prompt_len": 8, "decode_steps": 3, "repeats": 2, "threads": None,
        "peer_python": None, "out": None, "allow_dirty": False,
    }  # fmt: skip
    return run_throughput(**(options | changes))


@pytest.fixture(scope="module")
def engine():
    return TimedEngine(str(CHECKPOINT), 256, 4)


def test_dummy_checkpoint_when_written_then_the_loader_takes_every_tensor(tmp_path):
    total = write_checkpoint(tmp_path, TINY)
    model = load_model(tmp_path, dtype=torch.bfloat16, device=CPU, max_model_len=64)
    assert model.mtp is not None
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(tensor_shapes(parse_model_config(TINY)))


def test_dummy_checkpoint_when_mid_size_then_it_is_over_two_gigabytes():
    shapes = tensor_shapes(parse_model_config(MID_SIZE))
    assert 2 * sum(torch.Size(shape).numel() for shape in shapes.values()) > 2e9


def test_load_probe_when_the_checkpoint_is_loaded_then_the_peak_covers_the_weights(tmp_path):
    total = write_checkpoint(tmp_path, TINY | {"vocab_size": 65536})
    found = _probe(tmp_path, "bfloat16")  # a fresh process: freed memory must not serve twice
    assert found["checkpoint_bytes"] == total
    assert found["peak_bytes"] - found["before_bytes"] >= 0.9 * total
    assert found["peak_bytes"] >= found["after_bytes"]


def test_peak_watch_when_memory_is_freed_again_then_the_peak_stays():
    with PeakWatch() as watch:
        before = watch.peak_bytes
        # Straight from the system: what an earlier test freed may still be this process's.
        block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        deadline = time.monotonic() + 20
        while watch.peak_bytes < before + (60 << 20) and time.monotonic() < deadline:
            time.sleep(0.01)
        block.close()
    assert watch.peak_bytes >= before + (60 << 20)


def test_prefill_flops_when_counted_from_tensors_then_it_equals_the_count_from_the_shape():
    c = load_model_config(CHECKPOINT)
    hidden, heads, tokens = c.hidden_size, c.num_attention_heads, 10
    key = c.qk_nope_head_dim + c.qk_rope_head_dim
    lightning = 5 * heads * c.head_dim * hidden
    assert c.q_lora_rank is not None
    mla = hidden * c.q_lora_rank + c.q_lora_rank * heads * key + hidden * c.latent_dim
    mla += c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    mla += heads * c.v_head_dim * hidden
    moe = c.num_experts * hidden + 3 * hidden * c.num_experts_per_tok * c.moe_intermediate_size
    moe += 3 * hidden * 64  # the shared expert, as config.json says
    active = len(c.lightning_layers) * lightning + len(c.mla_layers) * mla
    active += 3 * hidden * c.intermediate_size + (c.num_hidden_layers - 1) * moe
    attention = len(c.mla_layers) * heads * (key + c.v_head_dim) * tokens * (tokens + 1)
    flops, counted = prefill_flops(str(CHECKPOINT), tokens)
    assert counted == active
    assert flops == 2 * active * tokens + 2 * c.vocab_size * hidden + attention


def test_timed_engine_when_it_decodes_a_batch_then_each_answer_is_as_alone(engine):
    prompts = random_prompts(3, 12, 500, seed=3)
    _, together = engine.decode(prompts, 5)
    assert [engine.decode([prompt], 5)[1][0] for prompt in prompts] == together
    assert all(len(tokens) == 6 for tokens in together)
    assert engine.prefill(prompts[0])[1] == together[0][:1]
    assert not engine.loop.has_work


def test_throughput_when_run_without_a_peer_then_every_case_has_all_its_samples():
    record = throughput()
    assert {name: len(series.samples) for name, series in record.results.items()} == {
        "prefill 24: lingflash": 2,
        "decode batch 1: lingflash": 2,
        "decode batch 3: lingflash": 2,
    }
    assert 0 < record.derived["prefill 24: fraction of the matrix rate"] < 1


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"repeats": 0}, "--repeats"),
        ({"prompt_lens": [0]}, "--prompt-len"),
        ({"batch_sizes": [-1]}, "--batch"),
        ({"decode_steps": 0}, "--decode-steps"),
        ({"threads": 0}, "--threads"),
        ({"batch_sizes": [512], "decode_prompt_len": 8}, "--decode-prompt-len"),
        ({"peer_python": "/no/such/python"}, "--peer-python"),
    ],
)
def test_throughput_when_a_value_is_impossible_then_the_flag_is_named(changes, flag):
    with pytest.raises(ConfigError, match=flag):
        throughput(**changes)


def fake_peer(folder, logits):
    """An interpreter that answers the first question with these logits, whatever it is asked."""
    path = folder / "python"
    answer = json.dumps(logits)
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint('{{}}', flush=True)\n"
        f"for _ in sys.stdin: print('''{answer}''', flush=True)\n"
    )
    path.chmod(0o755)
    return str(path)


def test_throughput_when_the_peer_computes_something_else_then_nothing_is_timed(tmp_path):
    import base64

    shape = [16, load_model_config(CHECKPOINT).vocab_size]
    data = base64.b64encode(bytes(4 * shape[0] * shape[1])).decode()
    python = fake_peer(tmp_path, {"shape": shape, "data": data})
    with pytest.raises(ConfigError, match="logits differ"):
        throughput(peer_python=python)


def test_throughput_when_the_peer_cannot_run_the_model_then_its_reason_is_told(tmp_path):
    python = fake_peer(tmp_path, {"error": "ValueError: Model type x not supported."})
    with pytest.raises(ConfigError, match="Model type x not supported"):
        throughput(peer_python=python)


@pytest.mark.parametrize("change", ["shape", "nan", "value"])
def test_logit_difference_when_another_model_answers_then_it_is_refused(change):
    ours = torch.randn(3, 8)
    theirs = ours.clone()
    if change == "shape":
        theirs = theirs[:2]
    else:
        theirs[1, 2] = float("nan") if change == "nan" else 9.0
    assert logit_difference(ours, ours + 1e-6) < 1e-4
    with pytest.raises(ConfigError, match="not compared"):
        logit_difference(ours, theirs)


def test_host_when_run_then_every_sequence_is_in_every_step_and_parts_add_up():
    record = run_host(
        model=str(CHECKPOINT), num_seqs=4, num_steps=10, threads=1, out=None, allow_dirty=False
    )
    total = record.results["step without model and sampler"]
    parts = [s for name, s in record.results.items() if name.startswith("  of which")]
    assert len(parts) == 4
    for i, value in enumerate(total.samples):
        assert sum(part.samples[i] for part in parts) <= value
    assert len(record.results["whole step, sampled top_p 0.9"].samples) == 10
    assert len(record.targets) == 2
    assert min(record.results[f"step with a device of {DEVICE_MS} ms, one by one"].samples) > (
        DEVICE_MS
    )
    # Of overlapped steps one may be short where the one before was long.
    overlapped = record.results[f"step with a device of {DEVICE_MS} ms, overlapped"].samples
    assert sum(overlapped) > 0.9 * DEVICE_MS * len(overlapped)


def test_lightning_case_when_run_twice_then_both_equal_the_recurrence():
    case = Case(HeadShape("tiny", 3, 8), 150)
    rate = torch.tensor([2.0 ** (-8.0 * (h + 1) / 3) for h in range(3)], dtype=torch.float64)
    expected, _ = lightning_attention_reference(
        case.q.double(), case.k.double(), case.v.double(), rate
    )
    for _ in range(2):
        torch.testing.assert_close(case.run()[1].double(), expected, rtol=1e-4, atol=1e-4)


def test_lightning_when_one_length_is_four_times_the_other_then_the_ratio_is_judged():
    record = run_lightning(lengths=[64, 256], repeats=1, threads=1, out=None, allow_dirty=False)
    assert [target.limit for target in record.targets] == [4.4, 4.4]


@pytest.mark.parametrize("lengths", [[], [0], [64, 32], [64, 64]])
def test_lightning_when_the_lengths_make_no_sense_then_it_is_refused(lengths):
    with pytest.raises(ConfigError, match="--tokens"):
        run_lightning(lengths=lengths, repeats=1, threads=None, out=None, allow_dirty=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["host", "--num-seqs", "0"], "--num-seqs is 0"),
        (["host", "--stepz", "3"], "--stepz"),
        (["load", "--dtype", "int4"], "--dtype"),
        (["soak", "--minutes", "-1"], "--minutes is -1"),
        (["serve", "--url", "ftp://x"], "--url"),
        (["serve", "--answer-len", "9", "3"], "--answer-len is 9 3"),
        (["soak", "--url", "http://127.0.0.1:1", "--serve-flag", "--seed=1"], "--serve-flag"),
    ],
)
def test_command_when_a_flag_is_wrong_then_it_exits_with_2_and_names_it(arguments, text, capsys):
    with pytest.raises(SystemExit) as info:
        main(["bench", *arguments])
    assert info.value.code == 2
    assert text in capsys.readouterr().err


def test_command_when_imported_then_torch_is_not():
    code = "import sys, lingflash.bench.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
