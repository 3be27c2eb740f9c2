"""What the pages for people who change the code say is there: paths, names, rooms, rules."""

from __future__ import annotations

import importlib.util
import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lingflash"
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/how-to-add.md", "docs/gpu-notes.md",
         "docs/gpu-notes-attention.md", "docs/gpu-notes-devices.md", "docs/cpu-notes.md",
         "docs/formats.md", "benchmarks/README.md")  # fmt: skip


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def is_path(word):
    return bool(re.fullmatch(r"[\w.*<>{},/-]+", word)) and (
        ("/" in word and not word.startswith("/")) or word.endswith((".py", ".c", ".md"))
    )


def found(word, page="README.md"):
    """The files that a path of a page means: `*`, `<op>` and `{a,b}` as in a shell."""
    choices = [
        part[1:-1].split(",") if part.startswith("{") else [re.sub(r"<\w+>", "*", part)]
        for part in re.split(r"(\{[^}]*\})", word)
    ]
    patterns = ["".join(parts) for parts in itertools.product(*choices)]
    bases = (SOURCE, ROOT, (ROOT / page).parent)
    return [path for pattern in patterns for base in bases for path in base.glob(pattern)]


@pytest.mark.parametrize("page", PAGES)
def test_page_when_it_names_a_path_then_it_exists(page):
    words = [word for word in re.findall(r"`([^`\n]+)`", read(page)) if is_path(word)]
    lacking = [word for word in words if not found(word, page)]
    # A file's name alone stands for every file of that name; there is to be none of the last.
    alone = {word for word in lacking if "/" not in word and any(SOURCE.rglob(word))}
    assert set(lacking) - alone - {"utils.py"} == set()
    assert not any(SOURCE.rglob("utils.py"))


def rows_of_places():
    """Of ARCHITECTURE's table of questions: the second cell of each."""
    table = read("ARCHITECTURE.md").split("## Where to look")[1].split("\n## ")[0]
    return [row.split("|")[2] for row in table.splitlines() if row.count("|") == 3 and "`" in row]


@pytest.mark.parametrize("cell", rows_of_places(), ids=lambda text: text[:40].strip())
def test_question_when_its_row_names_something_then_a_file_of_the_row_has_it(cell):
    words = re.findall(r"`([^`]+)`", cell)
    files = [path for word in words if is_path(word) for path in found(word, "ARCHITECTURE.md")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    names = [word for word in words if re.fullmatch(r"_?[A-Za-z]\w+", word)]
    defined = [rf"(?:def|class) {name}\b|^{name}\b" for name in names]
    assert files
    assert [d for d in defined if not any(re.search(d, t, re.MULTILINE) for t in texts)] == []


def steps():
    """Of docs/how-to-add.md: section, and the text of one numbered line."""
    for section in read("docs/how-to-add.md").split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        for step in re.split(r"\n(?=\d+\. )", text):
            if re.match(r"\n?\d+\. ", step):
                yield title, step.split("\n\n")[0]


@pytest.mark.parametrize(("title", "step"), list(steps()), ids=lambda text: text[:40].strip())
def test_how_to_add_when_a_step_names_something_then_a_file_of_the_step_has_it(title, step):
    words = re.findall(r"`([^`]+)`", step)
    files = [path for word in words if is_path(word) for path in found(word)]
    texts = [
        path.read_text(encoding="utf-8")
        for place in files
        for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))
    ]
    names = [word for word in words if re.fullmatch(r"_?[A-Za-z]\w+", word) and word != "run_NAME"]
    assert [name for name in names if not any(name in text for text in texts)] == []


def test_how_to_add_then_each_list_is_short_and_begins_with_a_file():
    lists = {}
    for title, step in steps():
        lists.setdefault(title, []).append(step)
    assert len(lists) == 16
    for title, those in lists.items():
        assert 3 <= len(those) <= 5, title
        assert re.match(r"\s*1\. `[\w/]+", those[0]), title


def test_rooms_when_drawn_then_they_are_the_folders_and_the_rules_of_pyproject():
    drawing = read("ARCHITECTURE.md").split("```\n")[1]
    drawn = re.findall(r"^[a-z]+(?: \| [a-z]+)*", drawing, re.MULTILINE)
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    assert drawn == [layer.replace("lingflash.", "") for layer in layers]
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms == {room for row in drawn for room in row.split(" | ")}


def test_request_way_when_it_names_a_module_then_it_exists():
    drawing = read("ARCHITECTURE.md").split("## A request's way")[1].split("```")[1]
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    names = [
        name
        for name in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", drawing)
        if name.split(".")[0] in rooms
    ]
    assert len(names) > 12
    assert [name for name in names if importlib.util.find_spec(f"lingflash.{name}") is None] == []


def test_log_then_its_index_names_every_entry_in_order():
    page = read("docs/LOG.md")
    entries = re.findall(r"^## (.+)$", page, re.MULTILINE)
    index = page.split("\n## ")[0]
    assert re.findall(r"^\| (?:\[(.+?)\])", index, re.MULTILINE) == entries
