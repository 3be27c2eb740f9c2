"""docs/gateway.md names every key of the file, endpoint, series and field that there is."""

from __future__ import annotations

import os
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

from gateway_support import MemoryAccounts
from lingflash.gateway.app import create_gateway_app
from lingflash.gateway.config import tables
from lingflash.gateway.config.load import read_config
from lingflash.gateway.routing import wish
from settings_table import keys_table

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
TABLES = {
    "[server]": tables.ServerTable,
    "[deadlines]": tables.DeadlinesTable,
    "[breaker]": tables.BreakerTable,
    "[requests]": tables.RequestsTable,
    "[[directory]]": tables.DirectoryTable,
    "[[upstream]]": tables.UpstreamTable,
    "[[model]]": tables.ModelTable,
    "[[model.endpoint]]": tables.EndpointTable,
    "[[model.endpoint.price]]": tables.PriceTable,
}


@pytest.mark.parametrize("name", TABLES)
def test_page_then_its_tables_are_those_made_from_the_fields(name):
    table = keys_table(name, TABLES[name])
    assert table in PAGE, f"write this into docs/gateway.md:\n{table}"


@pytest.fixture
def config():
    """The page's own file."""
    text = PAGE.split("```toml\n")[1].split("```")[0]
    given = tomllib.loads(text, parse_float=Decimal)
    return read_config(given, {**os.environ, "NOVITA_API_KEY": "k"}, file="f", folder=Path())


def test_page_then_its_file_is_one_and_its_announced_request_has_a_route(config):
    assert config.catalog.names() == [
        "inclusionai/ling-2.6-flash",
        "inclusionai/ling-2.6-flash:free",
    ]
    free = config.catalog.resolve("inclusionai/ling-2.6-flash:free")
    assert [each.provider for each in free.model.served_as(is_free=True)] == ["Novita"]


def test_page_then_names_every_endpoint_series_and_field(config):
    app = create_gateway_app(config, MemoryAccounts())
    lacking = [path for path in app.openapi()["paths"] if f"`{path}`" not in PAGE]
    assert [path for path in lacking if path != "/v1/models/{name}"] == []
    series = {
        f"lingflash_gateway_{name}"
        for name in re.findall(
            r"lingflash_gateway_(\w+)", app.state.context.metrics.render().decode()
        )
    }
    names = {re.sub(r"_(created|bucket|count|sum)$", "", name) for name in series}
    assert {
        name for name in names if f"`{name}`" not in PAGE and f"`{name}_total`" not in PAGE
    } == (set())
    for field in wish._Provider.model_fields:
        assert f"`{field}`" in PAGE
