"""Embeddings that came in LoRA files: part of the versions accepted from now on, with options that say so.

Versions from before ignored them, and still do; their digests stay theirs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column more; no version that is there has any."""
    op.add_column("versions", sa.Column("bundled", sa.Text, nullable=False, server_default="[]"))
