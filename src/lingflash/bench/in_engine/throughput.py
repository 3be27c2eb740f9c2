"""`ling bench throughput`: prefill and decode tokens/s, beside mlx-lm in the same run."""

from __future__ import annotations

import base64
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingflash.bench.in_engine.ceilings import MATMUL, sample_ceilings, use_threads
from lingflash.bench.in_engine.in_process import TimedEngine, prefill_flops, random_prompts
from lingflash.core.errors import ConfigError
from lingflash.core.hub import resolve_model
from lingflash.core.processor import CpuClass, processor
from lingflash.records.record import Record, model_label, require

_CHECK_TOKENS = 16
# Of the largest logit: float32 sums in another order, not another model.
_CHECK_TOLERANCE = 1e-3
# The bar for ling-nano against mlx-lm on the CPU, by the processor's class: decode and prefill.
_TARGETS: dict[CpuClass, tuple[float, float]] = {
    "amx": (5.0, 40.0),
    "avx512": (5.0, 40.0),
    "avx2": (4.0, 25.0),
}
_TARGET_PREFILL_TOKENS = 2048


class PeerProcess:
    """mlx-lm in its own environment.

    Raises:
        ConfigError: it does not start.
    """

    def __init__(self, python: str, folder: Path) -> None:
        script = Path(__file__).with_name("peer_mlx_lm.py")
        try:
            self._process = subprocess.Popen(
                [python, "-I", str(script), str(folder.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ConfigError(
                f"--peer-python {python} cannot be run: {error.strerror}. Make it with "
                "`make bench-peers`.",
                param="peer_python",
            ) from None
        self.info = self._read()

    def ask(self, operation: str, **values: Any) -> dict[str, Any]:
        """One question and its answer; an answer may hold `error`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": operation, **values}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(
                "--peer-python: mlx-lm ended; its message is above. It needs `mlx[cpu]` and "
                "`mlx-lm`, which `make bench-peers` installs.",
                param="peer_python",
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def check_agreement(engine: TimedEngine, peer: PeerProcess, vocab_size: int) -> float:
    """Compare logits on a short prompt; programs that compute different things are not timed.

    Returns:
        The largest difference relative to the largest logit.

    Raises:
        ConfigError: they disagree.
    """
    prompt = random_prompts(1, _CHECK_TOKENS, vocab_size, seed=7)[0]
    answer = peer.ask("logits", token_ids=prompt)
    if "error" in answer:
        raise ConfigError(f"mlx-lm cannot run this model: {answer['error']}", param="peer_python")
    theirs = torch.frombuffer(bytearray(base64.b64decode(answer["data"])), dtype=torch.float32)
    return logit_difference(engine.logits(prompt), theirs.view(answer["shape"]))


def logit_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two programs' logits [T, V] relative to the largest logit.

    Raises:
        ConfigError: the shapes differ, or the values by more than rounding.
    """
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"mlx-lm gives logits of shape {list(theirs.shape)}, lingflash {list(ours.shape)}; "
            "they do not run the same model, so their times are not compared.",
            param="peer_python",
        )
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= _CHECK_TOLERANCE or math.isnan(difference):
        raise ConfigError(
            f"mlx-lm's logits differ from ours by {difference:.2e} of the largest, more than "
            f"{_CHECK_TOLERANCE:g}; their times are not compared.",
            param="peer_python",
        )
    return difference


def run_throughput(
    *,
    model: str,
    prompt_lens: Sequence[int],
    batch_sizes: Sequence[int],
    decode_prompt_len: int,
    decode_steps: int,
    repeats: int,
    threads: int | None,
    peer_python: str | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Measure, taking turns: every round measures every case once in each program.

    Raises:
        ConfigError: a value is out of range, or the peer does not compute the same.
    """
    require(bool(prompt_lens) and min(prompt_lens) >= 1, "--prompt-len", prompt_lens, "1 or more")
    require(bool(batch_sizes) and min(batch_sizes) >= 1, "--batch", batch_sizes, "1 or more")
    require(decode_prompt_len >= 1, "--decode-prompt-len", decode_prompt_len, "1 or more")
    require(decode_steps >= 1, "--decode-steps", decode_steps, "1 or more")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    largest = max(batch_sizes) * decode_prompt_len
    require(largest <= 2048, "--decode-prompt-len", decode_prompt_len, "2048 tokens over the batch")
    use_threads(threads)
    record = Record("throughput", out, allow_dirty)
    longest = max(max(prompt_lens) + 1, decode_prompt_len + decode_steps + 1)
    engine = TimedEngine(model, longest, max(batch_sizes))
    vocab_size = engine.loop.info.vocab_size
    peer = None if peer_python is None else PeerProcess(peer_python, resolve_model(model))
    record.settings = {
        "model": model_label(model),
        "mode": "fast (default), greedy, ignore_eos",
        "dtype": engine.loop.info.dtype,
        "decode_prompt_len": decode_prompt_len,
        "decode_steps": decode_steps,
        "repeats": repeats,
        "peer": None if peer is None else peer.info,
    }
    try:
        if peer is not None:
            record.derived["logit_difference_to_mlx_lm"] = check_agreement(engine, peer, vocab_size)
        _measure(
            record, engine, peer, prompt_lens, batch_sizes, decode_prompt_len, decode_steps, repeats
        )
    finally:
        if peer is not None:
            peer.close()
    _conclude(record, model, prompt_lens, peer is not None)
    record.finish()
    return record


def _measure(
    record: Record,
    engine: TimedEngine,
    peer: PeerProcess | None,
    prompt_lens: Sequence[int],
    batch_sizes: Sequence[int],
    decode_prompt_len: int,
    decode_steps: int,
    repeats: int,
) -> None:
    vocab_size = engine.loop.info.vocab_size
    samples: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    same_tokens = all_tokens = 0

    def keep(round_index: int, name: str, value: float) -> None:
        if round_index:  # the first round warms caches and compilers up
            samples.setdefault(name, []).append(value)

    for i in range(repeats + 1):
        sample_ceilings(record)
        for length in prompt_lens:
            prompt = random_prompts(1, length, vocab_size, seed=100 + i)[0]
            seconds, _ = engine.prefill(prompt)
            keep(i, f"prefill {length}: lingflash", length / seconds)
            if peer is not None:
                answer = peer.ask("prefill", token_ids=prompt)
                if "error" in answer:
                    refused[f"prefill {length}"] = answer["error"]
                else:
                    keep(i, f"prefill {length}: mlx-lm", length / answer["seconds"])
        for batch in batch_sizes:
            prompts = random_prompts(batch, decode_prompt_len, vocab_size, seed=200 + i)
            seconds, ours = engine.decode(prompts, decode_steps)
            keep(i, f"decode batch {batch}: lingflash", batch * decode_steps / seconds)
            if peer is not None and f"decode batch {batch}" not in refused:
                answer = peer.ask("decode", prompts=prompts, num_steps=decode_steps)
                if "error" in answer:
                    refused[f"decode batch {batch}"] = answer["error"]
                else:
                    keep(
                        i, f"decode batch {batch}: mlx-lm", batch * decode_steps / answer["seconds"]
                    )
                    theirs = answer["tokens"]
                    same_tokens += sum(a == b for a, b in zip(ours, theirs, strict=True))
                    all_tokens += len(ours)
    for name, values in samples.items():
        record.add(name, "tokens/s", values)
    for name, error in refused.items():
        record.notes.append(f"mlx-lm cannot do {name}: {error}")
    if all_tokens:
        record.derived["equal_greedy_answers"] = f"{same_tokens} of {all_tokens}"


def _conclude(record: Record, model: str, prompt_lens: Sequence[int], with_peer: bool) -> None:
    """Ratios, the part of the matrix rate that prefill reaches, and the promises."""
    peak = record.ceilings[MATMUL].median
    for length in prompt_lens:
        flops, active = prefill_flops(model, length)
        rate = record.results[f"prefill {length}: lingflash"].median
        reached = flops / length * rate * 1e-9
        record.derived["active_parameters"] = int(active)
        record.derived[f"prefill {length}: GFLOP/s"] = reached
        record.derived[f"prefill {length}: fraction of the matrix rate"] = reached / peak
    record.notes.append(
        "operations of a prompt: 2 x active parameters x tokens (output head for one row; no "
        "embedding, MTP layer, norms or linear-attention products) + causal half of MLA: heads x "
        "(key + value width) x T x (T + 1) per MLA layer"
    )
    if not with_peer:
        return
    cases = ("decode batch 1", f"prefill {_TARGET_PREFILL_TOKENS}")
    targets = dict(zip(cases, _TARGETS.get(processor().used, ()), strict=False))
    for name, series in list(record.results.items()):
        case, _, who = name.partition(": ")
        other = record.results.get(f"{case}: mlx-lm")
        if who == "lingflash" and other is not None:
            ratio = series.median / other.median
            record.derived[f"{case}: times mlx-lm"] = ratio
            if case in targets:
                record.promise(f"{case}, times mlx-lm", ratio, targets[case], "at least")
    record.notes.append(
        "mlx-lm: generate_step at batch 1, BatchGenerator above, its defaults, weights in float32; "
        "its prefill runs all but the last prompt token and then that one, as for its users"
    )
