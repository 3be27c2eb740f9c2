"""Decoder layers for one token on the CPU, in C: each is a struct of pointers and one call.

The structs mirror those of decode.c. They hold raw addresses, so whoever makes one keeps the
tensors alive. All numbers are float32; matrices are [in, out] in memory, which is how weights made
by WeightSlots.matrix() lie on the CPU.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from lingflash.kernels.cpu.build import load_library

__all__ = [
    "MAX_EXPERTS",
    "MAX_TOPK",
    "CpuKernels",
    "FeedForwardStruct",
    "LightningStruct",
    "MlaStruct",
    "address",
    "load_kernels",
    "matrix_address",
]

MAX_EXPERTS = 2048
MAX_TOPK = 64


def _fields(integers: str, floats: str, pointers: str, tail: str = "") -> list[tuple[str, type]]:
    return [
        *((name, c_int64) for name in integers.split()),
        *((name, c_float) for name in floats.split()),
        *((name, c_void_p) for name in pointers.split()),
        *((name, c_int64 if name == "block_size" else c_void_p) for name in tail.split()),
    ]


class LightningStruct(Structure):
    """Weights, tables and memory of a lightning layer with its input norm."""

    _fields_ = [
        *_fields(
            "hidden heads dim rotary_half groups tail linear_silu",
            "eps",
            "w_norm w_qkvg w_qk_norm w_g_norm w_dense decode decode_query fold carry",
        ),
        ("anchor", c_int64),
        ("chunk", c_int64),
        *_fields("", "", "states tail_k tail_v scratch"),
    ]


class MlaStruct(Structure):
    """Weights and latents of an MLA layer with its input norm."""

    _fields_ = _fields(
        "hidden heads nope rope value rank q_rank",
        "eps scale",
        "w_norm w_in w_q_norm w_q_b w_kv_norm w_kvb w_dense latents",
        "block_size",
    )


class FeedForwardStruct(Structure):
    """Weights of an MLP, or of a router, experts and shared expert, with the norm before."""

    _fields_ = _fields(
        "hidden width shared_width experts topk groups topk_groups normalise",
        "eps scaling",
        "w_norm w_gate bias w_gate_up w_down shared_gate_up shared_down scratch",
    )


class CpuKernels:
    """The calls of decode.c; a layer's adds its result to x, float32 [hidden], in place."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lightning = library.ling_lightning
        self.lightning.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64]
        self.lightning.restype = None
        self.mla = library.ling_mla
        self.mla.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64]
        self.mla.restype = c_int
        self.feed_forward = library.ling_feed_forward
        self.feed_forward.argtypes = [c_void_p, c_void_p]
        self.feed_forward.restype = None
        self.matvec = library.ling_matvec
        self.matvec.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64]
        self.matvec.restype = None


def load_kernels() -> CpuKernels | None:
    """The compiled kernels, None where there is no C compiler."""
    library = load_library()
    return None if library is None else CpuKernels(library)


def address(x: Tensor | None) -> int | None:
    """Address of a contiguous float32 CPU tensor; None stays None.

    Raises:
        ValueError: any other tensor.
    """
    if x is None:
        return None
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"a contiguous float32 CPU tensor is needed, got {x.dtype} {x.stride()}.")
    return x.data_ptr()


def matrix_address(w: object) -> int | None:
    """Address of a weight [..., out, in] whose memory is [..., in, out].

    Raises:
        ValueError: its memory lies otherwise, or it is no plain tensor (quantized).
    """
    if not isinstance(w, Tensor):
        raise ValueError(f"a plain float32 tensor is needed, got {type(w).__name__}.")
    return address(w.transpose(-1, -2))
