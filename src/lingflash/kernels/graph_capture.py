"""How launches become a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def capture_graph(run: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """Launch once, so that what is compiled or allocated at first use is there, then capture.

    Args:
        run: launches on the current stream and asks the device nothing.
        pool: memory of another graph, which this one may use when that one is not replayed.

    Returns:
        The graph, and what `run` gave, which each replay writes anew.
    """
    stream = torch.cuda.Stream()
    # Whatever the launches read may still be on its way: garbage in an index ends in an assertion.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        given = run()
    return graph, given
