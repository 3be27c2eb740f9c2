"""A sum over several GPUs of one host in one launch, or their columns side by side: each writes
what it has into the memory of all others, and takes what they wrote into its own.

A value travels as a word of 64 bits, its float32 below and the number of the call above: a word is
written whole, so a reader needs no other sign that it has come. Words of one call stay until the
call after the next, and by then every reader has taken them: a program writes to its peers only
after their words of the call before have reached it, which they sent when they had ended the one
before that.
"""

# Triton declares constexpr parameters as such, which plain numbers are not, and no launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lingflash.kernels.triton_launch import launch_options, start_next, wait_for_previous

__all__ = ["BLOCK", "PeerBuffers", "buffer_words", "one_shot_gather", "one_shot_sum"]

# Values of a program and its warps. Each program has a count of calls of its own, so this must not
# depend on the call; one warp waits for nobody but its peer.
BLOCK, _WARPS = 128, 1
# Looks at the peers' words before a program gives up: about two minutes.
_MOST_LOOKS = 1 << 27


@dataclass(frozen=True, slots=True)
class PeerBuffers:
    """What a rank's calls need to meet those of the others.

    Args:
        addresses: int64 [N], where each rank's words lie, as this device sees them.
        words: int64 [2, N, capacity], this rank's own; zeros before the first call.
        counts: int32 [capacity / BLOCK], calls that each program has made; zeros at first.
        stop: int32 [1]; anything but 0 ends all waiting, and what was waited for is NaN.
        rank: of this process.
    """

    addresses: Tensor
    words: Tensor
    counts: Tensor
    stop: Tensor
    rank: int

    @property
    def capacity(self) -> int:
        """The most values of a call."""
        return self.words.shape[2]


def buffer_words(num_ranks: int, num_values: int) -> tuple[int, int, int]:
    """Shape of PeerBuffers.words for calls of at most so many values."""
    return 2, num_ranks, triton.cdiv(num_values, BLOCK) * BLOCK


@triton.jit
def _places(address_ptr, RANK: tl.constexpr, SIZE: tl.constexpr, CAPACITY: tl.constexpr):
    """Where this rank's words go in the memory of each."""
    places = ()
    for other in tl.static_range(SIZE):
        words = tl.multiple_of(tl.load(address_ptr + other).to(tl.pointer_type(tl.uint64)), 16)
        places += (words + RANK * CAPACITY,)
    return places


@triton.jit
def _call(count):
    """The upper half of the words of the call after so many."""
    return (count + 1).to(tl.uint32, bitcast=True).to(tl.uint64) << 32


