"""Who gives way to whom on a busy machine."""

from __future__ import annotations

import contextlib
import os


def lower_priority(nice: int, of: int = 0) -> None:
    """Let a process or a thread give way; where that cannot be, nothing happens.

    Args:
        nice: from 0, as all others, to 19.
        of: id of a process or, on Linux, of one thread; 0 is the calling thread.
    """
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, of, nice)
