"""`ling doctor`: what this machine has, and what a checkpoint needs, before loading it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

import typer

from lingflash.cli.options import takes_options
from lingflash.core.config import EngineConfig
from lingflash.core.processor import cpu_name, processor


@takes_options(
    config=(
        "model",
        "device",
        "dtype",
        "max_model_len",
        "rope_scaling",
        "max_num_seqs",
        "memory_fraction",
    )
)
def doctor(config: EngineConfig) -> None:
    """Show device, memory and libraries, and whether a model fits and with which context."""
    for label, value in describe_machine():
        typer.echo(f"{label:<10} {value}")
    from lingflash.core.hub import resolve_model
    from lingflash.engine.memory.planning import plan_memory
    from lingflash.models.checkpoint import read_checkpoint
    from lingflash.models.config import load_model_config
    from lingflash.quant.scheme import describe_formats, read_formats
    from lingflash.text.chat_prompt import ModelText

    folder = resolve_model(config.model)
    typer.echo(f"\n{'model':<10} {config.model} ({folder})")
    text = ModelText.from_folder(folder)
    if text is None:
        typer.echo(f"{'text':<10} no tokenizer.json: token-id mode")
    else:
        template = "with" if text.template is not None else "without"
        size = text.tokenizer.vocab_size
        typer.echo(f"{'text':<10} {size:,} tokens, {template} chat template")
    entries = read_checkpoint(folder)
    formats = read_formats(load_model_config(folder).quantization_config, entries)
    if formats:
        typer.echo(f"{'format':<10} {describe_formats(formats)}")
    typer.echo(plan_memory(config).render())


def describe_machine() -> list[tuple[str, str]]:
    """Label and value of what matters on this machine."""
    from lingflash import __version__

    cpu = processor()
    lines = [
        ("lingflash", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.platform()}, {os.cpu_count()} cores"),
        ("cpu", f"{cpu_name()}: {cpu.used} ({cpu.why})"),
        ("memory", _memory()),
    ]
    try:
        import torch
    except ImportError as error:
        return [*lines, ("torch", f"missing or broken: {error}")]
    from lingflash.kernels.cpu.choice import describe_kernels

    lines.append(("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"))
    lines += [("kernels", line) for line in describe_kernels()]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            size = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            lines.append((f"cuda:{index}", f"{name}, {size}"))
    elif torch.version.cuda is None:
        lines.append(("cuda", "torch was built without it"))
    else:
        lines.append(("cuda", f"built for {torch.version.cuda}, but no usable GPU"))
    has_triton = importlib.util.find_spec("triton") is not None
    lines.append(("triton", "installed" if has_triton else "not installed (GPU kernels need it)"))
    return lines


def _memory() -> str:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        free, total = (int(fields[k].split()[0]) for k in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return "unknown on this system"
    return f"{free / 2**20:.1f} of {total / 2**20:.1f} GiB available"
