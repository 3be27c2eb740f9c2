"""The whole file: its tables read, its secrets fetched, its names checked against each other."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lingflash.core.errors import ConfigError
from lingflash.core.settings import nearest
from lingflash.core.toml_tables import TableReader, read_toml
from lingflash.gateway.accounting import Price
from lingflash.gateway.accounts.config import AccountsConfig
from lingflash.gateway.config.tables import (
    BreakerTable,
    DeadlinesTable,
    DirectoryTable,
    EndpointTable,
    ModelTable,
    PriceTable,
    RequestsTable,
    ServerTable,
    Upstream,
    UpstreamTable,
)
from lingflash.gateway.routing.catalog import FREE, Catalog, Endpoint, Model
from lingflash.link.connection_pool import is_public
from lingflash.link.http_client import Address

# Pico-dollars per token of a dollar per million tokens.
_PICO_PER_MTOK = 10**6
_PICO_PER_USD = 10**12
_SUFFIXES = (FREE, ":nitro", ":floor")
_SLUG = re.compile(r"[a-z0-9._-]+")
# Which key says where a directory of a kind finds its replicas.
_KEY_OF_KIND = {"static": "replicas", "dns": "host", "ray": "url"}


@dataclass(frozen=True, slots=True)
class KnownDirectory:
    """A directory as it is asked.

    Args:
        token: the cluster's, which its replicas take as a key.
    """

    table: DirectoryTable
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What a file says, ready to be used.

    Args:
        upstreams: by slug.
        directories: by name.
        metrics_key: None leaves /metrics open.
    """

    file: str
    server: ServerTable
    deadlines: DeadlinesTable
    breaker: BreakerTable
    requests: RequestsTable
    upstreams: Mapping[str, Upstream]
    directories: Mapping[str, KnownDirectory]
    catalog: Catalog
    metrics_key: str | None = field(repr=False)
    accounts: AccountsConfig = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The top of the file."""

    server: ServerTable = field(default_factory=ServerTable)
    deadlines: DeadlinesTable = field(default_factory=DeadlinesTable)
    breaker: BreakerTable = field(default_factory=BreakerTable)
    requests: RequestsTable = field(default_factory=RequestsTable)
    accounts: AccountsConfig = field(default_factory=AccountsConfig)
    directory: tuple[DirectoryTable, ...] = ()
    upstream: tuple[UpstreamTable, ...] = ()
    model: tuple[ModelTable, ...] = ()


def load_config(path: Path, environ: Mapping[str, str]) -> GatewayConfig:
    """Read the gateway's file.

    Raises:
        ConfigError: it cannot be used; one sentence with the file and the key.
    """
    given = read_toml(path)
    return read_config(given, environ, file=str(path), folder=path.parent)


def load_accounts(path: Path) -> AccountsConfig:
    """Read the table `[accounts]` of the gateway's file alone.

    Raises:
        ConfigError: the file or the table cannot be used.
    """
    table = read_toml(path).get("accounts", {})
    return TableReader(str(path)).read(AccountsConfig, table, "accounts")


def read_config(
    given: Mapping[str, Any], environ: Mapping[str, str], *, file: str, folder: Path
) -> GatewayConfig:
    """The same from tables that were parsed; files that they name are in `folder`."""
    loader = _Loader(file, folder, environ)
    tables = loader.tables(given)
    directories = loader.directories(tables.directory)
    upstreams = loader.upstreams(tables.upstream, directories)
    return GatewayConfig(
        file=file,
        server=tables.server,
        deadlines=tables.deadlines,
        breaker=tables.breaker,
        requests=tables.requests,
        upstreams=upstreams,
        directories=directories,
        catalog=loader.catalog(tables.model, upstreams),
        metrics_key=loader.secret(
            "server.metrics_key", tables.server.metrics_key_variable, tables.server.metrics_key_file
        ),
        accounts=tables.accounts,
    )


class _Loader:
    def __init__(self, file: str, folder: Path, environ: Mapping[str, str]) -> None:
        self._reader = TableReader(file, folder, environ)
        self.refuse, self.secret = self._reader.refuse, self._reader.secret

    def tables(self, given: Mapping[str, Any]) -> _File:
        tops = list(_File.__dataclass_fields__)
        for key in given:
            if key not in tops:
                raise self.refuse(key, f"is not a known key{nearest(key, tops)}")
        file = self._reader.read(_File, given, "")
        for name, tables in (("upstream", file.upstream), ("model", file.model)):
            if not tables:
                raise self.refuse(name, f"is missing; write at least one [[{name}]].")
        return file

    def directories(self, tables: Sequence[DirectoryTable]) -> dict[str, KnownDirectory]:
        found: dict[str, KnownDirectory] = {}
        for i, table in enumerate(tables):
            where = f"directory[{i}]"
            if table.name in found:
                raise self.refuse(f"{where}.name", f"is {table.name!r}, as another's.")
            for kind, key in _KEY_OF_KIND.items():
                is_given, is_its = bool(getattr(table, key)), kind == table.kind
                if is_given is not is_its:
                    problem = "is needed by" if is_its else "means nothing to"
                    raise self.refuse(
                        f"{where}.{key}", f"{problem} a directory of kind {table.kind!r}."
                    )
            for j, url in enumerate(table.replicas):
                self._plain_url(url, f"{where}.replicas[{j}]")
            if len(set(table.replicas)) < len(table.replicas):
                raise self.refuse(f"{where}.replicas", "names one URL twice.")
            token = self.secret(f"{where}.token", table.token_variable, table.token_file)
            if table.url is not None:
                self._plain_url(table.url, f"{where}.url")
                if token is None:
                    raise self.refuse(
                        where, "has no token; name the cluster's by token_variable or token_file."
                    )
            found[table.name] = KnownDirectory(table, token)
        return found

    def _plain_url(self, url: str, where: str) -> None:
        try:
            parts = urlsplit(url)
            Address.parse_any(url)
            is_plain = not parts.path
        except ValueError:
            is_plain = False
        if not is_plain:
            shown = "not one that can be used" if "@" in url else repr(url)  # it has a password
            raise self.refuse(
                where, f"is {shown}; scheme, host and port such as http://10.0.0.7:8000 are needed."
            )

    def upstreams(
        self, tables: Sequence[UpstreamTable], directories: Mapping[str, KnownDirectory]
    ) -> dict[str, Upstream]:
        found: dict[str, Upstream] = {}
        for i, table in enumerate(tables):
            where = f"upstream[{i}]"
            slug = table.slug or re.sub(r"[^a-z0-9.]+", "-", table.name.lower()).strip("-")
            names = {name.lower() for each in found.values() for name in (each.name, each.slug)}
            for name in (table.name, slug):
                if name.lower() in names:
                    raise self.refuse(f"{where}.name", f"is {name!r}, as another's.")
            if not table.name.isprintable() or not table.name.strip():
                raise self.refuse(f"{where}.name", f"is {table.name!r}, which no header can show.")
            if not _SLUG.fullmatch(slug):
                raise self.refuse(
                    f"{where}.slug",
                    f"is {slug!r}; a short name of a-z, 0-9 and any of '._-' is needed.",
                )
            if table.directory is not None:
                found[slug] = self._replicated(table, table.directory, directories, slug, where)
                continue
            if table.base_url is None:
                raise self.refuse(where, "lacks the key 'base_url', or 'directory' instead of it.")
            key = self.secret(f"{where}.api_key", table.api_key_variable, table.api_key_file)
            address = self._address(table, table.base_url, key, where)
            path = urlsplit(table.base_url).path.rstrip("/") or "/v1"
            found[slug] = Upstream(table, slug, address, path)
        return found

    def _replicated(
        self,
        table: UpstreamTable,
        name: str,
        directories: Mapping[str, KnownDirectory],
        slug: str,
        where: str,
    ) -> Upstream:
        """An upstream of replicas: its key is their cluster's token, and they may be anywhere."""
        directory = directories.get(name)
        if directory is None:
            raise self.refuse(
                f"{where}.directory",
                f"is {name!r}, which no [[directory]] is named{nearest(name, directories)}",
            )
        for key in ("base_url", "api_key_variable", "api_key_file"):
            if getattr(table, key) is not None:
                raise self.refuse(
                    f"{where}.{key}", "means nothing beside directory, which knows URLs and token."
                )
        address = Address("", 0, directory.token)
        return Upstream(replace(table, allow_private_address=True), slug, address, "/v1")

    def _address(self, table: UpstreamTable, base_url: str, key: str | None, where: str) -> Address:
        where = f"{where}.base_url"
        try:
            if not base_url.isascii() or not base_url.isprintable():
                raise ValueError
            parts = urlsplit(base_url)
            if parts.username or parts.password or parts.query or parts.fragment:
                raise self.refuse(where, "holds more than scheme, host, port and path.")
            address = Address.parse_any(base_url, key)
        except (ConfigError, ValueError) as error:
            if isinstance(error, ConfigError) and error.param == where:
                raise
            example = "https://api.example.com/v1"
            raise self.refuse(
                where, f"is {base_url!r}; a base URL such as {example} is needed."
            ) from None
        if not table.allow_private_address and _is_private(address.host):
            raise self.refuse(
                where,
                f"is {base_url!r}, a private address; write allow_private_address = true "
                "if that is meant.",
            )
        return replace(address, prefix="")

    def catalog(self, tables: Sequence[ModelTable], upstreams: Mapping[str, Upstream]) -> Catalog:
        models: dict[str, Model] = {}
        aliases: dict[str, str] = {}
        taken: set[str] = set()
        for i, table in enumerate(tables):
            where = f"model[{i}]"
            for j, name in enumerate((table.name, *table.aliases)):
                key = f"{where}.aliases" if j else f"{where}.name"
                if name in taken:
                    raise self.refuse(key, f"is {name!r}, as another's.")
                if name.endswith(_SUFFIXES):
                    raise self.refuse(
                        key, f"is {name!r}; the ending means something: see `free` of an endpoint."
                    )
                taken.add(name)
                if j:
                    aliases[name] = table.name
            if not table.endpoint:
                raise self.refuse(
                    f"{where}.endpoint", f"is missing; {table.name} needs a [[model.endpoint]]."
                )
            endpoints = [
                self._endpoint(each, table.name, upstreams, f"{where}.endpoint[{k}]")
                for k, each in enumerate(table.endpoint)
            ]
            if len({each.id for each in endpoints}) < len(endpoints):
                raise self.refuse(f"{where}.endpoint", "has the same upstream twice.")
            models[table.name] = Model(
                name=table.name,
                title=table.title or table.name,
                description=table.description,
                endpoints=endpoints,
            )
        return Catalog(list(models.values()), aliases, created=int(time.time()))

    def _endpoint(
        self, table: EndpointTable, model: str, upstreams: Mapping[str, Upstream], where: str
    ) -> Endpoint:
        names = {each.name: each for each in upstreams.values()}
        upstream = names.get(table.upstream)
        if upstream is None:
            raise self.refuse(
                f"{where}.upstream",
                f"is {table.upstream!r}, which no [[upstream]] is named"
                f"{nearest(table.upstream, names)}",
            )
        if table.free and any(map(_costs, table.price)):
            raise self.refuse(f"{where}.price", "is of a free endpoint; only zeros are allowed.")
        name = model + (FREE if table.free else "")
        suffix = "" if table.quantization == "unknown" else f"/{table.quantization}"
        prices = [(p.valid_from, self._price(p, f"{where}.price[{k}]"))
                  for k, p in enumerate(table.price)]  # fmt: skip
        if len({first for first, _ in prices}) < len(prices):
            raise self.refuse(f"{where}.price", "has two entries for one valid_from.")
        told = upstream.table
        return Endpoint(
            id=f"{name}@{upstream.slug}{suffix}",
            provider=upstream.name,
            slug=upstream.slug,
            model=name,
            upstream_model=table.upstream_model or model,
            dialects=frozenset(told.dialects),
            context_tokens=table.context_tokens,
            max_output_tokens=min(
                table.max_output_tokens or table.context_tokens, table.context_tokens
            ),
            is_free=table.free,
            quantization=table.quantization,
            has_tools=table.tools,
            is_exacto=table.exacto,
            parameters=frozenset(table.parameters),
            keeps_no_prompts=told.data_collection == "deny" or told.zdr,
            is_zdr=told.zdr,
            is_distillable=told.distillable_text,
            has_house_key=told.api_key_variable is not None
            or told.api_key_file is not None
            or told.allow_private_address,
            prices=sorted(prices, key=lambda each: each[0], reverse=True),
        )

    def _price(self, table: PriceTable, where: str) -> Price:
        def whole(key: str, dollars: Decimal | None, unit: int) -> int:
            pico = (table.prompt if dollars is None else dollars) * unit
            if pico != pico.to_integral_value():
                raise self.refuse(
                    f"{where}.{key}", f"is {dollars}, finer than a pico-dollar per token."
                )
            return int(pico)

        return Price(
            prompt=whole("prompt", table.prompt, _PICO_PER_MTOK),
            completion=whole("completion", table.completion, _PICO_PER_MTOK),
            cache_read=whole("cache_read", table.cache_read, _PICO_PER_MTOK),
            cache_write=whole("cache_write", table.cache_write, _PICO_PER_MTOK),
            request=whole("request", table.request, _PICO_PER_USD),
        )


def _costs(price: PriceTable) -> bool:
    parts = (price.prompt, price.completion, price.cache_read, price.cache_write, price.request)
    return any(parts)


def _is_private(host: str) -> bool:
    """Whether a host is private by its name alone; others are looked at on connecting."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not is_public(host)
