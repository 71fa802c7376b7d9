"""Postgres: the embedded server, the schema, and the statements on it."""
