"""MLA attention of a run of query tokens in float32 vectors, absorbed or expanded, in C."""

from __future__ import annotations

import ctypes
import math
from ctypes import Structure

from torch import Tensor

from lingflash.kernels.cpu import is_plain, struct_fields
from lingflash.kernels.cpu.build import load_library

# A second thread is started for so many multiplications; starting one takes as long as some 2M.
_WORK_PER_THREAD = 40_000_000


class _VectorRunStruct(Structure):
    """Mirrors VectorRun of mla_vectors.c."""

    _fields_ = struct_fields(
        "tokens heads nope rope value rank block_size length threads "
        "nope_token nope_head rope_token rope_head",
        "scale",
        "q_nope q_rope latents blocks w_kvb out",
    )


def can_attend_in_vectors(latents: Tensor) -> bool:
    """Whether attend_in_vectors can read these latents, [num_blocks, block_size, R + P]."""
    return is_plain(latents) and load_library() is not None


def attend_in_vectors(
    q_nope: Tensor,
    q_rope: Tensor,
    latents: Tensor,
    blocks: Tensor,
    length: int,
    w_kvb: Tensor | None,
    scale: float,
    num_threads: int,
) -> Tensor:
    """Attention of one sequence's last tokens to all of its tokens.

    Args:
        q_nope: float32 [m, H, N]; absorbed, without w_kvb, [m, H, R].
        q_rope: float32 [m, H, P].
        latents: float32 [num_blocks, block_size, R + P], contiguous.
        blocks: int64 [B] on the CPU, the sequence's blocks in order.
        length: tokens of the sequence, the query's own included.
        w_kvb: float32 [H, N + V, R], contiguous: keys and values are made by it, a block at a time.

    Returns:
        float32 [m, H, V]; absorbed, mixed latents [m, H, R].

    Raises:
        MemoryError: no memory for the work.

    Numerics: float32; a row's result depends on where its sequence ends only by the order of sums.
        Sync: returns when done.
    """
    library = load_library()
    assert library is not None
    num_tokens, heads, nope = q_nope.shape
    rope, rank = q_rope.shape[-1], latents.shape[-1] - q_rope.shape[-1]
    value = rank if w_kvb is None else w_kvb.shape[1] - nope
    q_nope = q_nope if q_nope.stride(-1) == 1 else q_nope.contiguous()
    q_rope = q_rope if q_rope.stride(-1) == 1 else q_rope.contiguous()
    blocks = blocks.contiguous()
    w_kvb = None if w_kvb is None else w_kvb.contiguous()
    out = q_nope.new_empty(num_tokens, heads, value)
    work = num_tokens * heads * length * (nope + rope + value)
    call = _VectorRunStruct(
        tokens=num_tokens,
        heads=heads,
        nope=nope,
        rope=rope,
        value=value,
        rank=rank,
        block_size=latents.shape[1],
        length=length,
        threads=min(num_threads, 1 + work // _WORK_PER_THREAD),
        nope_token=q_nope.stride(0),
        nope_head=q_nope.stride(1),
        rope_token=q_rope.stride(0),
        rope_head=q_rope.stride(1),
        scale=scale * math.log2(math.e),
        q_nope=q_nope.data_ptr(),
        q_rope=q_rope.data_ptr(),
        latents=latents.data_ptr(),
        blocks=blocks.data_ptr(),
        w_kvb=None if w_kvb is None else w_kvb.data_ptr(),
        out=out.data_ptr(),
    )
    if library.ling_mla_vectors(ctypes.byref(call)):
        raise MemoryError(f"no memory for the attention of {num_tokens} tokens to {length}.")
    return out
