"""The compared models in vLLM, each in a process of its own, for `ling bench curves --measure`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lingflash.bench.on_gpu.peer_configs import slice_config
from lingflash.core.errors import ConfigError
from lingflash.records.record import Record

PROGRAM = Path(__file__).with_name("peer_vllm.py")
# As peer_vllm.py: tokens of a prompt read in a step, and steps besides.
_PROMPT_TOKENS, _STEPS = 8192, 512


def peer_command(python: str, folder: Path, asked: dict[str, object]) -> list[str]:
    """Of one model's process."""
    return [python, str(PROGRAM), str(folder), json.dumps(asked)]


def has_vllm(python: str) -> bool:
    """Whether an interpreter can import vLLM."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", code], check=False).returncode == 0
    except OSError as error:
        raise ConfigError(
            f"--vllm-python {python} cannot be run: {error.strerror}.", param="vllm_python"
        ) from None


def measure_peers(
    record: Record, *, python: str | None, models: Sequence[str], format_name: str, batch: int,
    lengths: Sequence[int], repeats: int, ranks: int,
) -> None:  # fmt: skip
    """Add rates of these models, if vLLM is there; else a note says which commands would.

    A model that vLLM does not run is noted, and the others are measured.

    Raises:
        ConfigError: the interpreter cannot be run.
    """
    python = python or sys.executable
    if not has_vllm(python):
        record.notes.append(
            f"not run: {', '.join(models)} in vLLM, which {Path(python).name} cannot import; "
            "--vllm-python names an interpreter that can"
        )
        return
    # What a sequence may gain while others' prompts are read and steps are timed.
    room = max(lengths) * batch // _PROMPT_TOKENS + batch + _STEPS
    asked = {
        "lengths": list(lengths), "batch": batch, "repeats": repeats,
        "longest": max(lengths) + room,
    }  # fmt: skip
    for model in models:
        with tempfile.TemporaryDirectory(prefix="lingflash-peer-") as folder:
            config = slice_config(model, ranks, format_name)
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            error = _measure(record, model, peer_command(python, Path(folder), asked))
        if error:
            record.notes.append(f"not measured in vLLM: {model}: {error}")
        record.save()


def _measure(record: Record, model: str, command: list[str]) -> str | None:
    """Add what a process says; what was wrong, if it failed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "vllm" in said:
                record.settings["vllm"] = said["vllm"]
                continue
            name = f"{said['phase']} {model} vllm {said['length']}"
            rate = record.add(name, "tokens/s", said["rates"]).median
            print(name, f"{rate:,.0f} tokens/s", flush=True)
    if process.returncode:
        return f"its process ended with {process.returncode}; the log above says why"
    return None
