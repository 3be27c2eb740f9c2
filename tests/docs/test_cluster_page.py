"""docs/cluster.md names every key of the file, command and series; its files are read."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
import typer

from lingflash.cli import app
from lingflash.cluster import config
from lingflash.cluster.app import _Fleet
from lingflash.cluster.config import load_cluster
from lingflash.cluster.controller import Controller
from lingflash.gateway.config.load import read_config
from settings_table import keys_table

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
TABLES = {
    "[cluster]": config.ClusterTable,
    "[ray]": config.RayTable,
    "[replica]": config.ReplicaTable,
    "[scale]": config.ScaleTable,
}


@pytest.mark.parametrize("name", TABLES)
def test_page_then_its_tables_are_those_made_from_the_fields(name):
    table = keys_table(name, TABLES[name])
    assert table in PAGE, f"write this into docs/cluster.md:\n{table}"


def test_page_then_its_files_are_read(tmp_path):
    cluster, gateway = [each.split("```")[0] for each in PAGE.split("```toml\n")[1:]]
    path = tmp_path / "cluster.toml"
    path.write_text(cluster)
    environ = {"CLUSTER_TOKEN": "t"}
    assert load_cluster(path, environ).scale.min == 2
    tables = tomllib.loads(gateway, parse_float=Decimal)
    read = read_config(tables, environ, file="f", folder=tmp_path)
    assert read.upstreams["fleet"].directory == "fleet"


def test_page_then_names_every_command():
    commands = typer.main.get_command(app).commands["cluster"].commands
    assert [name for name in commands if f"`ling cluster {name}" not in PAGE
            and f"ling cluster {name} " not in PAGE] == []  # fmt: skip


def test_page_then_names_every_series(cluster_of_none):
    names = {family.name for family in _Fleet(cluster_of_none).collect()}
    assert names == set(re.findall(r"^\| `(lingflash_cluster_\w+)`", PAGE, re.MULTILINE))


@pytest.fixture
def cluster_of_none(tmp_path):
    """A controller that was never run."""
    path = tmp_path / "cluster.toml"
    path.write_text('[cluster]\ntoken_variable = "T"\n[replica]\nmodel = "ling-nano"')
    return Controller(load_cluster(path, {"T": "t"}), placer=None)
