"""Stored responses: which endpoint has one, as the ledger remembers it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.engine import Connection

from lingflash.gateway.accounting import Home
from lingflash.gateway.accounts.rows import clean
from lingflash.store.tables import generation


def find_home(connection: Connection, key_hash: str, response_id: str) -> Home | None:
    """Where a response is: the caller's own, else another's; of several the latest.

    Ids are the upstreams', so that two of them, or two keys, can have the same.
    """
    row = generation.c
    query = (
        select(
            row.endpoint,
            row.wire["replica"].as_string().label("replica"),
            row.byok_id,
            row.key_hash,
            row.session_id,
        )
        .where(row.response_id == clean(response_id, 256))
        .order_by((row.key_hash == key_hash).desc(), row.created_at.desc())
        .limit(1)
    )
    found = connection.execute(query).mappings().first()
    return None if found is None else Home(**found)
