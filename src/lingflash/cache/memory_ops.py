"""What is to be done to the memory before the next forward pass, in the order it was decided.

Decisions are made between two steps, while the tensors still hold what the last step left there.
Carried out one after the other, each operation finds what it was decided upon: a block is saved
before its next owner's zeros, a checkpoint is read before its blocks serve something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class HostCopy:
    """Blocks of the host tier that hold, or will hold, a copy.

    Args:
        blocks: of the host tier.
        holder: who waits for it; the cache's own.
        is_complete: the copy was made; nothing is read from it before.
        is_cancelled: nobody wants it any more; its blocks are free once it is complete.
        is_settled: it was reported as complete or failed.
    """

    blocks: list[int]
    holder: Any = None
    is_complete: bool = False
    is_cancelled: bool = False
    is_settled: bool = False


@dataclass(slots=True)
class ZeroBlocks:
    """Blocks that changed owner: a NaN in a masked key would spoil a sum."""

    blocks: list[int]


@dataclass(slots=True)
class ZeroSlot:
    """A state slot that changed owner."""

    slot: int


@dataclass(slots=True)
class SaveState:
    """Copy a state slot into blocks; with its tails, if it is not at an anchor."""

    slot: int
    blocks: list[int]
    with_tail: bool = False


@dataclass(slots=True)
class CopyState:
    """Copy the states of one slot to another."""

    slot: int
    target: int


@dataclass(slots=True)
class LoadState:
    """Copy the states in blocks, of the device or of the host tier, to a slot."""

    blocks: list[int]
    slot: int
    from_host: bool = False
    with_tail: bool = False


@dataclass(slots=True)
class StoreBlocks:
    """Begin to copy blocks to the host tier; `copy` is complete when that is done."""

    blocks: list[int]
    copy: HostCopy


@dataclass(slots=True)
class StoreState:
    """Begin to copy a state slot to the host tier."""

    slot: int
    copy: HostCopy


@dataclass(slots=True)
class LoadBlocks:
    """Copy blocks of the host tier to blocks of the device."""

    host_blocks: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


MemoryOp = (
    ZeroBlocks
    | ZeroSlot
    | CopyState
    | SaveState
    | LoadState
    | StoreBlocks
    | StoreState
    | LoadBlocks
)
