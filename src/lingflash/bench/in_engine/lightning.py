"""`ling bench lightning`: time of the lightning attention operator over a long prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lingflash.bench.in_engine.ceilings import sample_ceilings, use_threads
from lingflash.core.anchors import ANCHOR
from lingflash.kernels.lightning_attn import (
    DecayTables,
    LightningPlan,
    decay_tables,
    lightning_attention,
    plan_lightning,
)
from lingflash.records.record import Record, require

# A length four times the other may take this many times as long.
_TARGET_RATIO = 4.4
_FAST_CHUNK = 64


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of a lightning layer; key and value width are equal."""

    name: str
    num_heads: int
    head_dim: int


SHAPES = (HeadShape("ling-nano", 8, 32), HeadShape("flash-like", 32, 128))


class Case:
    """One sequence's prompt in one call, from an empty state."""

    def __init__(self, shape: HeadShape, num_tokens: int) -> None:
        generator = torch.Generator().manual_seed(num_tokens)
        size = (num_tokens, shape.num_heads, shape.head_dim)
        self.q, self.k, self.v = (torch.randn(size, generator=generator) for _ in range(3))
        heads, d = shape.num_heads, shape.head_dim
        rate = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])
        self.tables: DecayTables = decay_tables(rate, _FAST_CHUNK, d, torch.device("cpu"))
        self.states = torch.zeros(1, heads, d, d)
        self.tail_k, self.tail_v = (torch.zeros(1, heads, ANCHOR, d) for _ in range(2))
        self.plan: LightningPlan = plan_lightning(
            [0],
            [0],
            [num_tokens],
            [0],
            chunk=_FAST_CHUNK,
            device=torch.device("cpu"),
            allow_decode=True,
        )

    @torch.inference_mode()
    def run(self) -> tuple[float, Tensor]:
        """Seconds of one call, and its result."""
        self.states.zero_()
        start = time.perf_counter()
        out = lightning_attention(
            self.q,
            self.k,
            self.v,
            self.tables,
            self.states,
            self.tail_k,
            self.tail_v,
            self.plan,
        )
        return time.perf_counter() - start, out


def run_lightning(
    *,
    lengths: Sequence[int],
    repeats: int,
    threads: int | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Time each shape at each length, taking turns.

    Raises:
        ConfigError: a value is out of range.
    """
    require(
        len(lengths) >= 1 and min(lengths) >= 1 and list(lengths) == sorted(set(lengths)),
        "--tokens",
        list(lengths),
        "ascending lengths of 1 or more",
    )
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    use_threads(threads)
    record = Record("lightning", out, allow_dirty)
    record.settings = {
        "dtype": "float32",
        "chunk": _FAST_CHUNK,
        "repeats": repeats,
        "shapes": {s.name: {"heads": s.num_heads, "head_dim": s.head_dim} for s in SHAPES},
    }
    for shape in SHAPES:
        cases = {length: Case(shape, length) for length in lengths}
        samples: dict[int, list[float]] = {length: [] for length in lengths}
        for i in range(repeats + 1):
            sample_ceilings(record)
            for length, case in cases.items():
                seconds, _ = case.run()
                if i:
                    samples[length].append(1e3 * seconds)
        for length in lengths:
            record.add(f"{shape.name}: {length} tokens", "ms", samples[length])
        if len(lengths) > 1:
            first, last = lengths[0], lengths[-1]
            ratio = (
                record.results[f"{shape.name}: {last} tokens"].median
                / record.results[f"{shape.name}: {first} tokens"].median
            )
            record.derived[f"{shape.name}: time at {last} over {first} tokens"] = ratio
            if last == 4 * first:
                record.promise(
                    f"{shape.name}: time at {last} over {first} tokens",
                    ratio,
                    _TARGET_RATIO,
                    "at most",
                )
    record.notes.append("the operator alone, one sequence in one call, from an empty state")
    record.finish()
    return record
