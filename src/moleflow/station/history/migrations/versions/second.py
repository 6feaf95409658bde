"""Which photographs of a lesson that failed cannot be read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("unreadable", sa.JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Take it away."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("unreadable")
