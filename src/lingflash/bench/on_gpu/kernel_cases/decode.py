"""Products, router and norms of a decode step.

python -m lingflash.bench.on_gpu.kernel_cases.decode [PART OF A NAME ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from lingflash.bench.on_gpu.kernel_cases.sweep import Variant, run_sweep
from lingflash.kernels.lightning_attn import decay_tables
from lingflash.kernels.lightning_attn.triton_decode import lightning_decode_triton
from lingflash.kernels.moe_gemm.decode import (
    DecodeExperts,
    ExpertTiles,
    Int4Tiles,
    OneTokenTiles,
    block_rows,
    down_decode,
    down_one_token,
    gate_up_decode,
    plan_rows,
)
from lingflash.kernels.moe_route import RoutingRule
from lingflash.kernels.moe_route.triton_few_tokens import ROUTER_PARTS, route_decode
from lingflash.kernels.moe_route.triton_one_token import norm_and_route_one
from lingflash.kernels.rmsnorm.triton_add_parts import add_parts_rms_norm
from lingflash.kernels.rmsnorm.triton_rows import gated_group_rms_norm_triton
from lingflash.kernels.sampling.triton_sample import sample_tokens_triton
from lingflash.kernels.skinny_gemm.triton_few_rows import SkinnyTiles, skinny_gemm_triton
from lingflash.kernels.skinny_gemm.triton_one_row import RowNorm, one_row_product

HIDDEN, WIDTH, EXPERTS, TOPK, HEADS, DIM = 4096, 1024, 256, 8, 32, 128
CUDA = torch.device("cuda")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Launches that are captured together, each on other weights where they fit several times.
_COPIES = 8

Launches = Sequence[Callable[[], object]]
Tiles = ExpertTiles | Int4Tiles | OneTokenTiles


def _random(shape: tuple[int, ...], kind: str) -> Tensor:
    """Random weights of about unit size times 0.02."""
    if kind == "words":
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=CUDA)
    values = torch.empty(shape, dtype=torch.bfloat16, device=CUDA).normal_(0.0, 0.02)
    return values if kind == "bf16" else values.mul_(50.0).to(torch.float8_e4m3fn)


def _skinny(tokens: int, rows: int, width: int, kind: str, tiles: SkinnyTiles | None) -> Launches:
    launches = []
    for _ in range(_COPIES):
        x = torch.randn(tokens, width, device=CUDA).half()
        w = _random((rows, width), kind)
        scale = torch.full((rows, 1), 0.02, device=CUDA) if kind == "fp8-channel" else None
        if kind == "fp8":
            scale = torch.full((-(-rows // 128), -(-width // 128)), 0.02, device=CUDA)
        out = torch.empty(tokens, rows, dtype=torch.bfloat16, device=CUDA)
        launches.append(partial(skinny_gemm_triton, x, w, scale, out, tiles=tiles))
    return launches


def _one_row(rows: int, width: int, kind: str, cut: tuple[int, int] | None) -> Launches:
    """As a layer takes it: normed, into the projections; at the layer's width, added."""
    block_n, warps = cut or (None, None)
    launches = []
    for run in _skinny(1, rows, width, kind, None):
        x, w, scale, out = run.args  # pyright: ignore[reportFunctionMemberAccess]
        norm = None if rows > 32768 else RowNorm(torch.ones(width, device=CUDA), 1e-6)
        options = {"norm": norm, "add": rows == width, "block_n": block_n, "warps": warps}
        launches.append(partial(one_row_product, x, w, scale, out, **options))
    return launches


