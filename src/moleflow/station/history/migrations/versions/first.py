"""Inspections with their pictures, lessons, and changes of the line."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.Float(53)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "inspections",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time", NUMBER, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("task", sa.String(80), nullable=False),
        sa.Column("version", sa.String(16)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("known", sa.Boolean, nullable=False),
        sa.Column("pred_score", NUMBER, nullable=False),
        sa.Column("p_value", NUMBER, nullable=False),
        sa.Column("threshold", NUMBER, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("place_score", NUMBER, nullable=False),
        sa.Column("whole_score", NUMBER),
        sa.Column("map_threshold", NUMBER, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("certainty", sa.JSON),
        sa.Column("regions", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON),
        sa.Column("latency_ms", NUMBER, nullable=False),
        sa.Column("mark_kind", sa.String(16)),
        sa.Column("mark_task", sa.String(80)),
        sa.Column("mark_note", sa.Text),
        sa.Column("mark_time", NUMBER),
        sqlite_autoincrement=True,
    )
    for column in ("time", "sha256", "mark_kind"):
        op.create_index(f"ix_inspections_{column}", "inspections", [column])
    op.create_index("ix_inspections_task_id", "inspections", ["task", "id"])
    op.create_index("ix_inspections_status_id", "inspections", ["status", "id"])
    op.create_table(
        "pictures",
        sa.Column(
            "inspection_id",
            sa.Integer,
            sa.ForeignKey("inspections.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("map_height", sa.Integer, nullable=False),
        sa.Column("map_width", sa.Integer, nullable=False),
        sa.Column("map", sa.LargeBinary, nullable=False),
        sa.Column("jpeg", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_pictures_size", "pictures", ["size"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(40), nullable=False),
        sa.Column("progress", NUMBER, nullable=False),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("dropped", sa.JSON, nullable=False),
        sa.Column("base_version", sa.String(16)),
        sa.Column("error", sa.Text),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("finished", NUMBER),
        sa.Column("review", sa.JSON),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("time", NUMBER, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("product", sa.String(80)),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Take the tables away."""
    for table in ("changes", "jobs", "pictures", "inspections"):
        op.drop_table(table)
