"""docs/gateway-accounts.md names every setting, table and field that there is."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import get_args

import pytest

from lingflash.core.settings import settings_of
from lingflash.gateway.accounting import Outcome, UsageSource
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.accounts.wire import MODELS
from lingflash.store.tables import metadata

PAGE = (Path(__file__).parents[2] / "docs" / "gateway-accounts.md").read_text(encoding="utf-8")


def table() -> str:
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for each in settings_of(AccountsConfig).values():
        assert each.default is not MISSING
        shown = "" if each.default is None else f"`{each.default}`"
        rows.append(f"| `{each.name}` | {shown} | {each.help} |")
    return "\n".join(rows)


def test_page_then_its_table_of_settings_is_the_one_made_from_the_fields():
    assert table() in PAGE, f"write this into docs/gateway-accounts.md:\n{table()}"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(sorted(metadata.tables), id="tables"),
        pytest.param([*get_args(Outcome), *get_args(UsageSource)], id="outcomes"),
        pytest.param(
            sorted({name for model in MODELS for name in model.model_fields} - {"name", "key"}),
            id="fields",
        ),
    ],
)
def test_page_then_names_all(names):
    said = PAGE.replace("`killed`:", "`killed`").replace("`", " ").replace(",", " ").split()
    assert [name for name in names if name not in {word.strip(":") for word in said}] == []
