"""The README's example runs as printed, and the files it points to are there."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from api_support import wait_ready

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = "import sys; from lingflash.cli import main; sys.exit(main())"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--port", str(port)], stderr=out, stdout=out
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(url, process, log, 90)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def test_openai_example_when_run_then_prints_what_the_readme_says(address):
    section = README.split("## With the `openai` package")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    expected = re.search(r"prints\n\n```\n(.*?)```", section, re.DOTALL).group(1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://127.0.0.1:8000", address), "README.md", "exec"), {})
    assert printed.getvalue() == expected


def test_links_when_local_then_exist():
    pages = [ROOT / "README.md", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
