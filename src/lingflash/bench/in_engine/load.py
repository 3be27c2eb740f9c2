"""`ling bench load`: memory and time of loading a large checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lingflash.bench.in_engine.ceilings import sample_ceilings
from lingflash.bench.in_engine.dummy_checkpoint import MID_SIZE, write_checkpoint
from lingflash.core.errors import ConfigError, EngineError
from lingflash.records.record import Record, require

_TARGET_RATIO = 1.1
_ITEM_BYTES = {"bfloat16": 2, "float32": 4}
# Disk that must stay free beside the checkpoint.
_SPARE_BYTES = 2**30


def run_load(
    *,
    layers: int,
    dtypes: list[str],
    repeats: int,
    folder: Path | None,
    out: Path | None,
    allow_dirty: bool,
) -> Record:
    """Write a dummy checkpoint, load it in fresh processes, delete it.

    Raises:
        ConfigError: a value is out of range, or the disk is too small.
        EngineError: the loading process failed.
    """
    require(2 <= layers <= 200, "--layers", layers, "2 to 200")
    require(
        bool(dtypes) and set(dtypes) <= set(_ITEM_BYTES), "--dtype", dtypes, "bfloat16, float32"
    )
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    record = Record("load", out, allow_dirty)
    sample_ceilings(record)
    parent = Path(tempfile.gettempdir()) if folder is None else folder
    raw = {**MID_SIZE, "num_hidden_layers": layers}
    needed = layers * 200 * 2**20 + _SPARE_BYTES
    if shutil.disk_usage(parent).free < needed:
        raise ConfigError(
            f"--folder {parent}: about {needed / 2**30:.1f} GiB of free disk are needed.",
            param="folder",
        )
    with tempfile.TemporaryDirectory(prefix="lingflash-load-", dir=parent) as name:
        total = write_checkpoint(Path(name), raw)
        record.settings = {
            "checkpoint_bytes": total,
            "layers": layers,
            "page_cache": "warm: the files were just written",
            "repeats": repeats,
        }
        for dtype in dtypes:
            _load(record, Path(name), dtype, total, repeats)
    record.notes.append(
        "peak of RssAnon during load_model(), sampled each millisecond, less its value before; "
        "divided by the weights' bytes in the dtype they are loaded as"
    )
    record.finish()
    return record


def _load(record: Record, folder: Path, dtype: str, total: int, repeats: int) -> None:
    weights = total * _ITEM_BYTES[dtype] // 2
    ratios, seconds = [], []
    for _ in range(repeats):
        found = _probe(folder, dtype)
        ratios.append((found["peak_bytes"] - found["before_bytes"]) / weights)
        seconds.append(found["seconds"])
    worst = max(record.add(f"{dtype}: peak over weights", "ratio", ratios).samples)
    record.add(f"{dtype}: time", "s", seconds)
    record.derived[f"{dtype}: weights, bytes"] = weights
    record.promise(f"{dtype}: peak anonymous memory over weights", worst, _TARGET_RATIO, "at most")


def _probe(folder: Path, dtype: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "lingflash.bench.in_engine.load_probe", str(folder), dtype],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EngineError(f"The loading process failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