@triton.jit
def _received(place, inside, call, stop_ptr, most_looks):
    """Values of a peer once all have come; NaN if they do not."""
    word = tl.load(place, mask=inside, other=0, volatile=True).to(tl.uint64, bitcast=True)
    missing = tl.max((inside & ((word >> 32) != (call >> 32))).to(tl.int32), 0)
    looks = 0
    while (missing > 0) & (looks < most_looks):
        word = tl.load(place, mask=inside, other=0, volatile=True).to(tl.uint64, bitcast=True)
        missing = tl.max((inside & ((word >> 32) != (call >> 32))).to(tl.int32), 0)
        looks += 1
        if tl.load(stop_ptr, volatile=True) != 0:
            looks = most_looks
    value = (word & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.where(missing > 0, float("nan"), value)


@triton.jit
def _sum_kernel(
    parts_ptr, out_ptr, address_ptr, words_ptr, count_ptr, stop_ptr, num_values, most_looks,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, ADD: tl.constexpr, RANK: tl.constexpr,
    SIZE: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
    SENDS: tl.constexpr, RECEIVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    start_next(PDL)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = value < num_values
    row = (value // WIDTH).to(tl.int64)
    part = parts_ptr + row * (PARTS * WIDTH) + value % WIDTH
    places = _places(address_ptr, RANK, SIZE, CAPACITY)
    wait_for_previous(PDL)
    count = tl.load(count_ptr + tl.program_id(0))
    half = (count & 1) * (SIZE * CAPACITY)
    call = _call(count)
    mine = tl.zeros([BLOCK], tl.float32)
    for p in tl.static_range(PARTS):
        mine += tl.load(part + p * WIDTH, mask=inside, other=0.0).to(tl.float32)
    if SENDS:
        word = call | mine.to(tl.uint32, bitcast=True).to(tl.uint64)
        for other in tl.static_range(SIZE):
            if other != RANK:
                tl.store(places[other] + half + value, word, mask=inside)
    if RECEIVES:
        total = tl.zeros([BLOCK], tl.float32)
        for other in tl.static_range(SIZE):
            if other == RANK:
                total += mine
            else:
                place = words_ptr + half + other * CAPACITY + value
                total += _received(place, inside, call, stop_ptr, most_looks)
        if ADD:
            total += tl.load(out_ptr + value, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + value, total.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(count_ptr + tl.program_id(0), count + 1)


@triton.jit
def _gather_kernel(
    mine_ptr, out_ptr, address_ptr, words_ptr, count_ptr, stop_ptr, num_values, most_looks,
    WIDTH: tl.constexpr, RANK: tl.constexpr, SIZE: tl.constexpr, CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr, SENDS: tl.constexpr, RECEIVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As many rounds as there are buffers full of values; each counts as a call."""
    start_next(PDL)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    places = _places(address_ptr, RANK, SIZE, CAPACITY)
    wait_for_previous(PDL)
    count = tl.load(count_ptr + tl.program_id(0))
    start = 0
    while start < num_values:
        value = start + place
        inside = value < num_values
        half = (count & 1) * (SIZE * CAPACITY)
        call = _call(count)
        mine = tl.load(mine_ptr + value, mask=inside, other=0.0)
        if SENDS:
            word = call | mine.to(tl.uint32, bitcast=True).to(tl.uint64)
            for other in tl.static_range(SIZE):
                if other != RANK:
                    tl.store(places[other] + half + place, word, mask=inside)
        out = out_ptr + (value // WIDTH).to(tl.int64) * (SIZE * WIDTH) + value % WIDTH
        if RECEIVES:
            for other in tl.static_range(SIZE):
                found = mine
                if other != RANK:
                    theirs = words_ptr + half + other * CAPACITY + place
                    found = _received(theirs, inside, call, stop_ptr, most_looks)
                tl.store(out + other * WIDTH, found, mask=inside)
            count += 1
        start += CAPACITY
    tl.store(count_ptr + tl.program_id(0), count)


def _options(peers: PeerBuffers, out: Tensor, sends: bool, receives: bool) -> dict[str, Any]:
    return {
        "RANK": peers.rank, "SIZE": peers.words.shape[1], "CAPACITY": peers.capacity,
        "BLOCK": BLOCK, "SENDS": sends, "RECEIVES": receives, "num_warps": _WARPS,
    } | launch_options(out)  # fmt: skip


def one_shot_sum(
    parts: Tensor,
    out: Tensor,
    peers: PeerBuffers,
    *,
    add: bool,
    sends: bool = True,
    receives: bool = True,
) -> Tensor:
    """out = the sum of all ranks' parts, or out += it. All ranks make the same calls in one order.

    Args:
        parts: float [T, P, D], contiguous; all P of a rank are added first.
        out: any float dtype [T, D], contiguous; written. It may be parts' memory.
        peers: the ranks' memory.
        add: add to what is in out, in float32, rounded once.
        sends, receives: the halves of a call, apart only where one process plays all ranks.

    Raises:
        ValueError: a shape or stride does not fit, or there are too many values.

    Numerics: float32, parts in their order, then ranks in theirs: the same bits on all ranks. NaN
        where a rank's part did not come. Sync: none, graph-safe; the device waits for its peers.
    """
    rows, num_parts, width = parts.shape
    num_values = rows * width
    if out.shape != (rows, width) or not out.is_contiguous() or not parts.is_contiguous():
        raise ValueError(f"parts {tuple(parts.shape)}, out {tuple(out.shape)}; both contiguous.")
    if num_values > peers.capacity:
        raise ValueError(f"{num_values} values; the buffers are for {peers.capacity}.")
    if num_values:
        _sum_kernel[(triton.cdiv(num_values, BLOCK),)](
            parts, out, peers.addresses, peers.words, peers.counts, peers.stop, num_values,
            _MOST_LOOKS, WIDTH=width, PARTS=num_parts, ADD=add,
            **_options(peers, out, sends, receives),
        )  # fmt: skip
    return out


def one_shot_gather(
    x: Tensor, peers: PeerBuffers, *, sends: bool = True, receives: bool = True
) -> Tensor:
    """Put the ranks' columns side by side: float32 [T, C] of each, contiguous, to [T, N x C].

    All ranks make the same calls in one order. `sends` and `receives`: see one_shot_sum; halves
    can be no larger than the buffers.

    Raises:
        ValueError: another type, or not contiguous.

    Numerics: exact; NaN where a rank's part did not come. Sync: as one_shot_sum.
    """
    if x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)}; contiguous float32 is needed.")
    rows, width = x.shape
    out = x.new_empty(rows, peers.words.shape[1] * width)
    if x.numel():
        programs = min(triton.cdiv(x.numel(), BLOCK), peers.capacity // BLOCK)
        _gather_kernel[(programs,)](
            x, out, peers.addresses, peers.words, peers.counts, peers.stop, x.numel(),
            _MOST_LOOKS, WIDTH=width, **_options(peers, out, sends, receives),
        )  # fmt: skip
    return out
