"""What this CPU can do at most, sampled in the same run between the measurements, with torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lingflash.records.record import Record, require

# Square float32 product for the matrix rate, and bytes of the copied buffer: beyond the caches.
_MATMUL_SIZE = 2048
_COPY_BYTES = 256 * 2**20
MATMUL, COPY = "matmul_gflop_per_s", "copy_gb_per_s"


def use_threads(threads: int | None) -> None:
    """Set torch's number of threads, if one is given."""
    require(threads is None or threads >= 1, "--threads", threads, "1 or more")
    if threads is not None:
        torch.set_num_threads(threads)


def sample_ceilings(record: Record) -> None:
    """Take one sample of each, with torch's present number of threads."""
    a, b = (torch.ones(_MATMUL_SIZE, _MATMUL_SIZE) for _ in range(2))
    out = torch.empty_like(a)
    if MATMUL not in record.ceilings:
        torch.mm(a, b, out=out)
    seconds = _seconds(lambda: torch.mm(a, b, out=out))
    size = " x ".join([str(_MATMUL_SIZE)] * 3)
    what = f"torch.mm, float32, {size}"
    record.add_ceiling(MATMUL, what, 2e-9 * _MATMUL_SIZE**3 / seconds)
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    target = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    seconds = _seconds(lambda: target.copy_(source))
    what = f"copy of {_COPY_BYTES >> 20} MiB, bytes read plus bytes written"
    record.add_ceiling(COPY, what, 2e-9 * _COPY_BYTES / seconds)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
