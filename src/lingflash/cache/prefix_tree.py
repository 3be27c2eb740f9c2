"""Which computed blocks and states are known, found again by their tokens.

A node stands for one full block of tokens after a certain prefix. Its key is a cryptographic hash
of the parent's key and the block's tokens; the root's key is a hash of a salt, so that two salts
never meet. Some nodes also have a *state checkpoint*, a copy of all recurrent states as they were
after the node's last token. A prefix can be continued only where both are there.

    root(salt) -- [16 tokens] -- [16 tokens, checkpoint] -- [16 tokens]
                                                        \\-- [16 other tokens, checkpoint]

A sequence rarely ends where a block does. Its last, unfinished block is kept too, with the states
as they were at its very end (a *sequence's end*), for the one sequence that goes on from there.

Block and checkpoint may each be on the device, in the host tier, or in both. The nodes on the
device are closed towards the root.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from lingflash.cache.memory_ops import HostCopy

_KEY_BYTES = 32
# Chains that KeyMemo remembers: to compare one of 33,000 tokens takes 0.02 ms, to hash it 2.
_CHAINS = 16


def root_key(salt: str) -> bytes:
    """Key that every chain of a salt starts from."""
    return blake2b(salt.encode(), digest_size=_KEY_BYTES, person=b"lingflash-root").digest()


def block_keys(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Keys of the full blocks of a sequence, in order.

    Args:
        root: from root_key, or the key that the first token's block hangs on.
        token_ids: below 2**32 each.
    """
    keys, parent = [], root
    tokens = array("I", token_ids)
    content, size = tokens.tobytes(), block_size * tokens.itemsize
    for start in range(0, len(content) - size + 1, size):
        parent = blake2b(parent + content[start : start + size], digest_size=_KEY_BYTES).digest()
        keys.append(parent)
    return keys


class KeyMemo:
    """Keys of the last few chains: most prompts go on from one of them, and hashing is slow."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._chains: deque[tuple[bytes, np.ndarray, list[bytes]]] = deque(maxlen=_CHAINS)

    def keys(self, root: bytes, token_ids: list[int]) -> list[bytes]:
        """block_keys(root, token_ids, block_size)."""
        tokens = np.frombuffer(array("I", token_ids), dtype=np.uint32)
        keys: list[bytes] = []
        for its_root, its_tokens, its_keys in self._chains:
            if its_root == root:
                length = min(len(tokens), len(its_tokens))
                differs = tokens[:length] != its_tokens[:length]
                equal = int(differs.argmax()) if differs.any() else length
                if equal // self._block_size > len(keys):
                    keys = its_keys[: equal // self._block_size]
        parent, rest = keys[-1] if keys else root, token_ids[len(keys) * self._block_size :]
        keys = keys + block_keys(parent, rest, self._block_size)
        self._chains.append((root, tokens, keys))
        return list(keys)


class SequenceEnd:
    """The unfinished last block of a sequence that has ended; it is gone when another goes on.

    Attributes:
        parent: node of the block before it.
        tokens: of the block, fewer than it holds.
        block: place of their latents on the device.
        state, slot: blocks of the device, or the state slot, that hold the states after the last
            token, with the tails past the anchor; one of the two.
    """

    __slots__ = ("block", "parent", "slot", "state", "tokens")
    has_tail = True

    def __init__(self, parent: PrefixNode, tokens: Sequence[int], block: int) -> None:
        self.parent, self.block = parent, block
        self.tokens = array("I", tokens)
        self.state: list[int] | None = None
        self.slot: int | None = None

    def distance_to_state(self) -> int:
        """Tokens from the last checkpoint before this end to it."""
        parent = self.parent
        return len(self.tokens) + (0 if parent.has_state else parent.distance_to_state())


class PrefixNode:
    """A block of computed tokens.

    Attributes:
        key: see block_keys.
        parent: the node before, None for the first block.
        root: key of the salt, for first blocks.
        tokens: of the block.
        depth: tokens up to its end.
        block: place of its latents on the device, None if they are not there.
        state: blocks of the device that hold its state checkpoint, None if there is none.
        slot: state slot of the device that does, if one was idle.
        host_block, host_state: the same in the host tier.
        lost_state: a checkpoint was evicted here, or after it together with its blocks.
        num_owners: leases that read the block, which is on the device then.
        children: nodes that continue it, by key.
        ends: of sequences that ended in the block after it, by the bytes of their tokens there.
        num_device_children: those of them on the device.
    """

    __slots__ = (
        "block",
        "children",
        "depth",
        "ends",
        "host_block",
        "host_state",
        "key",
        "lost_state",
        "num_device_children",
        "num_owners",
        "parent",
        "root",
        "slot",
        "state",
        "tokens",
    )
    has_tail = False  # a checkpoint at a block's end, where tails are empty

    def __init__(
        self, key: bytes, parent: PrefixNode | None, root: bytes, tokens: Sequence[int]
    ) -> None:
        self.key, self.parent, self.root = key, parent, root
        self.tokens = array("I", tokens)
        self.depth = len(tokens) + (0 if parent is None else parent.depth)
        self.block: int | None = None
        self.state: list[int] | None = None
        self.slot: int | None = None
        self.host_block: HostCopy | None = None
        self.host_state: HostCopy | None = None
        self.lost_state = False
        self.num_owners = self.num_device_children = 0
        self.children: dict[bytes, PrefixNode] = {}
        self.ends: dict[bytes, SequenceEnd] = {}

    @property
    def is_readable(self) -> bool:
        """Whether its latents are somewhere."""
        return self.block is not None or _is_there(self.host_block)

    @property
    def has_device_state(self) -> bool:
        """Whether the device holds its checkpoint."""
        return self.state is not None or self.slot is not None

    @property
    def has_state(self) -> bool:
        """Whether a sequence can be continued after it."""
        return self.has_device_state or _is_there(self.host_state)

    @property
    def is_device_leaf(self) -> bool:
        """Whether nothing on the device continues it and no lease reads it."""
        return self.num_owners == 0 and self.num_device_children == 0 and not self.ends

    def longest_end(self, following: Sequence[int]) -> SequenceEnd | None:
        """The longest sequence's end after this node that tokens, those that follow it, go on."""
        if self.ends:
            tokens = array("I", following)
            for count in range(len(tokens), 0, -1):
                found = self.ends.get(tokens[:count].tobytes())
                if found is not None:
                    return found
        return None

    def distance_to_state(self) -> int:
        """Tokens from the last checkpoint before this node to its end."""
        node = self.parent
        while node is not None and not node.has_state:
            node = node.parent
        return self.depth - (0 if node is None else node.depth)


