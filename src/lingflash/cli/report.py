"""`ling report`: all committed records as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingflash.core.errors import ConfigError


def report(
    folder: Annotated[
        Path, typer.Option("--folder", help="Records of `ling bench`; `ling eval`'s in evals/.")
    ] = Path("benchmarks"),
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("evidence.html"),
) -> None:
    """Join all records into one offline page: claim, announced figure, ours, command, machine."""
    from lingflash.bench.command import BENCHMARKS
    from lingflash.bench.roofline.curves import charts, compared, described
    from lingflash.evals.report import evidence_page, load_evaluations
    from lingflash.records.report import load_records

    if not folder.is_dir():
        raise ConfigError(f"--folder is {folder}; it does not exist.", param="folder")
    titles = {case: title for row in BENCHMARKS for case, title in row.titles.items()}
    records = load_records(folder, titles)
    curves = [record for record in records if record["case"] == "curves"]
    parts = []
    if curves:
        parts = [
            "<h2>Decode and prefill of four models, at 65,536 tokens</h2>",
            compared(curves),
            *(chart.figure() for chart in charts(curves)),
            *map(described, curves),
        ]
    text = evidence_page(records, load_evaluations(folder / "evals"), parts)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out is {out}; it cannot be written: {error}.", param="out") from None
    print(f"written to {out}: {len(records)} records, {len(text) / 1e3:.0f} kB")
