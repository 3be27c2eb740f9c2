"""Pages name every series, every event and every message that a server can log: docs/operating.md
those of `ling serve`, the pages of other servers theirs.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lingflash.core.metrics import ServerMetrics
from lingflash.core.types import EngineStats

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lingflash"
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
# Rooms whose servers have pages of their own.
PAGES = {
    "gateway": ("gateway.md", "gateway-accounts.md"),
    "sandbox": ("sandbox.md",),
    "cluster": ("cluster.md",),
}
# Rooms that no server runs.
ELSEWHERE = {"bench", "train", "offline", "records"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def calls():
    """Every call in a server's rooms that logs, with its file."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(SOURCE).as_posix(), node


def text_of(node):
    """A literal's text; of an f-string what is constant, such as _failed after a name."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value for v in node.values if isinstance(v, ast.Constant))
    return node.value if isinstance(node, ast.Constant) else None


def page_of(path):
    """The pages that may name what a file logs."""
    names = PAGES.get(path.split("/")[0], ())
    return PAGE + "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in names)


def events():
    found = {
        (path, text_of(call.args[1]))
        for path, call in calls()
        if isinstance(call.func, ast.Name) and call.func.id == "log_event"
    }
    return sorted(found | {("core/log.py", "log_lines_dropped")})


def messages():
    """The longest piece without a placeholder of each message's template."""
    for path, call in calls():
        func = call.func
        if not (isinstance(func, ast.Attribute) and func.attr in LEVELS and call.args):
            continue
        if isinstance(func.value, ast.Name) and func.value.id in ("log", "logger"):
            pieces = re.split(r"%\.?\d*[a-z]|\.\.\.", text_of(call.args[0]))
            piece = max((piece.strip(" ():;,.") for piece in pieces), key=len)
            yield pytest.param(path, piece, id=f"{path}:{piece[:30]}")


@pytest.mark.parametrize(("path", "event"), events())
def test_page_then_names_the_event(path, event):
    start = "" if event.startswith("_") else "`"
    assert f"{start}{event}`" in page_of(path)


@pytest.mark.parametrize(("path", "piece"), list(messages()))
def test_page_then_names_the_message(path, piece):
    assert piece in page_of(path)


def test_page_then_names_every_series():
    for family in ServerMetrics(EngineStats, lambda: True).registry.collect():
        name = family.name.removeprefix("lingflash_")
        assert f"`{name}`" in PAGE or f"`{name}_total`" in PAGE


def test_scan_then_it_finds_what_is_known_to_be_there():
    assert {"http", "ready", "_killed", "responses_store_failed"} <= {
        event for _, event in events()
    }
    assert len(list(messages())) > 15
