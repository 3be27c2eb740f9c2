"""`ling bench kernels`: every kernel at Ling-2.6-flash's shapes on one GPU, beside its rivals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lingflash.bench.on_gpu.gpu import GpuCeilings, describe_gpu, launch_ms
from lingflash.core.errors import ConfigError
from lingflash.records.record import Record, require

if TYPE_CHECKING:
    from lingflash.bench.on_gpu.kernel_cases.case import Case

GROUPS = ("lightning", "mla", "prefill", "decode")
_TARGET_OVER_FLA = 1.3


def run_kernels(
    *,
    groups: Sequence[str],
    repeats: int,
    out: Path | None,
    allow_dirty: bool,
    commit: str | None,
) -> Record:
    """Time the cases of some groups, each `repeats` times in rounds.

    Raises:
        ConfigError: a value is not allowed, or there is no GPU.
    """
    require(set(groups) <= set(GROUPS), "--group", list(groups), ", ".join(GROUPS))
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    if not torch.cuda.is_available():
        raise ConfigError(
            "ling bench kernels needs an NVIDIA GPU and a CUDA build of torch.", param="device"
        )
    record = Record("kernels", out, allow_dirty, commit=commit)
    torch.manual_seed(0)
    ceilings = GpuCeilings()
    ceilings.sample()
    record.derived["ceilings"] = ceilings.as_dict()
    torch.cuda.empty_cache()
    record.settings = {
        "shape": "ling-2.6-flash", "groups": list(groups), "repeats": repeats,
        "gpu": describe_gpu(),
    }  # fmt: skip
    with torch.inference_mode():
        for case in _cases(groups):
            _time(record, case, ceilings, repeats)
    if "decode" in groups:
        _time_decode(record, ceilings, repeats)
    for num_tokens in (8192, 65_536):
        mine = record.results.get(f"lightning prefill {num_tokens}")
        theirs = [
            series.median
            for name, series in record.results.items()
            if name.startswith("fla simple_gla") and name.endswith(f" {num_tokens}")
        ]
        if mine is not None and theirs:
            ratio = min(theirs) / mine.median
            name = f"lightning prefill of {num_tokens} tokens over fla's simple_gla"
            record.promise(name, ratio, _TARGET_OVER_FLA, "at least")
    record.finish()
    return record


def _cases(groups: Sequence[str]) -> Iterable[Case]:
    """Cases one after the other: together their inputs would fill the memory."""
    from lingflash.bench.on_gpu.kernel_cases import attention, gemm

    if "lightning" in groups:
        yield from attention.all_cases(("lightning", "fla"))
    if "mla" in groups:
        yield from attention.all_cases(("mla", "decode"))
    if "prefill" in groups:
        yield from gemm.dense_cases()
        for name in ("fp8", "bf16", "int4"):
            yield from gemm.expert_cases(name)


def _time(record: Record, case: Case, ceilings: GpuCeilings, repeats: int) -> None:
    """Add one case: medians of single launches, caches cold as between the layers of a model."""
    samples = [launch_ms(case.run) for _ in range(repeats)]
    _keep(record, case.name, samples, case.num_bytes, case.flops, ceilings)


def _time_decode(record: Record, ceilings: GpuCeilings, repeats: int) -> None:
    """Add the kernels of a decode step as they are cut by default, captured one after another."""
    from lingflash.bench.on_gpu.kernel_cases.decode import default_variants
    from lingflash.bench.on_gpu.kernel_cases.sweep import graph_time_s

    for variant in default_variants():
        launches = variant.build()
        samples = [graph_time_s(launches) * 1e3 for _ in range(repeats)]
        _keep(record, variant.group, samples, variant.num_bytes, variant.flops, ceilings)
        torch.cuda.empty_cache()


def _keep(
    record: Record, name: str, samples: list[float], num_bytes: float, flops: float,
    ceilings: GpuCeilings,
) -> None:  # fmt: skip
    """Add samples and what they mean beside the ceilings."""
    ms = record.add(name, "ms", samples).median
    rate = {"gb": round(num_bytes * 1e-9, 4), "tflop": round(flops * 1e-12, 4)}
    rate["fraction_of_read"] = round(num_bytes / (ms * 1e-3) / ceilings.read, 3)
    rate["fraction_of_matmul"] = round(flops / (ms * 1e-3) / ceilings.matmul, 3)
    record.derived[name] = rate
    record.save()
    spread = max(samples) / statistics.median(samples)
    print(f"{name:44s} {ms:9.4f} ms  {rate}  max/median {spread:.2f}", flush=True)
