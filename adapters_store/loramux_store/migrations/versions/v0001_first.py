"""The first schema: layouts, blobs, adapters, versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "layouts",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("size_bytes", sa.INTEGER, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "adapters",
        sa.Column("id", sa.INTEGER, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("default_weight", sa.REAL),
        sa.Column("trigger_words", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("latest", sa.INTEGER, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sa.Column("update_us", sa.INTEGER, nullable=False),
        sa.Column("delete_us", sa.INTEGER),
        sqlite_strict=True,
    )
    op.create_table(
        "versions",
        sa.Column("adapter_id", sa.INTEGER, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("number", sa.INTEGER, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("blob_digest", sa.Text, sa.ForeignKey("blobs.digest"), nullable=False),
        sa.Column("layout_digest", sa.Text, sa.ForeignKey("layouts.digest"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("create_us", sa.INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "number"),
        sqlite_strict=True,
    )
    op.create_index("versions_digest", "versions", ["digest"])
    op.create_index("versions_blob", "versions", ["blob_digest"])
