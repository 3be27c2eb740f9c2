"""Keys, budgets, reservations, the ledger, sessions and stored keys of a gateway."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("is_management", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("allowed_models", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("rpm", sa.Integer(), nullable=True),
        sa.Column("tpm", sa.Integer(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_table(
        "budget",
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("limit_pico", sa.BigInteger(), nullable=True),
        sa.Column("limit_reset", sa.String(length=8), nullable=True),
        sa.Column("include_byok", sa.Boolean(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_byok", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("running", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("clock", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("day", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("week", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("month", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_day", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_week", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_month", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("byok_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("byok_day", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("byok_week", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("byok_month", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("free_used", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("scope"),
    )
    op.create_table(
        "byok_key",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=True),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("sort_order", sa.Integer(), nullable=False),
        sa.Column("is_fallback", sa.Boolean(), nullable=False),
        sa.Column("is_required", sa.Boolean(), nullable=False),
        sa.Column("is_byok_only", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("allowed_models", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("allowed_api_key_hashes", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("master_key_id", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "generation",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("session_id", sa.String(length=256), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("dialect", sa.String(length=16), nullable=False),
        sa.Column("model_requested", sa.String(length=256), nullable=False),
        sa.Column("model_served", sa.String(length=256), nullable=True),
        sa.Column("provider", sa.String(length=128), nullable=True),
        sa.Column("endpoint", sa.String(length=256), nullable=True),
        sa.Column("byok_id", sa.String(length=64), nullable=True),
        sa.Column("is_free", sa.Boolean(), nullable=False),
        sa.Column("is_streamed", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("ttft_ms", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_prompt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_cached", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_completion", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_reasoning", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("usage_source", sa.String(length=16), nullable=False),
        sa.Column("cost_prompt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_completion", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_saving", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("upstream_prompt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("upstream_completion", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("status", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("wire", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "generation_by_session", "generation", ["key_hash", "session_id", "step"], unique=False
    )
    op.create_index("generation_by_time", "generation", ["created_at"], unique=False)
    op.create_table(
        "process",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("beat", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "reservation",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process_id", sa.String(length=32), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_byok", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("start", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_reservation_process_id"), "reservation", ["process_id"], unique=False)
    op.create_table(
        "session",
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=256), nullable=False),
        sa.Column("steps", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("turns", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("pinned_endpoint", sa.String(length=256), nullable=True),
        sa.Column("used_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("later_prompt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("later_cached", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("key_hash", "id"),
    )
