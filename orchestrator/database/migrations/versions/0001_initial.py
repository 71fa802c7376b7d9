"""The first schema: studies, snapshots, trials, units and their leases, results, workers and devices."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything in one transaction."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Past SQLAlchemy, which would take the % of RAISE for a parameter.
    op.get_bind().connection.cursor().execute(statements)
