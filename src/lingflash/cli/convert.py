"""`ling convert`: a checkpoint in FP8 or INT4; torch is imported only when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingflash.cli.options import LoadingBar
from lingflash.core.config import BUNDLED_MODEL
from lingflash.core.errors import ConfigError, ModelLoadError

if TYPE_CHECKING:
    from lingflash.quant.convert import Conversion


def convert_command(
    model: Annotated[
        str,
        typer.Argument(help="Folder of a BF16 or float32 checkpoint, a hub id, or ling-nano."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not hold anything yet.")],
    format_name: Annotated[
        str,
        typer.Option("--format", help="fp8, int4 (experts only) or int4-fp8."),
    ],
    group_size: Annotated[
        int, typer.Option("--group-size", help="Columns that share an INT4 scale: 32 or 128.")
    ] = 32,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read the result back and compare; for ling-nano also what it answers.",
        ),
    ] = False,
    cases: Annotated[
        int, typer.Option("--cases", help="Held-out cases for --verify with ling-nano.")
    ] = 100,
) -> None:
    """Convert a checkpoint to FP8 or INT4, shard by shard; run it again to resume."""
    from lingflash.core.hub import resolve_model
    from lingflash.models.checkpoint import read_checkpoint
    from lingflash.models.config import load_model_config
    from lingflash.quant.convert import Conversion, convert, read_back
    from lingflash.quant.recipe import FORMATS, FormatName

    known: dict[str, FormatName] = {name: name for name in FORMATS}
    chosen = known.get(format_name)
    if chosen is None:
        raise ConfigError(
            f"--format is {format_name!r}; allowed: {', '.join(FORMATS)}.", param="format"
        )
    if cases < 1:
        raise ConfigError(f"--cases is {cases}; allowed: 1 or more.", param="cases")
    source = resolve_model(model)
    load_model_config(source)
    job = Conversion(
        source=source,
        entries=read_checkpoint(source),
        config=json.loads((source / "config.json").read_text(encoding="utf-8")),
        out=out.expanduser().resolve(),
        format_name=chosen,
        group_size=group_size,
    )
    with LoadingBar(f"{model} to {format_name}") as bar:
        errors = convert(job, bar.update, check=_check_loadable)
    before = sum(entry.num_bytes for entry in job.entries.values())
    after = sum(entry.num_bytes for entry in read_checkpoint(job.out).values())
    typer.echo(f"{job.out}: {after / 2**20:,.1f} MiB of weights, before {before / 2**20:,.1f} MiB")
    _report(errors)
    if verify:
        checked = sum(1 for _ in read_back(job.out, job, errors))
        left = len(job.entries) - checked
        typer.echo(f"read back: {checked} converted matrices as above, {left} tensors unchanged")
        if model == BUNDLED_MODEL:
            _compare_answers(job, cases)


def _check_loadable(folder: Path) -> None:
    """Make sure that the loader takes every tensor of a converted folder, without reading them."""
    import torch

    from lingflash.models.checkpoint import read_checkpoint
    from lingflash.models.config import load_model_config
    from lingflash.models.loader import build_model, check_tensors
    from lingflash.parallel.mesh import Mesh
    from lingflash.quant.scheme import read_formats

    config, entries = load_model_config(folder), read_checkpoint(folder)
    formats = read_formats(config.quantization_config, entries)
    try:
        model = build_model(
            config,
            entries,
            formats,
            dtype=torch.bfloat16,
            device=torch.device("meta"),
            max_model_len=1,
            mesh=Mesh(),
        )
        check_tensors(model.weight_slots, entries, formats)
    except ModelLoadError as error:
        raise ModelLoadError(f"{folder} would not load: {error.message}") from None


def _report(errors: dict[str, float]) -> None:
    """Relative errors by kind of matrix: how many, the mean and the worst."""
    kinds: dict[str, list[tuple[float, str]]] = {}
    for name, error in errors.items():
        parts = name.removesuffix(".weight").split(".")
        kind = "experts." + parts[-1] if "experts" in parts else ".".join(parts[-2:])
        kinds.setdefault(kind, []).append((error, name))
    typer.echo("relative error (Frobenius norm) of the converted matrices:")
    for kind, found in sorted(kinds.items()):
        mean = sum(error for error, _ in found) / len(found)
        worst, name = max(found)
        typer.echo(f"  {kind:<28} {len(found):>6} x  mean {mean:.5f}  worst {worst:.5f} ({name})")


def _compare_answers(job: Conversion, cases: int) -> None:
    from tokenizers import Tokenizer

    from lingflash.train.data.heldout import heldout_cases
    from lingflash.train.quality import answer_quality

    tests = heldout_cases(cases, 7)
    tokenizer = Tokenizer.from_file(str(job.source / "tokenizer.json"))
    typer.echo(f"on {len(tests)} held-out cases (seed 7), float32, CPU:")
    for label, folder in (("before", job.source), ("after", job.out)):
        found = answer_quality(folder, tokenizer, tests)
        typer.echo(
            f"  {label:<7} perplexity {found.perplexity:.5f}, exact answers "
            f"{found.num_exact} of {found.num_cases}, of them with tool calls "
            f"{found.num_exact_calls} of {found.num_calls}"
        )
