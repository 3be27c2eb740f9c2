"""What one connection may take, and how many there may be."""

from __future__ import annotations

import resource
from dataclasses import dataclass

_RESERVED_FILES = 64
"""Descriptors kept back for the engine's sockets, files and libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Bounds of every connection, key or no key; None of them is reached by an honest client.

    Args:
        max_connections: more than this and the one that has been idle longest is closed.
        head_bytes: request line and headers of a request together; also trailers, and what a
            chunked body may carry besides its bytes.
        head_fields: headers of a request, or trailers.
        pipelined: requests that may wait behind the one that is being answered.
        first_byte_s: how long a new connection may say nothing.
        head_s: how long a request's line and headers may take from their first byte.
        body_s: how long a body may come without a byte of progress.
        keep_alive_s: how long a connection is kept between two requests. Clients' pools keep theirs
            for up to 60 s, and one that the server closes first costs them an error.
    """

    max_connections: int = 10_000
    head_bytes: int = 65_536
    head_fields: int = 100
    pipelined: int = 16
    first_byte_s: float = 30.0
    head_s: float = 30.0
    body_s: float = 60.0
    keep_alive_s: float = 75.0


def raise_file_limit() -> int:
    """Raise the soft limit on open files to the hard one.

    Returns:
        How many connections that leaves room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # a hard limit above what the kernel allows now; the soft one stays
    if soft == resource.RLIM_INFINITY:
        return 1_000_000
    return max(1, soft - max(_RESERVED_FILES, soft // 8))
