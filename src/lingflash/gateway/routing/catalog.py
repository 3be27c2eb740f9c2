"""Models, their endpoints and names. Made from the gateway's file; never changed, only replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from lingflash.core.errors import NotFoundError
from lingflash.core.settings import nearest
from lingflash.gateway.accounting import Price

Shortcut = Literal["nitro", "floor"]
FREE = ":free"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    """A model at a provider; of one file, each is itself alone.

    Args:
        id: stays the same over restarts, for pins.
        provider, slug: name and short name of the upstream.
        model: its name here, with `:free` where it serves that.
        max_output_tokens: never more than the context.
        prices: with the first day of each, the latest first.
    """

    id: str
    provider: str
    slug: str
    model: str
    upstream_model: str
    dialects: frozenset[str]
    context_tokens: int
    max_output_tokens: int
    is_free: bool = False
    quantization: str = "unknown"
    has_tools: bool = True
    is_exacto: bool = False
    parameters: frozenset[str] = frozenset()
    keeps_no_prompts: bool = False
    is_zdr: bool = False
    is_distillable: bool = False
    has_house_key: bool = True
    prices: Sequence[tuple[date, Price]] = ()

    def price(self, day: date) -> Price:
        """What it costs on a day; nothing before its first price."""
        for first, price in self.prices:
            if first <= day:
                return price
        return Price()

    def answers_to(self, name: str) -> bool:
        """Whether a request means it by a provider's name, short name or `slug/quantization`."""
        name = name.strip().lower()
        return name in (self.provider.lower(), self.slug, f"{self.slug}/{self.quantization}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model by its name here; `endpoints` has those of `NAME:free`, too."""

    name: str
    title: str
    description: str
    endpoints: Sequence[Endpoint]

    def served_as(self, *, is_free: bool) -> list[Endpoint]:
        """The endpoints of `NAME` or of `NAME:free`."""
        return [each for each in self.endpoints if each.is_free is is_free]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A name of a request, read: a model, whether free, and a suffix that asks for an order."""

    model: Model
    is_free: bool
    shortcut: Shortcut | None

    @property
    def name(self) -> str:
        """The model's own name, with `:free` but without a shortcut."""
        return self.model.name + (FREE if self.is_free else "")


class Catalog:
    """All models.

    Args:
        aliases: other names to a model's own.
        created: when the file was read, for lists of models.
    """

    def __init__(
        self, models: Sequence[Model], aliases: Mapping[str, str], *, created: int = 0
    ) -> None:
        self.models = {each.name: each for each in models}
        self.aliases = dict(aliases)
        self.created = created
        self.endpoints = {e.id: e for each in models for e in each.endpoints}
        self.providers = {e.slug: e.provider for e in self.endpoints.values()}

    def resolve(self, name: str, param: str = "model") -> Wanted:
        """What a request means by a name.

        Raises:
            NotFoundError: no model has it.
        """
        base, is_free, shortcut = name, False, None
        while ":" in base:
            rest, _, suffix = base.rpartition(":")
            if suffix == "free":
                is_free = True
            elif suffix in ("nitro", "floor"):
                shortcut = suffix
            else:
                break
            base = rest
        model = self.models.get(self.aliases.get(base, base))
        if model is None or not model.served_as(is_free=is_free):
            names = self.names()
            raise NotFoundError(
                f"{param}: {name[:200]!r} is not served here{nearest(name, names)} "
                f"Served: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}.",
                param=param,
            )
        return Wanted(model, is_free, shortcut)

    def own_name(self, name: str) -> str:
        """A model's own name for an alias of it; another name as it is."""
        base = name.removesuffix(FREE)
        return self.aliases.get(base, base) + name[len(base) :]

    def names_of(self, wanted: Wanted) -> tuple[str, ...]:
        """Everything that a model may be called, its own name first."""
        others = [alias for alias, name in self.aliases.items() if name == wanted.model.name]
        return (wanted.name, *(each + FREE * wanted.is_free for each in others))

    def names(self) -> list[str]:
        """Every name that a list of models shows, without aliases."""
        found = []
        for model in self.models.values():
            found += [model.name] if model.served_as(is_free=False) else []
            found += [model.name + FREE] if model.served_as(is_free=True) else []
        return found
