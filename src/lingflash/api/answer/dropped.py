"""Tells what was accepted without being used: in the answer's header, and in the metrics."""

from __future__ import annotations

from lingflash.api.state import ServerState
from lingflash.protocol.fields import Dropped

HEADER = "x-lingflash-dropped"


def dropped_headers(state: ServerState, dropped: Dropped) -> dict[str, str]:
    """Count what was dropped; return the header that names it, or none if there is nothing."""
    for name, count in dropped.counts.items():
        state.metrics.dropped_fields.labels(name).inc(count)
    line = dropped.header()
    return {} if line is None else {HEADER: line}
