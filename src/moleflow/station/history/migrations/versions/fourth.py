"""Keys by which an image that is sent again is known."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("inspections", sa.Column("key", sa.String(80)))
    op.create_index("ix_inspections_key", "inspections", ["key"], unique=True)


def downgrade() -> None:
    """Take it away."""
    op.drop_index("ix_inspections_key", "inspections")
    with op.batch_alter_table("inspections", table_kwargs={"sqlite_autoincrement": True}) as inspections:
        inspections.drop_column("key")
