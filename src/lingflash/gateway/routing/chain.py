"""A prompt as a chain of beginnings: one key after each of its pieces, without a tokenizer.

Two prompts that begin alike have the same keys so far. Pieces are the descriptions of the tools and
the messages, as bytes; a template puts them into a prompt in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

# A text without messages (`/v1/completions`) grows inside its one piece: it is cut into such parts.
_PART_BYTES = 2048


class Chain(NamedTuple):
    """A prompt.

    Args:
        keys: of the beginnings, the shortest first.
        sizes: bytes of each beginning.
        num_old: how many pieces a session's last answer and what stood before it make.
    """

    keys: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    num_old: int = 0

    @property
    def num_bytes(self) -> int:
        """Of the whole."""
        return self.sizes[-1] if self.sizes else 0


def make_chain(pieces: Iterable[tuple[str, bytes]], *, salt: bytes = b"") -> Chain:
    """The chain of pieces, each a role and its content.

    Args:
        salt: prompts of different salts share nothing.
    """
    keys: list[int] = []
    sizes: list[int] = []
    num_old = size = 0
    key = hashlib.blake2b(salt, digest_size=8).digest()
    for role, content in pieces:
        for start in range(0, max(len(content), 1), _PART_BYTES) if role == "text" else (0,):
            part = content[start : start + _PART_BYTES] if role == "text" else content
            digest = hashlib.blake2b(role.encode() + b"\0" + part, key=key, digest_size=8)
            key = digest.digest()
            size += len(part)
            if role == "text" and len(part) < _PART_BYTES and keys:
                continue  # the next prompt has more here
            keys.append(int.from_bytes(key, "big"))
            sizes.append(size)
        if role == "assistant":
            num_old = len(keys)
    if sizes:
        sizes[-1] = size
    return Chain(tuple(keys), tuple(sizes), num_old)