def _matrices(rows: int, width: int, kind: str) -> DecodeExperts:
    if kind == "bf16":
        return DecodeExperts(_random((EXPERTS, rows, width), kind), None)
    if kind == "fp8":
        scale = torch.full((EXPERTS, rows // 128, width // 128), 0.02, device=CUDA)
        return DecodeExperts(_random((EXPERTS, rows, width), kind), scale)
    group = int(kind.removeprefix("int4-"))
    scale = torch.full((EXPERTS, rows, width // group), 4e-3, dtype=torch.bfloat16, device=CUDA)
    return DecodeExperts(_random((EXPERTS, rows, width // 8), "words"), scale, group)


def _routing(tokens: int) -> Tensor:
    ids = torch.stack([torch.randperm(EXPERTS, device=CUDA)[:TOPK] for _ in range(tokens)])
    return ids.to(torch.int32)


def _gate_up(tokens: int, kind: str, tiles: Tiles | None) -> Launches:
    w = _matrices(2 * WIDTH, HIDDEN, kind)
    is_int4 = kind.startswith("int4")
    x = torch.randn(tokens, HIDDEN, device=CUDA).half()
    if is_int4 and tokens > 1:
        x = x.bfloat16()
    kept = torch.float32 if tokens == 1 else torch.bfloat16
    act = torch.empty(tokens, TOPK, WIDTH, dtype=kept, device=CUDA)
    launches = []
    for _ in range(_COPIES):
        ids = _routing(tokens)
        plan = None if tokens == 1 else plan_rows(ids, EXPERTS, block_rows(w, tokens))
        cut = {"one_token" if tokens == 1 else "tiles": tiles}
        launches.append(partial(gate_up_decode, x, w, ids, plan, act, nibbles=is_int4, **cut))
    return launches


def _down(tokens: int, kind: str, tiles: Tiles | None) -> Launches:
    w = _matrices(HIDDEN, WIDTH, kind)
    weights = torch.rand(tokens, TOPK, device=CUDA)
    launches = []
    if tokens == 1:
        act = torch.zeros(1, TOPK, WIDTH, device=CUDA)
        out = torch.zeros(1, HIDDEN, dtype=torch.bfloat16, device=CUDA)
        run = partial(down_one_token, tiles=tiles)  # pyright: ignore[reportArgumentType]
        return [partial(run, act, w, _routing(1), weights, out) for _ in range(_COPIES)]
    act = torch.randn(tokens, TOPK, WIDTH, device=CUDA).bfloat16()
    out = torch.empty(tokens, TOPK, HIDDEN, device=CUDA)
    for _ in range(_COPIES):
        ids = _routing(tokens)
        plan = plan_rows(ids, EXPERTS, block_rows(w, tokens))
        run = partial(down_decode, tiles=tiles)  # pyright: ignore[reportArgumentType]
        launches.append(partial(run, act, w, ids, weights, plan, out))
    return launches


def distinct(tokens: int) -> float:
    """Expected number of experts that uniform routing of so many tokens touches."""
    return EXPERTS * (1 - (1 - TOPK / EXPERTS) ** tokens)


_ONE_GATE_UP = [OneTokenTiles(*t) for t in ((8, 4), (8, 8), (16, 8), (4, 4), (4, 8))]
_ONE_DOWN = [
    OneTokenTiles(*t)
    for t in ((16, 8, 8), (8, 8, 8), (16, 4, 4), (8, 4, 8), (32, 8, 2), (16, 16, 8))
]
_BYTES = {
    "bf16": 2.0, "fp8": 1.0, "fp8-channel": 1.0, "int4-32": 0.5 + 2 / 32, "int4-128": 0.5 + 2 / 128,
}  # fmt: skip


# Rows of x, rows of weights, columns, warps and stages of products of more than 64 rows.
_MANY_ROWS = (
    (64, 64, 128, 4, 6), (64, 128, 128, 4, 4), (128, 64, 128, 4, 4), (128, 64, 128, 8, 4),
    (128, 128, 128, 8, 3), (128, 128, 128, 4, 3), (64, 64, 128, 4, 4), (128, 32, 128, 4, 4),
)  # fmt: skip


def _others(tokens: int) -> list[Variant]:
    """Kernels without variants."""

    def route() -> Launches:
        x = torch.randn(tokens, HIDDEN, device=CUDA).half()
        bias = torch.zeros(EXPERTS, device=CUDA)
        parts = torch.empty(tokens, ROUTER_PARTS, EXPERTS, device=CUDA)
        ids, weights = _routing(tokens), torch.empty(tokens, TOPK, device=CUDA)
        gates = [torch.randn(EXPERTS, HIDDEN, device=CUDA) * 0.02 for _ in range(_COPIES)]
        rule = RoutingRule(8, 4, TOPK, norm_topk_prob=True, scaling_factor=2.5)
        if tokens > 1:
            return [
                partial(route_decode, x, gate, bias, parts, ids, weights, rule) for gate in gates
            ]
        norm, logits = torch.ones(HIDDEN, device=CUDA), parts[:, 0]
        return [
            partial(
                norm_and_route_one, x, norm, 1e-6, gate, bias, logits, x.clone(), None, ids,
                weights, rule,
            )
            for gate in gates
        ]  # fmt: skip

    def plan() -> Launches:
        return [partial(plan_rows, _routing(tokens), EXPERTS) for _ in range(_COPIES)]

    def norm() -> Launches:
        parts = torch.randn(tokens, TOPK + 1, HIDDEN, device=CUDA)
        residual = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16, device=CUDA)
        weight, out = torch.ones(HIDDEN, device=CUDA), torch.empty(tokens, HIDDEN, device=CUDA)
        run = partial(add_parts_rms_norm, parts, residual, weight, 1e-6, out.half())
        return [run] * _COPIES

    def gate() -> Launches:
        x, fused = torch.randn(tokens, HIDDEN, device=CUDA), torch.randn(tokens, 4 * HIDDEN)
        g = fused.to(CUDA, torch.bfloat16)[:, 3 * HIDDEN :]
        weight = torch.ones(HIDDEN, dtype=torch.bfloat16, device=CUDA)
        return [partial(gated_group_rms_norm_triton, x, g, weight, 4, 1e-6)] * _COPIES

    def lightning() -> Launches:
        rate = torch.logspace(-0.3, -8, HEADS, base=2, dtype=torch.float64)
        tables = decay_tables(rate, 64, DIM, CUDA)
        fused = torch.randn(tokens, 4 * HIDDEN, device=CUDA).bfloat16()
        cos = torch.rand(tokens, 1, 32, device=CUDA)
        norm = torch.ones(2, 1, DIM, device=CUDA)
        slots, offsets = torch.arange(tokens, device=CUDA), torch.arange(tokens, device=CUDA) % 15
        launches = []
        for _ in range(_COPIES):
            states = torch.randn(tokens, HEADS, DIM, DIM, device=CUDA)
            tails = [torch.randn(tokens, HEADS, 16, DIM, device=CUDA) for _ in range(2)]
            launches.append(
                partial(
                    lightning_decode_triton, fused, norm, cos, cos, tables, states, *tails, slots,
                    offsets, eps=1e-6,
                )
            )  # fmt: skip
        return launches

    def sample() -> Launches:
        logits = torch.randn(tokens, 157184, device=CUDA)
        temperature = torch.ones(tokens, device=CUDA)
        keys = torch.randint(2**62, (tokens,), device=CUDA)
        return [partial(sample_tokens_triton, logits, temperature, keys)] * _COPIES

    state = tokens * HEADS * DIM * DIM * 4.0
    return [
        Variant(f"router b{tokens}", "two launches", route, EXPERTS * HIDDEN * 4.0),
        Variant(f"plan b{tokens}", "one program", plan),
        Variant(f"norm b{tokens}", "nine parts", norm, tokens * HIDDEN * 9 * 4.0),
        Variant(f"group norm b{tokens}", "gated", gate, tokens * HIDDEN * 10.0),
        Variant(f"lightning b{tokens}", "decode", lightning, state),
        Variant(f"sample b{tokens}", "temperature 1", sample, tokens * 157184 * 4.0),
    ]


def variants() -> list[Variant]:
    """All of them."""
    found = _others(1) + _others(32) + _others(128)
    shapes = {"qkvg": (4 * HIDDEN, HIDDEN), "dense": (HIDDEN, HIDDEN), "head": (157184, HIDDEN)}
    for (name, (rows, width)), kind in product(shapes.items(), ("fp8", "fp8-channel", "bf16")):
        if name == "head" and kind == "fp8":
            continue
        size = rows * width * _BYTES[kind]
        rows_tiles = [
            SkinnyTiles(16, n, k, warps, stages)
            for n, k, warps, stages in (
                (32, 128, 2, 8), (64, 128, 4, 6), (32, 256, 4, 4), (32, 512, 4, 2), (16, 256, 4, 4),
                (16, 512, 4, 3), (64, 256, 4, 3),
            )
        ]  # fmt: skip
        for cut in ((8, 4), (4, 8), (8, 8), (4, 4), (2, 8), (16, 8)):
            build = partial(_one_row, rows, width, kind, cut)
            found.append(
                Variant(f"{name} {kind} b1", "{} rows, {} warps".format(*cut), build, size)
            )
        for tiles in rows_tiles:
            wide = SkinnyTiles(32, tiles.block_n, tiles.block_k, tiles.warps, tiles.stages)
            build = partial(_skinny, 32, rows, width, kind, wide)
            found.append(Variant(f"{name} {kind} b32", str(wide), build, size))
        for tokens, (m, n, k, warps, stages) in product((128, 256), _MANY_ROWS):
            tiles = SkinnyTiles(m, n, k, warps, stages)
            build = partial(_skinny, tokens, rows, width, kind, tiles)
            flops = 2.0 * tokens * rows * width
            found.append(Variant(f"{name} {kind} b{tokens}", str(tiles), build, size, flops))
    rows = {
        "int4": [
            Int4Tiles(rows, unroll, ahead, cached)
            for rows, unroll, ahead, cached in (
                (16, 1, True, 0), (16, 2, True, 0), (16, 4, True, 0), (16, 2, False, 0),
                (16, 4, False, 0), (32, 1, False, 0), (32, 1, True, 0), (16, 2, True, 2),
                (16, 4, True, 2), (16, 4, False, 1),
            )
        ],
        "fp8": [
            ExpertTiles(n, k, w, s)
            for n, k, w, s in (
                (64, 128, 4, 4), (128, 128, 4, 3), (64, 128, 4, 3), (64, 128, 4, 5),
                (32, 128, 4, 5), (32, 128, 2, 4), (128, 128, 8, 3),
            )
        ],
    }  # fmt: skip
    for tokens, kind in product((1, 2, 8, 32, 128, 256), ("fp8", "int4-32", "int4-128")):
        size = distinct(tokens) * WIDTH * HIDDEN * _BYTES[kind]
        several = rows[kind[:4].rstrip("-")]
        # `down` has as many columns as a few steps, and several pieces instead.
        pieces = [
            replace(t, pieces=p) for t, p in product(several, (1, 2, 4, 8))
            if isinstance(t, Int4Tiles) and t.cache <= 1 and (t.cache == 0 or p > 1)
        ]  # fmt: skip
        for tiles in _ONE_GATE_UP if tokens == 1 else several:
            build = partial(_gate_up, tokens, kind, tiles)
            found.append(Variant(f"gate_up {kind} b{tokens}", str(tiles), build, 2 * size))
        for tiles in _ONE_DOWN if tokens == 1 else pieces or several:
            build = partial(_down, tokens, kind, tiles)
            found.append(Variant(f"down {kind} b{tokens}", str(tiles), build, size))
    return found


def default_variants() -> list[Variant]:
    """One of each, cut as the decoder cuts it."""
    found = []
    for tokens in (1, 32, 128):
        found += _others(tokens)
        for name, rows, width, kind in (
            ("qkvg", 4 * HIDDEN, HIDDEN, "fp8"), ("dense", HIDDEN, HIDDEN, "fp8"),
            ("head", 157184, HIDDEN, "bf16"), ("head", 157184, HIDDEN, "fp8-channel"),
        ):  # fmt: skip
            size = rows * width * _BYTES[kind]
            build = partial(_skinny, tokens, rows, width, kind, None)
            if tokens == 1:
                build = partial(_one_row, rows, width, kind, None)
            found.append(Variant(f"{name} {kind} b{tokens}", "default", build, size))
    for tokens, kind in product(BATCHES, ("bf16", "fp8", "int4-32", "int4-128")):
        size = distinct(tokens) * WIDTH * HIDDEN * _BYTES[kind]
        build = partial(_gate_up, tokens, kind, None)
        found.append(Variant(f"gate_up {kind} b{tokens}", "default", build, 2 * size))
        build = partial(_down, tokens, kind, None)
        found.append(Variant(f"down {kind} b{tokens}", "default", build, size))
    return found


def named_variants(parts: Sequence[str]) -> list[Variant]:
    """Those of `variants` whose group has any of these parts in its name; all if there are none."""
    return [v for v in variants() if not parts or any(part in v.group for part in parts)]


if __name__ == "__main__":
    run_sweep(partial(named_variants, sys.argv[1:]))