def _is_there(copy: HostCopy | None) -> bool:
    return copy is not None and copy.is_complete


class PrefixTree:
    """All nodes, by key."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, PrefixNode] = {}
        self._firsts: dict[bytes, dict[bytes, PrefixNode]] = {}  # first blocks of each root

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[PrefixNode]:
        return iter(self._nodes.values())

    def get(self, key: bytes) -> PrefixNode | None:
        return self._nodes.get(key)

    def match(self, keys: Sequence[bytes]) -> list[PrefixNode]:
        """The readable nodes of the longest known beginning of a chain."""
        found: list[PrefixNode] = []
        known = self._nodes.get
        for key in keys:  # thousands, most of them on the device
            node = known(key)
            if node is None or (node.block is None and not node.is_readable):
                break
            found.append(node)
        return found

    def insert(
        self, key: bytes, parent: PrefixNode | None, root: bytes, tokens: Sequence[int]
    ) -> PrefixNode:
        """Add a node; where its latents are is the caller's to say."""
        node = self._nodes[key] = PrefixNode(key, parent, root, tokens)
        self._siblings(node)[key] = node
        return node

    def remove(self, node: PrefixNode) -> None:
        """Take out a node without children."""
        del self._nodes[node.key]
        siblings = self._siblings(node)
        del siblings[node.key]
        if node.parent is None and not siblings:
            del self._firsts[node.root]

    def continuations(self, parent: PrefixNode | None, root: bytes) -> Iterator[PrefixNode]:
        """What is known to follow a node, or a salt's root; the newest first."""
        children = self._firsts.get(root, {}) if parent is None else parent.children
        return reversed(children.values())

    def clear(self) -> list[PrefixNode]:
        """Take out everything; the nodes are the caller's then."""
        nodes = list(self._nodes.values())
        self._nodes, self._firsts = {}, {}
        return nodes

    def _siblings(self, node: PrefixNode) -> dict[bytes, PrefixNode]:
        if node.parent is None:
            return self._firsts.setdefault(node.root, {})
        return node.parent.children
