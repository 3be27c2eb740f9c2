"""The `ling train` command; torch is imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingflash.core.errors import ConfigError


def train_command(
    recipe: Annotated[
        str,
        typer.Option(help="nano; nano-second, nano-polish (with --init-from); smoke for a trial."),
    ] = "nano",
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    minutes: Annotated[float, typer.Option(help="Length of the whole schedule.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder for state, log, curve and model.")] = Path(
        "runs/nano"
    ),
    resume: Annotated[bool, typer.Option(help="Go on from the state in --out.")] = True,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that make data; 0 is automatic.")] = 0,
    init_from: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this checkpoint folder.")
    ] = None,
    stop_after: Annotated[
        float, typer.Option(help="Pause with a checkpoint after so many minutes; 0 is never.")
    ] = 0.0,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Use torch.compile (CUDA).")
    ] = True,
    flex: Annotated[bool, typer.Option(help="Use flex attention (CUDA, compiled).")] = True,
) -> None:
    """Train the bundled model from nothing; a killed run goes on where it was."""
    import os

    import torch

    from lingflash.train.recipe import recipe as find_recipe
    from lingflash.train.trainer import RunConfig, Trainer

    if device not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"--device is {device!r}; allowed: auto, cuda, cpu.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no CUDA device; use --device cpu.")
    if minutes <= 0:
        raise ConfigError(f"--minutes is {minutes}; allowed: more than 0.")
    if workers <= 0:
        cores = os.cpu_count() or 1
        workers = max(1, min(14, cores - 2))
    run = RunConfig(
        recipe=find_recipe(recipe),
        device=device,
        minutes=minutes,
        stop_after_minutes=stop_after or None,
        out=out,
        resume=resume,
        seed=seed,
        workers=workers,
        init_from=init_from,
        compiled=compiled and device == "cuda",
        flex=flex,
    )
    complete = Trainer(run).train()
    typer.echo("complete" if complete else f"paused; the same command goes on from {out}")
