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

MAX_EXPERTS = 2048
MAX_TOPK = 64


def is_plain(x: Tensor) -> bool:
    """Whether C can read a tensor's memory: float32 on the CPU, contiguous."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()


def struct_fields(
    integers: str = "", floats: str = "", pointers: str = ""
) -> list[tuple[str, type]]:
    """`_fields_` of a struct from the names of its members."""
    kinds = ((integers, c_int64), (floats, c_float), (pointers, c_void_p))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class LightningStruct(Structure):
    """Weights, tables and memory of a lightning layer with its input norm."""

    _fields_ = [
        *struct_fields(
            "hidden heads dim rotary_half groups tail linear_silu",
            "eps",
            "w_norm w_qkvg w_qk_norm w_g_norm w_dense decode decode_query fold carry",
        ),
        *struct_fields("anchor chunk", pointers="states tail_k tail_v scratch"),
    ]


class MlaStruct(Structure):
    """Weights and latents of an MLA layer with its input norm."""

    _fields_ = [
        *struct_fields(
            "hidden heads nope rope value rank q_rank",
            "eps scale",
            "w_norm w_in w_q_norm w_q_b w_kv_norm w_kvb w_dense latents",
        ),
        ("block_size", c_int64),
    ]


class FeedForwardStruct(Structure):
    """Weights of an MLP, or of a router, experts and shared expert, with the norm before."""

    _fields_ = struct_fields(
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
    if not is_plain(x):
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
