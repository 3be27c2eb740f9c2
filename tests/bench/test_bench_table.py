"""A benchmark that is forgotten in the table, in the pages or among the records fails here."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from api_support import wait_until
from lingflash.bench.command import BENCHMARKS
from lingflash.bench.command import app as bench_app
from lingflash.cli import app

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "src" / "lingflash" / "bench"
# What a GPU machine that runs the tree from a folder need not have; see benchmarks/README.md.
LEFT_OUT = ("msgspec", "llguidance", "fastapi", "starlette", "uvicorn", "httptools")


def flags():
    """Of every command: name, parameter and its first flag."""
    commands = typer.main.get_command(app).commands["bench"].commands
    return {
        name: [p for p in command.params if p.name != "help"] for name, command in commands.items()
    }


@pytest.mark.parametrize("row", BENCHMARKS, ids=lambda row: row.name)
def test_benchmark_then_its_runner_takes_exactly_its_flags(row):
    wanted = inspect.signature(row.runner()).parameters.values()
    named = {p.name for p in wanted if p.kind is not p.VAR_KEYWORD}
    given = {p.name for p in flags()[row.name]}
    assert named <= given
    if not any(p.kind is p.VAR_KEYWORD for p in wanted):
        assert named == given


def test_runners_then_each_is_in_the_table():
    """A file that defines run_NAME for its own NAME is a benchmark."""
    found = {
        (path.parent.name, path.stem)
        for path in BENCH.glob("*/*.py")
        if re.search(rf"^(async )?def run_{path.stem}\(", path.read_text(), re.MULTILINE)
    }
    # `ling bench serve --scripted`
    assert found - {("over_http", "stream")} == {(row.room, row.name) for row in BENCHMARKS}


def test_records_then_each_file_made_has_its_case_in_the_table():
    """`Record("case", ...)` in the source, a title in the table, and a committed file."""
    made = {
        case
        for path in [*BENCH.glob("*/*.py"), *(BENCH.parent / "cluster").rglob("*.py")]
        for case in re.findall(r'\bRecord\("(\w+)"', path.read_text())
    }
    committed = {
        json.loads(path.read_text())["case"] for path in (ROOT / "benchmarks").glob("*.json")
    }
    assert made == {case for row in BENCHMARKS for case in row.titles} == committed


def test_readme_then_it_shows_a_command_for_each_and_its_flags_exist():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    shown = re.findall(r"`(?:ling|python -m lingflash) bench (\w+)([^`]*)`", page)
    known = flags()
    assert {name for name, _ in shown} >= {row.name for row in BENCHMARKS}
    for name, words in shown:
        options = {option for parameter in known[name] for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", words)) <= options, (name, words)


@pytest.mark.parametrize("name", ["kernels", "latency"])
def test_gpu_benchmarks_when_only_torch_and_typer_are_there_then_they_still_begin(name):
    code = (
        "import runpy, sys\n"
        f"sys.modules |= dict.fromkeys({LEFT_OUT})\n"
        f"sys.argv = ['x', 'bench', '{name}', '--repeats', '0']\n"
        "runpy.run_module('lingflash', run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert (result.returncode, result.stderr) == (2, "error: --repeats is 0; allowed: 1 or more.\n")


def test_help_then_commands_stand_by_room_and_with_their_defaults(capsys):
    assert [row.name for row in BENCHMARKS] == [
        command.name or command.callback.__name__ for command in bench_app.registered_commands
    ][:-1]
    values = {p.name: p.default for p in flags()["throughput"]}
    assert list(values["batch_sizes"]) == [1, 8, 32]


def test_bench_when_terminated_then_the_server_that_it_started_ends(tmp_path):
    flags = ["serve", "--scripted", "--clients", "2", "--tokens", "4096", "--step-ms", "50"]
    with (tmp_path / "said").open("wb") as said:
        bench = subprocess.Popen(
            [sys.executable, "-m", "lingflash", "bench", *flags], stdout=said, stderr=said
        )
    try:
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children")
        wait_until(lambda: children.read_text(encoding="ascii").split(), 60.0)
        server = Path(f"/proc/{children.read_text(encoding='ascii').split()[0]}/stat")
        bench.terminate()
        assert bench.wait(60.0) == 130
        wait_until(lambda: not server.exists(), 30.0)
        assert b"Traceback" not in (tmp_path / "said").read_bytes()
    finally:
        bench.kill()
