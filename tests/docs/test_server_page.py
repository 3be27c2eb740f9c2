"""docs/server.md names every endpoint, field, variable and error that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.core.config import EngineConfig
from lingflash.core.settings import settings_of
from lingflash.httpd.error_map import ERROR_MAP
from lingflash.link.scripted import ScriptedEngine
from lingflash.protocol.endpoint_fields import ENDPOINT_FIELDS
from settings_table import settings_table

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
SERVE = (EngineConfig, ServerConfig)
SETTINGS_OF_SERVE = [each for cls in SERVE for each in settings_of(cls).values()]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([each.variable for each in SETTINGS_OF_SERVE], id="variables"),
        pytest.param([each.flag for each in SETTINGS_OF_SERVE], id="flags"),
        pytest.param([cls.code for cls in ERROR_MAP], id="errors"),
    ],
)
def test_page_then_names_all(names):
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_page_then_its_table_of_settings_is_the_one_made_from_the_fields():
    table = settings_table(*SERVE)
    assert table in PAGE, f"write this into docs/server.md:\n{table}"


@pytest.mark.parametrize("endpoint", ENDPOINT_FIELDS)
def test_page_then_names_every_field_in_its_endpoints_section(endpoint):
    headings = {"responses": "### Responses", "messages": "### Messages"}
    start = headings.get(endpoint.split("/")[2], "### Chat and text completions")
    section = PAGE.split(start + "\n")[1].split("\n## ")[0].split("\n### ")[0]
    known = ENDPOINT_FIELDS[endpoint]
    for name in known.model.model_fields:
        assert f"`{name}`" in section
    for name, purpose in known.table.inert.items():
        assert f"| `{name}` | {purpose} |" in section
    for name, refusal in known.table.refused.items():
        assert f"| `{name}` | {refusal.because} |" in section


def test_page_then_names_every_endpoint():
    from api_support import engine_info

    app = create_app(ScriptedEngine({(): []}, engine_info()))
    for path, methods in app.openapi()["paths"].items():
        path = path.replace("{name}", "{id}")
        for method in methods:
            assert f"`{method.upper()} {path}`" in PAGE


def test_page_then_statuses_are_right():
    for cls, mapped in ERROR_MAP.items():
        assert f"| `{cls.code}` | {mapped.status}" in PAGE
