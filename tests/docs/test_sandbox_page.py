"""docs/sandbox.md names every setting, series and remedy of `ling sandbox`."""

from __future__ import annotations

import re
from pathlib import Path

from lingflash.sandbox import probe
from lingflash.sandbox.config import SandboxConfig
from lingflash.sandbox.metrics import SandboxMetrics
from settings_table import settings_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


def test_page_then_its_table_of_settings_is_the_one_made_from_the_fields():
    table = settings_table(SandboxConfig)
    assert table in PAGE, f"write this into docs/sandbox.md:\n{table}"


def test_page_then_names_every_series_that_only_this_server_has():
    others = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    for family in SandboxMetrics().registry.collect():
        name = family.name.removeprefix("lingflash_")
        named = [f"`{name}`", f"`{name}_total`"]
        assert any(word in PAGE + others for word in named), name


def test_page_then_has_the_remedies_that_messages_give():
    for _, _, advice in probe._SYSCTLS[1:]:
        assert re.search(r"`(sysctl [^`]+)`", advice)[1] in PAGE
    assert "AppArmor keeps ordinary programs from user namespaces" in PAGE


def test_readme_then_leads_to_the_page():
    assert "(docs/sandbox.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
