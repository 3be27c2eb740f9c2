"""Matrix products of a prefill step at the shapes of Ling-2.6-flash, on one GPU.

... is python -m lingflash.bench.on_gpu.kernel_cases.

... gemm cases [bf16 fp8 int4]         what is used
... gemm sweep [dense bf16 fp8 int4]   sizes, the best last
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from lingflash.bench.on_gpu.kernel_cases.case import Case, randn, time_cases
from lingflash.kernels.moe_gemm.formats import BF16, ExpertFormat, expert_format
from lingflash.kernels.moe_route import RoutingRule, route_tokens
from lingflash.kernels.quant_gemm import (
    Fp8Rows,
    fp8_block_gemm_cublas,
    fp8_gemm,
    quantize_rows_fp8,
    silu_and_mul_fp8,
)
from lingflash.quant.matrix import QuantizedExperts

TOKENS, HIDDEN, WIDTH, QKVG, EXPERTS, TOPK = 8192, 4096, 1024, 16384, 256, 8
FP8 = torch.float8_e4m3fn


def _fp8_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    scale = torch.rand(rows // 128, columns // 128, device="cuda").add_(0.5).div_(columns**0.5)
    return randn(rows, columns).to(FP8), scale


def _experts(name: str, parts: list[int], columns: int) -> Tensor | QuantizedExperts:
    """Random matrices of all experts: "bf16", "fp8", "int4" (groups of 32) or "int4-128"."""
    rows = sum(parts)
    if name == "bf16":
        return randn(EXPERTS, rows, columns, scale=columns**-0.5)
    if name == "fp8":
        values = torch.empty(EXPERTS, rows, columns, dtype=FP8, device="cuda")
        for one in values:
            one.copy_(randn(rows, columns))
        scale = torch.rand(EXPERTS, rows // 128, columns // 128, device="cuda")
        scale.add_(0.5).div_(columns**0.5)
        return QuantizedExperts(values, scale, (128, 128), torch.bfloat16, tuple(parts))
    group = 128 if name.endswith("128") else 32
    values = torch.randint(
        -(2**31), 2**31, (EXPERTS, rows, columns // 8), dtype=torch.int32, device="cuda"
    )
    scale = randn(EXPERTS, rows, columns // group, scale=0.2 * columns**-0.5)
    return QuantizedExperts(values, scale, (1, group), torch.bfloat16, tuple(parts))


def _num_bytes(*tensors: Tensor | QuantizedExperts | Fp8Rows) -> int:
    total = 0
    for x in tensors:
        parts = (x,) if isinstance(x, Tensor) else (x.values, x.scale)
        total += sum(part.nbytes for part in parts)
    return total


def _routing(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.rand(tokens, EXPERTS, device="cuda").topk(TOPK).indices
    return ids, torch.rand(tokens, TOPK, device="cuda")


def dense_cases(tokens: int = TOKENS) -> list[Case]:
    """Attention's products, the roundings and the router."""
    x = randn(tokens, HIDDEN)
    x8 = quantize_rows_fp8(x)
    gate_up = randn(tokens, 2 * WIDTH)
    w_gate = randn(EXPERTS, HIDDEN).float()
    bias = torch.zeros(EXPERTS, device="cuda")

    rule = RoutingRule(8, 4, TOPK, norm_topk_prob=True, scaling_factor=2.5)

    def route() -> object:
        return route_tokens(x, w_gate, bias, rule)

    cases = [
        Case("quantize x", lambda: quantize_rows_fp8(x), _num_bytes(x, x8), 0.0),
        Case("silu and quantize", lambda: silu_and_mul_fp8(gate_up), tokens * WIDTH * 5, 0.0),
        Case("router", route, _num_bytes(x, w_gate), 2.0 * tokens * HIDDEN * EXPERTS),
    ]
    for name, columns in (("qkvg", QKVG), ("dense", HIDDEN)):
        flops = 2.0 * tokens * HIDDEN * columns
        w, (w8, w_scale) = randn(columns, HIDDEN), _fp8_weight(columns, HIDDEN)
        out = 2 * tokens * columns
        cases.append(
            Case(f"{name} bf16", lambda w=w: F.linear(x, w), _num_bytes(x, w) + out, flops)
        )
        cases.append(
            Case(
                f"{name} fp8",
                lambda w8=w8, s=w_scale: fp8_gemm(x8, w8, s),
                _num_bytes(x8, w8, w_scale) + out,
                flops,
            )
        )
    return cases


