"""Pins: which references are kept in which tier of a server."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of its own; nothing else changes."""
    op.create_table(
        "pins",
        sa.Column("adapter_id", sa.INTEGER, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "at"),
        sqlite_strict=True,
    )
