"""Programmatic dependent launch: a kernel starts while the one before it still drains.

The kernels of a decode step are a few microseconds long, so that starting one costs as much as a
tenth of running it. A dependent kernel is put on the device as soon as the one before allows it,
computes addresses, and waits before it touches anything but weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the next kernel's programs onto the device from now on."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until all that earlier kernels wrote can be seen; nothing but weights before it."""
    if PDL:
        gdc_wait()


@cache
def _is_hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(tensor: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of a launch on the tensor's device: PDL, and what makes it happen."""
    if knobs.runtime.interpret or not tensor.is_cuda:
        return {"PDL": False}
    pdl = _is_hopper(tensor.get_device())
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
