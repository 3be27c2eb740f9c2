"""The first lines of a replica's `ling serve`: it ends with whoever started it.

    python -m lingflash.cluster.serve_child PARENT serve MODEL --port 0 ...

The kernel ends it when its parent is gone, however that ended: Ray then gives its GPUs to others.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become `ling` with these arguments, behind the parent's process id."""
    parent = int(arguments[0])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit(1)
    sys.argv = ["ling", *arguments[1:]]
    runpy.run_module("lingflash", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
