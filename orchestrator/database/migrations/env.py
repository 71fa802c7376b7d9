"""Alembic's entry: `orchestrator.database.migrate` hands over an open connection inside a transaction."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="foldtune", transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
