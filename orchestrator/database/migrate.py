"""Bring foldtune's schema to the version this program needs; refuse one it does not know."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, text

from orchestrator.errors import USAGE, FoldtuneError

HEAD = "0007"
_LOCK = 0x666F6C64  # "fold": one migration at a time


def migrate(engine: Engine) -> None:
    """Create or upgrade the schema `foldtune`. Cheap when there is nothing to do; safe to run from many processes.

    Raises:
        FoldtuneError: the schema is newer than this program, or this role may not create it.
    """
    with engine.begin() as connection:
        if _version(connection) == HEAD:
            return
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        found = _version(connection)
        if found == HEAD:
            return
        if found is not None and found > HEAD:
            raise FoldtuneError(
                f"database schema {found} is newer than this program's {HEAD}",
                help="upgrade foldtune on this machine to the version the others have",
                code=USAGE,  # not "away": nobody should try again
            )
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS foldtune"))
        _upgrade(connection)


def _version(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('foldtune.alembic_version')")).scalar() is None:
        return None
    version = connection.execute(text("SELECT version_num FROM foldtune.alembic_version")).scalar()
    return None if version is None else str(version)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    connection.execute(text("SET LOCAL search_path TO foldtune, public"))
    command.upgrade(config, HEAD)
