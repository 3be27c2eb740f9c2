"""Lists that are read page by page, and the query parameters that say which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from lingflash.core.errors import InvalidRequestError

DEFAULT_PAGE = 20
MAX_PAGE = 100

PAGE_QUERY: dict[str, dict[str, Any]] = {
    "after": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    "order": {"enum": ["asc", "desc"], "default": "desc"},
}
"""Schemas of the parameters, for the OpenAPI document."""
PAGE_NAMES = tuple(PAGE_QUERY)


def read_query(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters.

    Raises:
        InvalidRequestError: one is unknown, which is refused as an unknown field is.
    """
    for name in request.query_params:
        if name not in known:
            known_names = ", ".join(known) or "none"
            raise InvalidRequestError(
                f"The query parameter {name!r} is not known; known: {known_names}.", param=name
            )
    return dict(request.query_params)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list was asked for."""

    after: str | None
    limit: int
    is_newest_first: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Page:
        """Read it.

        Raises:
            InvalidRequestError: a parameter is out of range.
        """
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequestError(f"order is {order!r}; allowed: asc, desc.", param="order")
        limit = query.get("limit", str(DEFAULT_PAGE))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4) or not (
            1 <= int(limit) <= MAX_PAGE
        ):
            raise InvalidRequestError(
                f"limit is {limit!r}; allowed: 1 to {MAX_PAGE}.", param="limit"
            )
        return cls(query.get("after"), int(limit), order == "desc")

    def cut(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The page of a list.

        Args:
            items: all, the oldest first.

        Raises:
            InvalidRequestError: it is to begin after what is not in it.
        """
        items = items[::-1] if self.is_newest_first else items
        start = 0
        if self.after is not None:
            ids = [item["id"] for item in items]
            if self.after not in ids:
                raise InvalidRequestError(
                    f"after is {self.after!r}, which is not in this list.", param="after"
                )
            start = ids.index(self.after) + 1
        page = items[start : start + self.limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + len(page) < len(items),
        }
