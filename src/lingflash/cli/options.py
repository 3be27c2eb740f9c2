"""Options that several commands share, and the settings made from them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lingflash.core.config import (
    BUNDLED_MODEL,
    Device,
    Dtype,
    EngineConfig,
    parse_rope_scaling,
)
from lingflash.core.env import SERVE_VARIABLES as ENV

DEFAULTS = EngineConfig()

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        envvar=ENV["MODEL"],
        show_envvar=True,
        help="Folder in Hugging Face layout, a hub id, or the bundled model.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", envvar=ENV["--device"], help="auto, cuda or cpu.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", envvar=ENV["--dtype"], help="auto, bfloat16 or float32.")
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        envvar=ENV["--max-model-len"],
        help="Context limit in tokens; the model's own, or what fits, if left out.",
    ),
]
RopeScalingOption = Annotated[
    str | None,
    typer.Option(
        "--rope-scaling",
        envvar=ENV["--rope-scaling"],
        metavar="JSON",
        help="Stretch the context with YaRN; changes short answers too.",
    ),
]
MemoryFractionOption = Annotated[
    float,
    typer.Option(
        "--memory-fraction",
        envvar=ENV["--memory-fraction"],
        help="Part of the free memory that weights, states and cache may use.",
    ),
]
MaxNumSeqsOption = Annotated[
    int,
    typer.Option(
        "--max-num-seqs", envvar=ENV["--max-num-seqs"], help="Sequences that run at once."
    ),
]


def make_engine_config(
    model: str,
    *,
    device: str,
    dtype: str,
    max_model_len: int | None,
    rope_scaling: str | None,
    max_num_seqs: int,
    memory_fraction: float,
    max_num_batched_tokens: int = DEFAULTS.max_num_batched_tokens,
    max_num_waiting: int = DEFAULTS.max_num_waiting,
    block_size: int = DEFAULTS.block_size,
    tensor_parallel_size: int = 1,
    num_speculative_tokens: int = 0,
    batch_invariant: bool = False,
    prefix_caching: bool = True,
    cache_self_test: bool = True,
    host_cache_gib: float | None = None,
    seed: int | None = None,
) -> EngineConfig:
    """Build the engine's settings from options as typed.

    Raises:
        ConfigError: one is wrong; the message names its flag.
    """
    return EngineConfig(
        model=model,
        device=cast(Device, device),
        dtype=cast(Dtype, dtype),
        max_model_len=max_model_len,
        rope_scaling=None if rope_scaling is None else parse_rope_scaling(rope_scaling),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_waiting=max_num_waiting,
        memory_fraction=memory_fraction,
        block_size=block_size,
        tensor_parallel_size=tensor_parallel_size,
        num_speculative_tokens=num_speculative_tokens,
        batch_invariant=batch_invariant,
        prefix_caching=prefix_caching,
        cache_self_test=cache_self_test,
        host_cache_gib=host_cache_gib,
        seed=seed,
    )


def served_name(model: str) -> str:
    """The name under which a model is served: a folder's last part, or what was given."""
    if model != BUNDLED_MODEL and Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve().name
    return model


class LoadingBar(AbstractContextManager["LoadingBar"]):
    """A progress bar for reading weights; shows nothing where the output is no terminal.

    Args:
        label: what is loaded.
    """

    def __init__(self, label: str) -> None:
        self._progress = Progress(
            TextColumn("loading {task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not Console(stderr=True).is_terminal,
        )
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> LoadingBar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Show how many bytes have been read."""
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)
        if done_bytes >= total_bytes:
            self._progress.stop()


def new_event_loop() -> Callable[[], Any] | None:
    """The factory of the faster event loop, None where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
