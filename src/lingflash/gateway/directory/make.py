"""Directories as the gateway's file names them."""

from __future__ import annotations

from lingflash.gateway.config.load import KnownDirectory
from lingflash.gateway.directory.cluster import ClusterDirectory
from lingflash.gateway.directory.directory import Directory
from lingflash.gateway.directory.dns import DnsDirectory
from lingflash.gateway.directory.static import StaticDirectory


def make_directory(known: KnownDirectory) -> Directory:
    """The directory of a table that was checked."""
    table = known.table
    if table.url is not None:
        return ClusterDirectory(table.url, known.token)
    if table.host is not None:
        return DnsDirectory(table.host, table.port, known.token)
    return StaticDirectory(table.replicas, known.token)
