"""What one connection may take, and how many there may be."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass, replace

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


def fitted_to_files(limits: ConnectionLimits) -> ConnectionLimits:
    """The limits with no more connections than there may be open files.

    The soft limit on files, often 1,024, is raised to the hard one first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # The kernel may allow less by now; then the soft one stays.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return limits
    room = max(1, soft - max(_RESERVED_FILES, soft // 8))
    return replace(limits, max_connections=min(limits.max_connections, room))
