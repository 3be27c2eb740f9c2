"""`ling report`: all committed records as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lingflash.core.errors import ConfigError


def report(
    folder: Annotated[
        Path, typer.Option("--folder", help="Records of `ling bench`; `ling eval`'s in evals/.")
    ] = Path("benchmarks"),
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("evidence.html"),
) -> None:
    """Join all records into one offline page: claim, announced figure, ours, command, machine."""
    from lingflash.bench.roofline.curves import charts, compared, described
    from lingflash.evals.report import evidence_page

    records, evaluations = _load(folder, "--folder")
    curves = [record for record in records if record["case"] == "curves"]
    parts = []
    if curves:
        parts = [
            "<h2>Decode and prefill of four models, at 65,536 tokens</h2>",
            compared(curves),
            *(chart.figure() for chart in charts(curves)),
            *map(described, curves),
        ]
    text = evidence_page(records, evaluations, parts)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out is {out}; it cannot be written: {error}.", param="out") from None
    print(f"written to {out}: {len(records)} records, {len(text) / 1e3:.0f} kB")


def read_evidence(folder: Path) -> dict[str, Any]:
    """The claims and records of a folder, for the page of a server.

    Raises:
        ConfigError: the folder is not there, or a file in it is no record.
    """
    from lingflash.evals.report import evidence_json

    return evidence_json(*_load(folder, "--evidence"))


def _load(folder: Path, flag: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of benchmarks, and of evaluations."""
    from lingflash.bench.command import BENCHMARKS
    from lingflash.evals.report import load_evaluations
    from lingflash.records.report import load_records

    if not folder.is_dir():
        raise ConfigError(f"{flag} is {folder}; it does not exist.", param=flag[2:])
    titles = {case: title for row in BENCHMARKS for case, title in row.titles.items()}
    return load_records(folder, titles), load_evaluations(folder / "evals")
