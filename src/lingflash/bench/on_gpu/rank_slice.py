"""One rank's slice of a split model, alone on one GPU: what it computes, without the exchanges."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lingflash.bench.on_gpu.dummy_model import make_dummy_model
from lingflash.bench.on_gpu.gpu import GpuCeilings, collect_memory, describe_gpu, time_s
from lingflash.bench.on_gpu.latency import DecodeLoop, Prefill, count_bytes
from lingflash.bench.on_gpu.shapes import shape_config
from lingflash.core.errors import ConfigError
from lingflash.kernels.lightning_attn import ANCHOR
from lingflash.models.bailing_hybrid import BailingHybrid
from lingflash.parallel.mesh import Mesh
from lingflash.parallel.shard import Shard
from lingflash.records.record import Record


class LoneRank(Mesh):
    """The first of several ranks whose others are not there: it has its own part of every sum.

    Words are embedded and drawn among its own, so that all tokens differ as they would.
    """

    def __init__(self, size: int) -> None:
        super().__init__(Shard(0, size))

    def sum(self, x: Tensor) -> Tensor:
        """Its own part."""
        return x

    def add_sum(self, parts: Tensor, stream: Tensor) -> None:
        """Add its own part."""
        stream.copy_(parts.sum(1).add_(stream))

    def gather(self, x: Tensor) -> Tensor:
        """Its own columns."""
        return x


def make_slice(
    shape: str, layers: int | None, layout: str, device: torch.device, longest: int, ranks: int
) -> BailingHybrid:
    """The first rank's weights, random.

    Raises:
        ConfigError: the model cannot be split so, or has not so many layers.
    """
    return make_dummy_model(shape_config(shape, layers), layout, device, longest, LoneRank(ranks))


def measure_slice(
    record: Record, *, layers: int | None, format_name: str, batch: int, lengths: Sequence[int],
    repeats: int, ranks: int,
) -> None:  # fmt: skip
    """Add decode steps after each length, and prompts of it, in tokens per second.

    Raises:
        ConfigError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "ling bench curves --measure needs an NVIDIA GPU and a CUDA build of torch; --roofline "
            "needs neither.",
            param="measure",
        )
    torch.manual_seed(0)
    ceilings = GpuCeilings()
    ceilings.sample()
    collect_memory()
    device = torch.device("cuda")
    longest = max(lengths) + 2 * ANCHOR
    model = make_slice("ling-2.6-flash", layers, format_name, device, longest, ranks)
    record.settings |= {
        "gpu": describe_gpu(), "weights": "dummy", "weight_bytes": model.num_weight_bytes,
        "layers": model.config.num_hidden_layers, "steps_per_round": ANCHOR,
    }  # fmt: skip
    for length in lengths:
        record.derived[f"decode c{length}"] = _decode(record, model, batch, length, repeats)
        record.save()
        collect_memory()
    for length in lengths:
        case = Prefill(model, length)
        rates = [length / time_s(case.run, warmups=not i) for i in range(repeats)]
        print(f"prefill {length}", record.add(f"prefill {length}", "tokens/s", rates).median)
        record.save()
        del case
        collect_memory()
    ceilings.sample()
    record.derived["ceilings"] = ceilings.as_dict()


def _decode(
    record: Record, model: BailingHybrid, batch: int, context: int, repeats: int
) -> dict[str, Any]:
    """Steps as graphs, each sampling what the next one reads."""
    loop = DecodeLoop(model, batch, context, ANCHOR)
    loop.capture()

    def run() -> None:
        for _ in range(ANCHOR):
            loop.replay()

    samples, distinct = [], []
    for i in range(repeats + 1):
        loop.rewind()
        seconds = time_s(run, warmups=0) / ANCHOR
        if i:  # the first round warms up
            samples.append(batch / seconds)
            distinct += loop.distinct_experts()
    rate = record.add(f"decode c{context}", "tokens/s", samples).median
    touched = statistics.mean(distinct)
    num_bytes = count_bytes(model).total(
        [round(touched)] * len(loop.decoder.topk_ids), batch, context + ANCHOR / 2
    )
    found = {"gb_per_step": round(num_bytes * 1e-9, 3), "distinct_experts_mean": round(touched, 1)}
    print(f"decode c{context}", f"{rate:.0f} tokens/s", found, flush=True)
    return found
