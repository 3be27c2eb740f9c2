"""A fresh process that loads a checkpoint and watches its own memory.

    python -m lingflash.bench.in_engine.load_probe FOLDER DTYPE

One JSON object comes out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lingflash.models.loader import load_model
from lingflash.records.machine import anonymous_bytes

_INTERVAL_S = 0.001
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class PeakWatch:
    """A thread that keeps the largest value of anonymous_bytes() while it runs."""

    def __init__(self) -> None:
        self.peak_bytes = anonymous_bytes()
        self.num_samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
            self.num_samples += 1


def probe(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load a folder; bytes before, at the peak and after, and what the weights take."""
    weights_bytes = 0

    def tell(done: int, total: int) -> None:
        nonlocal weights_bytes
        weights_bytes = total

    # The thread's own memory and torch's first allocation belong to the baseline.
    torch.ones(1024, 1024).sum()
    before = anonymous_bytes()
    start = time.perf_counter()
    with PeakWatch() as watch:
        model = load_model(
            folder, dtype=dtype, device=torch.device("cpu"), max_model_len=8192, progress=tell
        )
    seconds = time.perf_counter() - start
    assert model.mtp is not None
    return {
        "before_bytes": before,
        "peak_bytes": watch.peak_bytes,
        "after_bytes": anonymous_bytes(),
        "checkpoint_bytes": weights_bytes,
        "num_samples": watch.num_samples,
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), _DTYPES[sys.argv[2]])))