def expert_cases(name: str, tokens: int = TOKENS) -> list[Case]:
    """The routed experts of one layer in a format, in steps and as a whole."""
    from lingflash.kernels.moe_gemm import triton_grouped as grouped
    from lingflash.kernels.moe_gemm.triton_sort import sort_rows

    x = randn(tokens, HIDDEN)
    w1, w2 = _experts(name, [WIDTH, WIDTH], HIDDEN), _experts(name, [HIDDEN], WIDTH)
    kind = expert_format(w1)
    assert kind is not None
    assert kind == expert_format(w2)
    ids, weights = _routing(tokens)
    first, second = grouped.default_tiles(kind, ids.numel() // EXPERTS)
    rows = sort_rows(ids, EXPERTS, first.rows)
    source = quantize_rows_fp8(x) if name == "fp8" else x
    act = grouped.gate_up(source, w1, rows, kind, first)
    parts = grouped.down(act, w2, rows, kind, second)
    out = torch.empty_like(x)
    flops = 2.0 * tokens * TOPK * HIDDEN * WIDTH
    return [
        Case("sort", lambda: sort_rows(ids, EXPERTS, first.rows), _num_bytes(ids), 0.0),
        Case(
            f"gate_up {name}",
            lambda: grouped.gate_up(source, w1, rows, kind, first),
            _num_bytes(source, w1, act),
            2 * flops,
        ),
        Case(
            f"down {name}",
            lambda: grouped.down(act, w2, rows, kind, second),
            _num_bytes(act, w2, parts),
            flops,
        ),
        Case(
            "combine",
            lambda: grouped.combine(parts, rows, weights, x, out),
            _num_bytes(parts, x, out),
            0.0,
        ),
        Case(
            f"experts {name}, all steps",
            lambda: grouped.expert_mlp_grouped(x, w1, w2, ids, weights, kind),
            _num_bytes(x, x, w1, w2),
            3 * flops,
        ),
    ]


def _sweep_dense() -> None:
    from lingflash.kernels.quant_gemm.triton_fp8 import Tile, fp8_gemm_triton

    x = quantize_rows_fp8(randn(TOKENS, HIDDEN))
    tiles = [
        Tile(128, 128, 8, 3), Tile(128, 128, 8, 4), Tile(128, 128, 8, 5), Tile(64, 128, 4, 4),
        Tile(64, 128, 4, 3), Tile(128, 64, 4, 4), Tile(128, 64, 4, 3), Tile(256, 64, 8, 4),
        Tile(128, 128, 8, 2, pieces=2), Tile(128, 128, 8, 3, pieces=2),
    ]  # fmt: skip
    for name, columns in (("qkvg", QKVG), ("dense", HIDDEN)):
        w8, scale = _fp8_weight(columns, HIDDEN)
        size = _num_bytes(x, w8) + 2 * TOKENS * columns
        flops = 2.0 * TOKENS * HIDDEN * columns
        cases = [
            Case(
                f"{name} {t.rows} {t.columns} {t.warps} {t.stages} pieces {t.pieces}",
                lambda t=t, w8=w8, s=scale: fp8_gemm_triton(x.values, x.scale, w8, s, t),
                size,
                flops,
            )
            for t in tiles
        ]
        cases.append(
            Case(
                f"{name} cublas",
                lambda w8=w8, s=scale: fp8_block_gemm_cublas(x, w8, s),
                size,
                flops,
            )
        )
        time_cases(cases, is_sorted=True)
        try:
            ours = fp8_gemm_triton(x.values, x.scale, w8, scale).float()
            theirs = fp8_block_gemm_cublas(x, w8, scale).float()
            print(f"{name}: cublas differs by {float((theirs - ours).norm() / ours.norm()):.1e}")
        except (RuntimeError, ValueError, ImportError) as error:
            print(f"{name}: no cublas: {str(error)[:200]}")


def _sweep_experts(name: str) -> None:
    from lingflash.kernels.moe_gemm import triton_grouped as grouped
    from lingflash.kernels.moe_gemm.triton_grouped import GroupedTile
    from lingflash.kernels.moe_gemm.triton_sort import sort_rows

    x = randn(TOKENS, HIDDEN)
    ids, _ = _routing(TOKENS)
    source = quantize_rows_fp8(x) if name == "fp8" else x
    depth = 128 if name == "fp8" else 64
    # Rows, columns, warps, stages; sorted first, or without the smaller last block.
    first = {
        "bf16": ["128 128 8 3", "128 128 8 3 sorted", "128 128 8 3 whole", "128 128 8 4",
                 "128 64 4 4", "64 128 4 4"],
        "fp8": ["128 128 8 3", "128 128 8 3 sorted", "128 128 8 3 whole", "128 128 8 4",
                "128 128 16 3", "128 128 16 3 sorted", "128 128 16 4", "64 128 4 3", "64 128 8 4"],
    }.get(name, ["128 64 4 3", "128 64 4 3 whole", "128 64 4 4", "128 128 8 3", "64 64 4 3",
                 "64 128 8 3"])  # fmt: skip
    second = {
        "bf16": ["128 128 8 3", "128 128 8 4", "128 256 8 3", "128 128 4 4", "64 128 4 4",
                 "64 256 4 3"],
        "fp8": ["128 128 8 3", "128 128 8 4", "128 128 8 4 whole", "128 64 4 3", "128 64 4 4",
                "64 128 4 3", "64 128 8 4"],
    }.get(name, ["128 128 4 3", "128 128 4 3 whole", "128 128 4 4", "128 256 8 3",
                 "64 128 4 3"])  # fmt: skip

    def tile(sizes: str) -> GroupedTile:
        numbers = [int(word) for word in sizes.split() if word.isdigit()]
        rows, columns, warps, stages = numbers
        return GroupedTile(
            rows, columns, warps, stages, depth,
            half_last="whole" not in sizes, permuted="sorted" in sizes,
        )  # fmt: skip

    flops = 2.0 * TOKENS * TOPK * HIDDEN * WIDTH
    weight = _experts(name, [WIDTH, WIDTH], HIDDEN)
    kind = expert_format(weight) or ExpertFormat(BF16)
    sorted_by = {size: sort_rows(ids, EXPERTS, size) for size in (64, 128)}

    cases = [
        Case(
            f"gate_up {name} {sizes}",
            lambda t=t: grouped.gate_up(source, weight, sorted_by[t.rows], kind, t),
            _num_bytes(source, weight),
            2 * flops,
        )
        for sizes, t in ((sizes, tile(sizes)) for sizes in first)
    ]
    time_cases(cases, is_sorted=True)
    act: Tensor | Fp8Rows = randn(TOKENS * TOPK, WIDTH)
    if name == "fp8":
        act = quantize_rows_fp8(act)
    other = _experts(name, [HIDDEN], WIDTH)
    cases = [
        Case(
            f"down {name} {sizes}",
            lambda t=t: grouped.down(act, other, sorted_by[t.rows], kind, t),
            _num_bytes(act, other) + 2 * TOKENS * TOPK * HIDDEN,
            flops,
        )
        for sizes, t in ((sizes, tile(sizes)) for sizes in second)
    ]
    time_cases(cases, is_sorted=True)


def sweep(names: list[str]) -> None:
    """Time sizes of programs for the FP8 products ("dense") and the experts in each format."""
    for name in names:
        torch.cuda.empty_cache()
        _sweep_dense() if name == "dense" else _sweep_experts(name)


def main(arguments: list[str]) -> int:
    """Time what the arguments name; see the module."""
    what, *names = arguments or ["cases"]
    torch.manual_seed(0)
    if what == "sweep":
        sweep(names or ["dense", "fp8", "bf16", "int4"])
        return 0
    time_cases(dense_cases())
    for name in names or ["fp8", "bf16", "int4"]:
        torch.cuda.empty_cache()
        time_cases(expert_cases(name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
