"""docs/clients shows the settings that `ling connect` prints and tests/programs runs."""

from __future__ import annotations

import json
import re

import pytest

from lingflash.cli.connect_check import LARGER_CONTEXT
from lingflash.cli.connect_programs import PROGRAMS
from program_agents import AGENTS
from program_install import LOCKS
from program_libraries import LIBRARIES
from program_pages import FOLDER, pages

COMMANDS = {"llm": "clients", "inspect-ai": "evals", "lm-eval": "evals", "guidellm": "evals"}


def test_pages_when_compared_then_say_what_the_table_says():
    for name, text in pages().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, (
            "run tests/programs/program_pages.py"
        )


def test_first_page_then_shows_the_larger_context_that_connect_advises():
    page = re.sub(r" \\\n +", " ", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert f"ling serve {LARGER_CONTEXT}" in page


def test_readme_then_leads_to_the_pages():
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert "(docs/clients/README.md)" in readme
    first = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in first for name in pages())


def test_programs_then_each_is_run_by_a_test():
    run = {agent.program for agent in AGENTS.values()} | {one.program for one in LIBRARIES}
    assert run | set(COMMANDS) == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_version_when_shown_then_is_the_one_that_is_installed(name):
    program = PROGRAMS[name]
    locks = COMMANDS | {one.program: one.lock for one in LIBRARIES}
    lock = locks.get(name) or AGENTS[name].lock
    if program.registry == "npm":
        packages = json.loads((LOCKS / lock / "package-lock.json").read_text())["packages"]
        assert packages[f"node_modules/{program.package}"]["version"] == program.version
    else:
        assert f"{program.package}=={program.version}\n" in (
            LOCKS / f"{lock}.txt"
        ).read_text().replace("_", "-")


def test_locks_then_name_no_place():
    for path in LOCKS.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "://" not in text, path
            assert '"resolved"' not in text, path
