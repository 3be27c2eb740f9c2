"""Each operator's table of kernels names files that are there, and every kernel that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lingflash

KERNELS = Path(lingflash.__file__).parent / "kernels"
OPERATORS = sorted(p.parent for p in KERNELS.glob("*/__init__.py") if p.parent.name != "cpu")


def table_of(folder):
    return ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""


@pytest.mark.parametrize("folder", OPERATORS, ids=lambda folder: folder.name)
def test_table_when_read_then_names_what_is_there_and_all_kernels(folder):
    table = table_of(folder)
    named = set(re.findall(r"(?:\.\./)?[\w/]+\.(?:py|c)\b", table))
    missing = [
        name for name in named if not any((at / name).exists() for at in (folder, KERNELS.parent))
    ]
    assert not missing
    kernels = {path.name for path in folder.glob("triton_*.py")} - {"triton_nibbles.py"}
    assert kernels <= named


@pytest.mark.parametrize("folder", OPERATORS, ids=lambda folder: folder.name)
def test_operator_when_it_has_kernels_then_it_has_a_reference(folder):
    is_defined = (folder / "reference.py").exists() or "definition is torch" in table_of(folder)
    assert is_defined or not [*folder.glob("triton_*.py")]
