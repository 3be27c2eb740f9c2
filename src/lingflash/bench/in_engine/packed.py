"""`ling bench packed`: products with packed INT4 and FP8 of the published shapes, on the CPU.

Each is timed beside what bounds it, the memory's read rate for one row and a float32 matrix product
for many, and beside the way without compiled kernels, which turns the weight into numbers first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lingflash.bench.in_engine.ceilings import MATMUL, sample_ceilings, use_threads
from lingflash.bench.in_engine.dummy_checkpoint import LING_2_6_FLASH
from lingflash.core.errors import ConfigError
from lingflash.kernels.cpu.packed import lanes
from lingflash.kernels.moe_gemm import expert_mlp
from lingflash.models.config import parse_model_config
from lingflash.quant.matrix import QuantizedExperts, QuantizedMatrix, linear
from lingflash.records.record import Record, require

_READ = "read_gb_per_s"
_READ_BYTES = 512 * 2**20
# Of the memory's read rate for one row, and of the float32 matrix rate for a prompt.
_DECODE_TARGET, _PROMPT_TARGET = 0.7, 0.4
_MODEL = parse_model_config(LING_2_6_FLASH)
# Bytes of weights that a token reads in INT4 with groups of 128 and the rest in FP8.
_TOKEN_BYTES = 1.61e9 + 3.7e9


def run_packed(
    *,
    layers: int,
    prompt: int,
    repeats: int,
    threads: int | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Time experts and a dense matrix, for one token and for a prompt.

    Raises:
        ConfigError: a value is out of range, or there are no kernels for this processor.
    """
    require(1 <= layers <= 32, "--layers", layers, "1 to 32")
    require(2 <= prompt <= 65536, "--prompt", prompt, "2 to 65536")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    use_threads(threads)
    record = Record("packed", out, allow_dirty)
    if not lanes():
        raise ConfigError(
            "There are no kernels for packed weights here; `ling doctor` says why.", param="packed"
        )
    record.settings = {"layers": layers, "prompt": prompt, "repeats": repeats}
    cases = _cases(layers, prompt)
    buffer = torch.ones(_READ_BYTES // 4)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    plain: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(repeats + 1):
        sample_ceilings(record)
        for name, (work, slow, _, _) in cases.items():
            read = _READ_BYTES / _timed(buffer.sum) / 1e9
            took, longer = _timed(work), _timed(slow)
            if i:  # the first round is not counted
                record.add_ceiling(_READ, f"sum of {_READ_BYTES >> 20} MiB", read)
                seconds[name].append(took)
                plain[name].append(longer)
    read_rate, matrix_rate = record.ceilings[_READ].median, record.ceilings[MATMUL].median
    for name, (_, _, num_bytes, flops) in cases.items():
        if flops:
            rate = record.add(name, "GFLOP/s", [flops / s / 1e9 for s in seconds[name]])
            share, target = rate.median / matrix_rate, _PROMPT_TARGET
            text = f"{name}: share of the matrix rate"
        else:
            rate = record.add(name, "GB/s", [num_bytes / s / 1e9 for s in seconds[name]])
            share, target = rate.median / read_rate, _DECODE_TARGET
            text = f"{name}: share of the read rate"
        record.promise(text, share, target, "at least")
        pairs = zip(plain[name], seconds[name], strict=True)
        record.add(f"{name}: over turning it into numbers", "times", [a / b for a, b in pairs])
    one = record.results[_named("INT4 g128", 1)].median
    dense = record.results["FP8, a dense matrix, 1 row"].median
    record.derived["predicted tokens/s of 32 layers, int4-fp8"] = 1e9 / (
        1.61e9 / one + 3.7e9 / dense
    )
    record.derived["at the read rate, tokens/s of 32 layers"] = read_rate * 1e9 / _TOKEN_BYTES
    record.finish()
    return record


def _named(label: str, tokens: int) -> str:
    return f"{label}, experts, {tokens} {'row' if tokens == 1 else 'rows'}"


Case = tuple[Callable[[], object], Callable[[], object], int, int]


def _cases(layers: int, prompt: int) -> dict[str, Case]:
    """Name to the work, the same without compiled kernels, bytes read, and flops for a prompt."""
    cases: dict[str, Case] = {}
    generator = torch.Generator().manual_seed(0)
    hidden, width, topk = _MODEL.hidden_size, _MODEL.moe_intermediate_size, 8
    for label, group in (("INT4 g32", 32), ("INT4 g128", 128)):
        # The chosen experts of each layer alone, since no other is read.
        count = layers * topk
        up = _experts(count, (width, width), hidden, group, generator)
        down = _experts(count, (hidden,), width, group, generator)
        num_bytes = sum(w.values.nbytes + w.scale.nbytes for w in (up, down))
        for tokens in (1, prompt):
            x = torch.randn(tokens, hidden, generator=generator)
            # A prompt's rows spread over one layer's experts; a token has a layer after the other.
            rounds = layers if tokens == 1 else 1
            ids = torch.arange(count).view(layers, 1, topk).expand(layers, tokens, topk)
            weights = torch.full((tokens, topk), 1 / topk)

            rest = (x, ids[:rounds], weights)
            cases[_named(label, tokens)] = (
                partial(_run_experts, up, down, *rest),
                partial(_run_experts, _as_stored(up), _as_stored(down), *rest),
                num_bytes,
                0 if tokens == 1 else 2 * tokens * topk * 3 * hidden * width,
            )
    scale = torch.rand(hidden * 4 // 128, hidden // 128, generator=generator) * 0.01
    values = torch.randint(0, 120, (hidden, hidden * 4), dtype=torch.uint8, generator=generator)
    parts = (hidden * 4,)
    stored = values.view(torch.float8_e4m3fn).t()
    matrix = QuantizedMatrix(stored, scale, (128, 128), torch.float32, parts)
    other = QuantizedMatrix(stored.contiguous(), scale, (128, 128), torch.float32, parts)
    for tokens in (1, prompt):
        x = torch.randn(tokens, hidden, generator=generator)
        cases[f"FP8, a dense matrix, {tokens} {'row' if tokens == 1 else 'rows'}"] = (
            partial(linear, x, matrix),
            partial(linear, x, other),
            values.nbytes,
            0 if tokens == 1 else 2 * tokens * values.numel(),
        )
    return cases


def _run_experts(
    up: QuantizedExperts, down: QuantizedExperts, x: Tensor, ids: Tensor, weights: Tensor
) -> None:
    for chosen in ids:
        expert_mlp(x, up, down, chosen, weights)


def _experts(
    count: int, part_rows: tuple[int, ...], columns: int, group: int, generator: torch.Generator
) -> QuantizedExperts:
    """Random packed experts, in memory as the loader lays them out."""
    rows = sum(part_rows)
    words = torch.randint(
        -(2**31), 2**31 - 1, (count, columns // 8, rows), dtype=torch.int32, generator=generator
    )
    scale = torch.rand(count, columns // group, rows, generator=generator).mul_(0.01).bfloat16()
    return QuantizedExperts(
        words.transpose(1, 2), scale.transpose(1, 2), (1, group), torch.float32, part_rows
    )


def _as_stored(w: QuantizedExperts) -> QuantizedExperts:
    """The same in a checkpoint's order, which no compiled kernel takes."""
    return QuantizedExperts(w.values.contiguous(), w.scale, w.block, w.dtype, w.part_rows)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
