"""Which computed blocks and states are worth keeping, found again by their tokens.

A node stands for one full block of tokens after a certain prefix. Its key is a cryptographic hash
of the parent's key and the block's tokens; the root's key is a hash of a salt, so that two salts
never meet. A node has a block of latents; some nodes also have a *state checkpoint*, a copy of all
recurrent states as they were after the node's last token. A prefix can be continued only where
both are there.

    root(salt) -- [16 tokens] -- [16 tokens, checkpoint] -- [16 tokens]
                                                        \\-- [16 other tokens, checkpoint]
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_KEY_BYTES = 32


def root_key(salt: str) -> bytes:
    """Key that every chain of a salt starts from."""
    return blake2b(salt.encode(), digest_size=_KEY_BYTES, person=b"lingflash-root").digest()


def block_keys(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Keys of the full blocks of a sequence, in order.

    Args:
        root: from root_key, or the key that the first token's block hangs on.
        token_ids: below 2**32 each.
        block_size: tokens in a block.
    """
    keys, parent = [], root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = array("I", token_ids[start : start + block_size])
        parent = blake2b(parent + block.tobytes(), digest_size=_KEY_BYTES).digest()
        keys.append(parent)
    return keys


class PrefixNode:
    """A block of computed tokens.

    Attributes:
        key: see block_keys.
        parent: the node before, None for the first block.
        block: place of its latents.
        checkpoint: state slot with the states after it, None if there is none.
        num_owners: leases that read the block.
        num_children: nodes that continue it.
    """

    __slots__ = ("block", "checkpoint", "key", "num_children", "num_owners", "parent")

    def __init__(self, key: bytes, parent: PrefixNode | None, block: int) -> None:
        self.key, self.parent, self.block = key, parent, block
        self.checkpoint: int | None = None
        self.num_owners = self.num_children = 0


class PrefixTree:
    """All nodes, and which of them may go.

    Only leaves that no lease reads may go, the longest unused one first, so that a chain is never
    broken in the middle.
    """

    def __init__(self) -> None:
        self._nodes: dict[bytes, PrefixNode] = {}
        self._removable: OrderedDict[bytes, PrefixNode] = OrderedDict()
        self._checkpoints: OrderedDict[bytes, PrefixNode] = OrderedDict()
        self.num_unowned = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[PrefixNode]:
        return iter(self._nodes.values())

    def get(self, key: bytes) -> PrefixNode | None:
        """The node with this key."""
        return self._nodes.get(key)

    def match(self, keys: Sequence[bytes]) -> list[PrefixNode]:
        """The nodes of the longest known beginning of a chain."""
        found = []
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                break
            found.append(node)
        return found

    def insert(self, key: bytes, parent: PrefixNode | None, block: int) -> PrefixNode:
        """Add a node that is owned by the lease that computed it."""
        node = self._nodes[key] = PrefixNode(key, parent, block)
        node.num_owners = 1
        if parent is not None:
            parent.num_children += 1
            self._removable.pop(parent.key, None)
        return node

    def own(self, node: PrefixNode) -> None:
        """A lease begins to read the node."""
        if node.num_owners == 0:
            self.num_unowned -= 1
            self._removable.pop(node.key, None)
        node.num_owners += 1

    def disown(self, node: PrefixNode) -> None:
        """A lease no longer reads the node."""
        node.num_owners -= 1
        if node.num_owners == 0:
            self.num_unowned += 1
            self._offer(node)

    def set_checkpoint(self, node: PrefixNode, slot: int) -> None:
        """Say that a slot holds the states after this node."""
        node.checkpoint = slot
        self._checkpoints[node.key] = node

    def touch_checkpoint(self, node: PrefixNode) -> None:
        """A hit used it: keep it longer."""
        self._checkpoints.move_to_end(node.key)

    def drop_checkpoint(self, node: PrefixNode) -> int:
        """Give up a node's checkpoint; its slot."""
        del self._checkpoints[node.key]
        slot, node.checkpoint = node.checkpoint, None
        assert slot is not None
        return slot

    def drop_oldest_checkpoint(self) -> int | None:
        """Give up the checkpoint that was unused for longest; its slot, None if there is none."""
        if not self._checkpoints:
            return None
        return self.drop_checkpoint(next(iter(self._checkpoints.values())))

    def oldest_removable(self) -> PrefixNode | None:
        """The leaf that nobody reads and that was unused for longest."""
        return next(iter(self._removable.values()), None)

    def remove(self, node: PrefixNode) -> PrefixNode:
        """Take out a leaf that nobody reads; its block and checkpoint are the caller's then."""
        del self._removable[node.key], self._nodes[node.key]
        self._checkpoints.pop(node.key, None)
        self.num_unowned -= 1
        if node.parent is not None:
            node.parent.num_children -= 1
            self._offer(node.parent)
        return node

    def _offer(self, node: PrefixNode) -> None:
        if node.num_owners == 0 and node.num_children == 0:
            self._removable[node.key] = node
