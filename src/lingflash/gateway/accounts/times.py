"""Times on the wire: ISO 8601 in UTC, milliseconds since 1970 inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from lingflash.core.errors import InvalidRequestError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(ms: int) -> str:
    """A time as OpenRouter writes it."""
    moment = EPOCH + timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(ms: int | None) -> str | None:
    """The same of a time that may not be."""
    return None if ms is None else iso(ms)


def parse_iso(text: str, param: str) -> int:
    """Milliseconds of a time that a user wrote; without a zone it is UTC.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (moment - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"{param} is {text[:40]!r}; allowed: a time such as 2027-01-31T12:00:00Z.", param=param
        ) from None
