"""How long a GPU takes, and what it can do at most, measured in the same run."""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false
from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lingflash.records.record import Ceiling

_COPY_BYTES = 4 * 2**30
_MATMUL_SIZE = 8192
_REPEATS = 5
_CACHE_BYTES = 256 * 2**20
_HEAD_START_CYCLES = 2_000_000


def collect_memory() -> None:
    """Give back what nothing uses: engines and graphs refer to themselves in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def time_s(run: Callable[[], object], warmups: int = 1) -> float:
    """Seconds of one call on the device, by its own clock."""
    for _ in range(warmups):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def launch_ms(run: Callable[[], object], rep_ms: float = 40.0) -> float:
    """Milliseconds of one call on the device: the median of calls with cold caches.

    Before each call the device is kept busy for about a millisecond, so that the host has queued
    all of its launches before the first one starts: what is timed is the device's work, however
    slow the host is, as within a long prefill or a graph.

    Args:
        run: launches the work and does not wait for it; called once before, to compile.
        rep_ms: of timed work; 5 calls at least, 100 at most.
    """
    calls = int(min(max(rep_ms * 1e-3 / time_s(run), 5), 100))
    cache = torch.empty(_CACHE_BYTES, dtype=torch.int8, device="cuda")
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(calls)
    ]
    for start, end in pairs:
        cache.zero_()
        torch.cuda._sleep(_HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def kernel_times(run: Callable[[], object], num_steps: int) -> list[tuple[str, float, float]]:
    """Name, launches per step and microseconds per step of every kernel, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(num_steps):
            run()
        torch.cuda.synchronize()
    rows = [
        (event.key, event.count / num_steps, event.self_device_time_total / num_steps)
        for event in found.key_averages()
        if event.self_device_time_total
    ]
    return sorted(rows, key=lambda row: -row[2])


class GpuCeilings:
    """Samples of a device's rates, between the measurements."""

    def __init__(self) -> None:
        size = f"{_COPY_BYTES >> 30} GiB"
        self._copy = Ceiling(f"copy of {size}, read plus written", [])
        self._read = Ceiling(f"sum of {size} of float32, read", [])
        self._matmul = Ceiling(f"torch.mm, bfloat16, {_MATMUL_SIZE} cubed, random", [])

    def sample(self) -> None:
        """Take a few samples of each; needs 8 GiB of device memory."""
        source = torch.empty(_COPY_BYTES // 4, device="cuda").normal_()
        target = torch.empty_like(source)
        a, b = (torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device="cuda").bfloat16() for _ in range(2))
        for i in range(_REPEATS):
            seconds = time_s(lambda: target.copy_(source), warmups=not i)
            self._copy.samples.append(2e-9 * _COPY_BYTES / seconds)
            seconds = time_s(lambda: _read(source), warmups=not i)
            self._read.samples.append(1e-9 * _COPY_BYTES / seconds)
            seconds = time_s(lambda: torch.mm(a, b), warmups=not i)
            self._matmul.samples.append(2e-12 * _MATMUL_SIZE**3 / seconds)

    @property
    def read(self) -> float:
        """Median bytes per second that a kernel that only reads gets."""
        return self._read.median * 1e9

    @property
    def matmul(self) -> float:
        """Median operations per second of a large BF16 product."""
        return self._matmul.median * 1e12

    def as_dict(self) -> dict[str, Any]:
        """Median and samples of each, with what was measured."""
        return {
            "copy_gb_per_s": self._copy.as_dict(),
            "read_gb_per_s": self._read.as_dict(),
            "matmul_tflop_per_s": self._matmul.as_dict(),
        }


def _read(x: Tensor) -> Tensor:
    """Sum everything in pieces: the device's own reduction, which only reads."""
    return x.view(-1, 1 << 16).sum(1)


def describe_gpu() -> dict[str, Any]:
    """Name, memory and software of the device in use."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }
