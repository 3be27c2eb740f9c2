"""Products, router and norms of a decode step.

python -m lingflash.bench.on_gpu.kernel_cases.decode
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    OneTokenTiles,
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
# Launches that are captured together, each on other weights where they fit several times.
_COPIES = 8

Launches = Sequence[Callable[[], object]]
Tiles = ExpertTiles | OneTokenTiles


def _random(shape: tuple[int, ...], kind: str) -> Tensor:
    """Random weights of about unit size times 0.02."""
    if kind == "int4":
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
    scale = torch.full((EXPERTS, rows, width // 128), 4e-3, dtype=torch.bfloat16, device=CUDA)
    return DecodeExperts(_random((EXPERTS, rows, width // 8), "int4"), scale, 128)


def _routing(tokens: int) -> Tensor:
    ids = torch.stack([torch.randperm(EXPERTS, device=CUDA)[:TOPK] for _ in range(tokens)])
    return ids.to(torch.int32)


def _gate_up(tokens: int, kind: str, tiles: Tiles | None) -> Launches:
    w = _matrices(2 * WIDTH, HIDDEN, kind)
    x = torch.randn(tokens, HIDDEN, device=CUDA).half()
    kept = torch.float32 if tokens == 1 else torch.bfloat16
    act = torch.empty(tokens, TOPK, WIDTH, dtype=kept, device=CUDA)
    launches = []
    for _ in range(_COPIES):
        ids = _routing(tokens)
        plan = None if tokens == 1 else plan_rows(ids, EXPERTS)
        cut = {"one_token" if tokens == 1 else "tiles": tiles}
        launches.append(
            partial(gate_up_decode, x, w, ids, plan, act, nibbles=kind == "int4", **cut)
        )
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
        plan = plan_rows(ids, EXPERTS)
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
_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8-channel": 1.0, "int4": 0.5 + 2 / 128}


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
    found = _others(1) + _others(32)
    shapes = {"qkvg": (4 * HIDDEN, HIDDEN), "dense": (HIDDEN, HIDDEN), "head": (157184, HIDDEN)}
    for (name, (rows, width)), kind in product(shapes.items(), ("fp8", "fp8-channel", "bf16")):
        if name == "dense" and kind == "bf16":
            continue
        if (name == "head") == (kind == "fp8"):
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
    rows = {
        "int4": [
            ExpertTiles(n, k, w, s)
            for n, k, w, s in (
                (64, 256, 4, 3), (128, 256, 8, 3), (64, 512, 4, 2), (128, 128, 4, 3),
                (64, 256, 4, 4), (32, 256, 4, 4), (32, 512, 4, 3), (64, 256, 2, 3),
                (128, 256, 4, 2),
            )
        ],
        "fp8": [ExpertTiles(64, 128, 4, 4), ExpertTiles(128, 128, 4, 3)],
    }  # fmt: skip
    for tokens, kind in product((1, 32), ("fp8", "int4")):
        size = distinct(tokens) * WIDTH * HIDDEN * _BYTES[kind]
        for tiles in _ONE_GATE_UP if tokens == 1 else rows[kind]:
            build = partial(_gate_up, tokens, kind, tiles)
            found.append(Variant(f"gate_up {kind} b{tokens}", str(tiles), build, 2 * size))
        for tiles in _ONE_DOWN if tokens == 1 else rows[kind]:
            build = partial(_down, tokens, kind, tiles)
            found.append(Variant(f"down {kind} b{tokens}", str(tiles), build, size))
    return found


def default_variants() -> list[Variant]:
    """One of each, cut as the decoder cuts it."""
    found = []
    for tokens in (1, 32):
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
        for kind in ("fp8", "int4"):
            size = distinct(tokens) * WIDTH * HIDDEN * _BYTES[kind]
            build = partial(_gate_up, tokens, kind, None)
            found.append(Variant(f"gate_up {kind} b{tokens}", "default", build, 2 * size))
            build = partial(_down, tokens, kind, None)
            found.append(Variant(f"down {kind} b{tokens}", "default", build, size))
    return found


if __name__ == "__main__":
    run_sweep(variants)
