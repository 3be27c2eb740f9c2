"""What the modules of cases share: a case, how it is timed, and random BF16 inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from lingflash.bench.on_gpu.gpu import launch_ms


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Args:
        run: does it once, without waiting.
        num_bytes: that it must read and write, each once.
        flops: that it must compute.
    """

    name: str
    run: Callable[[], object]
    num_bytes: float
    flops: float


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers on the GPU."""
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_().mul_(scale)


def time_cases(cases: list[Case], *, is_sorted: bool = False) -> None:
    """Print milliseconds, TFLOP/s and GB/s of each case; best last if asked."""

    @torch.inference_mode()
    def compile_one(case: Case) -> str | None:
        try:
            case.run()
            torch.cuda.synchronize()
        except Exception as error:  # one size that does not fit must not end the table
            return f"{type(error).__name__}: {str(error)[:90]}"
        return None

    with ThreadPoolExecutor(12) as pool:
        failures = list(pool.map(compile_one, cases))
    lines = []
    for case, failure in zip(cases, failures, strict=True):
        if failure is not None:
            print(f"{case.name:44s} {failure}")
            continue
        lines.append((launch_ms(case.run, 80), case))
    if is_sorted:
        lines.sort(key=lambda line: -line[0])
    for ms, case in lines:
        rate = f"{case.flops / ms / 1e9:7.0f} TFLOP/s" if case.flops else " " * 15
        print(f"{case.name:44s} {ms:9.4f} ms {rate} {case.num_bytes / ms / 1e6:7.0f} GB/s")
    sys.stdout.flush()
