"""Writes the pages of docs/clients from the table of `ling connect`.

python tests/programs/program_pages.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from lingflash.cli.connect import NO_KEY, export_lines
from lingflash.cli.connect_agents import AGENTS
from lingflash.cli.connect_libraries import LIBRARIES
from lingflash.cli.connect_program import Program, Settings

FOLDER = Path(__file__).parents[2] / "docs" / "clients"
SETTINGS = Settings(url="http://127.0.0.1:8000", model="ling-nano", key=NO_KEY, context=65_536)
_LANGUAGES = {".json": "json", ".toml": "toml", ".yaml": "yaml"}
_PAGES = {
    "agents.md": ("Agents and the terminal", AGENTS),
    "libraries.md": ("Libraries and measurements", LIBRARIES),
}


def section(program: Program) -> str:
    """One program's settings, as they are run by tests/programs."""
    apis = ", ".join(f"`{path}`" for path in program.api)
    parts = [f"## {program.title}", f"`{program.package}` {program.version}, over {apis}."]
    for name, text in program.files.items():
        language = _LANGUAGES[Path(name).suffix]
        parts.append(f"`~/{name}`:\n\n{_fence(SETTINGS.fill(text), language)}")
    if program.code:
        parts.append(_fence(SETTINGS.fill(program.code), program.language))
    commands = export_lines(program, SETTINGS)
    if program.start:
        commands.append(SETTINGS.fill_shell(program.start))
    if commands:
        parts.append(_fence("\n".join(commands), "sh"))
    if program.notes:
        parts.append(textwrap.fill(program.notes, 110, break_on_hyphens=False))
    return "\n\n".join(parts)


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    about = (
        "The settings that `make test-slow` runs each program with, for a server on this machine "
        "without a key\nand ling-nano with 65,536 tokens of context; [the first page](README.md) "
        "says how to start it. `ling connect\nNAME` prints them for a server that runs. This page "
        "is written by `tests/programs/program_pages.py`."
    )
    return {
        name: "\n\n".join([f"# {title}", about, *map(section, programs)]) + "\n"
        for name, (title, programs) in _PAGES.items()
    }


def _fence(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


if __name__ == "__main__":
    for page, content in pages().items():
        (FOLDER / page).write_text(content, encoding="utf-8")
