"""RMS norm on the GPU: one program per row, with the residual addition or the output gate fused."""

# Triton declares constexpr parameters as such, which plain numbers are not.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, x_stride, width, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = residual_ptr + row * width + column
        # The stream is kept in its own dtype, and what is normalised is what was kept.
        total = x + tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total = total.to(residual_ptr.dtype.element_ty)
        tl.store(at, total, mask=inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    out = x * scale * weight
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_group_kernel(
    x_ptr, gate_ptr, weight_ptr, out_ptr, gate_stride, width, group_width, eps,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, BLOCK)
    inside = place < group_width
    column = group * group_width + place
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / group_width + eps)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    out = x * scale * weight * tl.sigmoid(gate)
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of [T, D] and scale it; rows of x may be strided.

    Numerics: statistics in float32; the result is rounded once. Sync: none, graph-safe.

    Raises:
        ValueError: x is no matrix with contiguous rows, or the widths differ.
    """
    return _norm_rows(x, None, weight, eps)


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place and in residual's dtype; then its norm, in x's dtype.

    Args:
        x: any float dtype [T, D], contiguous rows.
        residual: any float dtype [T, D], contiguous; updated.
        weight: float [D].

    Raises:
        ValueError: a shape or stride does not fit.
    """
    if residual.shape != x.shape or not residual.is_contiguous():
        raise ValueError(f"residual is {tuple(residual.shape)}, x {tuple(x.shape)}, contiguous.")
    return _norm_rows(x, residual, weight, eps)


def _norm_rows(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    _check_rows(x, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.shape[0]:
        _rms_norm_kernel[(x.shape[0],)](
            x, x if residual is None else residual, weight, out, x.stride(0), x.shape[1], eps,
            HAS_RESIDUAL=residual is not None, BLOCK=triton.next_power_of_2(x.shape[1]),
        )  # fmt: skip
    return out


def gated_group_rms_norm_triton(
    x: Tensor, gate: Tensor, weight: Tensor, num_groups: int, eps: float
) -> Tensor:
    """Norm of each of num_groups equal groups of x's last axis, times weight and sigmoid(gate).

    Args:
        x: any float dtype [T, D], contiguous.
        gate: any float dtype [T, D], contiguous rows; the result's dtype is its.
        weight: float [D].
        num_groups: number of groups (not their width).

    Raises:
        ValueError: a shape or stride does not fit.
    """
    _check_rows(gate, weight)
    rows, width = x.shape
    if width % num_groups or gate.shape != x.shape or not x.is_contiguous():
        raise ValueError(f"x {tuple(x.shape)} and gate {tuple(gate.shape)} in {num_groups} groups.")
    out = torch.empty(x.shape, dtype=gate.dtype, device=x.device)
    if rows:
        group_width = width // num_groups
        _gated_group_kernel[(rows, num_groups)](
            x, gate, weight, out, gate.stride(0), width, group_width, eps,
            BLOCK=triton.next_power_of_2(group_width), **launch_options(x),
        )  # fmt: skip
    return out


def _check_rows(x: Tensor, weight: Tensor) -> None:
    if x.dim() != 2 or (x.shape[0] and x.stride(1) != 1) or weight.shape != x.shape[1:]:
        raise ValueError(
            f"x is {tuple(x.shape)} with strides {x.stride()}, weight {tuple(weight.shape)}; a "
            "matrix with contiguous rows and one weight per column are needed."
        )
