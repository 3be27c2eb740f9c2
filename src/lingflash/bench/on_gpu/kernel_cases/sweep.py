"""Time many variants of kernels on one GPU: compiled side by side first, then one after another."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lingflash.bench.on_gpu.gpu import time_s

_REPLAYS = 5


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do something.

    Args:
        group: what is done; variants of a group are compared.
        label: the way.
        build: allocates inputs and returns launches to be captured, each with inputs of its own so
            that no weight is found in a cache.
        num_bytes: read and written by one launch.
        flops: of one launch.
    """

    group: str
    label: str
    build: Callable[[], Sequence[Callable[[], object]]]
    num_bytes: float = 0.0
    flops: float = 0.0


def graph_time_s(launches: Sequence[Callable[[], object]], replays: int = _REPLAYS) -> float:
    """Seconds of one launch when all follow each other in a CUDA graph: median over replays."""
    launches[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = [time_s(graph.replay, warmups=0) / len(launches) for _ in range(replays)]
    return statistics.median(times)


def _compile(make: Callable[[], list[Variant]], places: Sequence[int]) -> None:
    variants = make()
    for place in places:
        try:
            variants[place].build()[0]()
            torch.cuda.synchronize()
        except Exception as error:  # reported where it is timed
            print(f"{variants[place].group} {variants[place].label}: {error!r:.200}", flush=True)
        torch.cuda.empty_cache()


def run_sweep(
    make: Callable[[], list[Variant]], processes: int = 12
) -> dict[str, dict[str, float]]:
    """Seconds per launch of every variant, printed by group, best last; what fails is left out.

    Args:
        make: a module's function that lists the variants; also called in other processes, which
            fill the compiler's cache.
    """
    variants = make()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_compile, args=(make, range(i, len(variants), processes)))
        for i in range(min(processes, len(variants)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found: dict[str, dict[str, float]] = {}
    for variant in variants:
        try:
            seconds = graph_time_s(variant.build())
        except Exception as error:  # a variant that cannot run must not end the sweep
            print(f"{variant.group} {variant.label}: failed {error!r:.300}", flush=True)
            continue
        found.setdefault(variant.group, {})[variant.label] = seconds
        torch.cuda.empty_cache()
    by_label = {(v.group, v.label): v for v in variants}
    for group, times in found.items():
        print(group)
        for label, seconds in sorted(times.items(), key=lambda pair: -pair[1]):
            v = by_label[group, label]
            print(
                f"  {seconds * 1e6:9.2f} us {v.num_bytes / seconds * 1e-9:7.0f} GB/s "
                f"{v.flops / seconds * 1e-12:7.1f} TFLOP/s  {label}",
                flush=True,
            )
    return found
