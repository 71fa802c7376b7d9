"""What recovery needs: a token beside the epoch of a lease, the record of attempts, and checkpoints."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change everything in one transaction."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Past SQLAlchemy, which would take the % of RAISE for a parameter.
    op.get_bind().connection.cursor().execute(statements)
