"""Stored responses are found by the ledger; tokens written to a cache are counted by themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("response_id", sa.String(length=256), nullable=True))
    op.add_column(
        "generation",
        sa.Column("tokens_cache_write", sa.BigInteger(), server_default="0", nullable=False),
    )
    op.add_column("session", sa.Column("pinned_replica", sa.String(length=256), nullable=True))
    op.create_index("generation_by_response", "generation", ["response_id"], unique=False)
    row = sa.table(
        "generation",
        sa.column("response_id"),
        sa.column("dialect"),
        sa.column("outcome"),
        sa.column("wire", sa.JSON()),
    )
    whole = sa.and_(row.c.dialect == "responses", row.c.outcome == "completed")
    known = sa.func.substr(row.c.wire["upstream_id"].as_string(), 1, 256)
    op.execute(row.update().where(whole).values(response_id=known))
