"""RMS norm between the products of a decode step: sums what experts gave, adds, normalises."""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous


@triton.jit
def _add_parts_kernel(
    parts_ptr, residual_ptr, weight_ptr, out_ptr, ordered_ptr, order_ptr, width, eps,
    PARTS: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    at = residual_ptr + row * width + column
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        place = (row * PARTS + part) * width + column
        x += tl.load(parts_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        # The stream is kept in its own dtype, and what is normalised is what was kept.
        total = x.to(residual_ptr.dtype.element_ty)
        tl.store(at, total, mask=inside)
        x = total.to(tl.float32)
    out = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * weight
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)
    if ORDERED:
        place = tl.load(order_ptr + column, mask=inside, other=0)
        at = ordered_ptr + row * width + place
        tl.store(at, out.to(ordered_ptr.dtype.element_ty), mask=inside)


def add_parts_rms_norm(
    parts: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    ordered: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """residual += sum of parts, in place; then its norm, and a copy in another order.

    Args:
        parts: float [T, P, D], contiguous; None adds nothing.
        residual: any float dtype [T, D], contiguous; updated.
        weight: float [D].
        out: float16 or bfloat16 [T, D], contiguous; written.
        ordered: a float tensor shaped like out, and int32 [D]: where each column goes in it.

    Numerics: sums and statistics in float32, parts in order. Sync: none, graph-safe.
    """
    rows, width = residual.shape
    num_parts = 0 if parts is None else parts.shape[1]
    if rows:
        other, order = (out, out) if ordered is None else ordered
        _add_parts_kernel[(rows,)](
            residual if parts is None else parts, residual, weight, out, other, order, width, eps,
            PARTS=num_parts, ORDERED=ordered is not None, BLOCK=triton.next_power_of_2(width),
            num_warps=16 if width >= 2048 else 4, **launch_options(residual),
        )  # fmt: skip
    return out
