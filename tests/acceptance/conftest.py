"""A server that may be crashed, and a way to the database that can be disturbed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Proxy
from tests import postgres as servers
from tests.conftest import _forget, _prepare

SLOTS = 16  # connections that the private server takes


@pytest.fixture(scope="session")
def private(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server beside the session's, which may be crashed."""
    server = Postgres(tmp_path_factory.mktemp("private"))
    server.need("ALTER SYSTEM SET fsync = off")  # a crash of the server alone loses nothing by that
    server.need(f"ALTER SYSTEM SET max_connections = {SLOTS}")
    server.crash()
    server.start()
    yield server
    server.close()


@pytest.fixture
def away(private: Postgres) -> Iterator[str]:
    """The URL of a fresh database on the private server."""
    server = private.url.render_as_string(hide_password=False)
    with servers.fresh_database(server, servers.ensure_template(server, "ready", _prepare)) as url:
        yield url
        private.start()
        _forget(url)


@pytest.fixture
def proxy(storage: str) -> Iterator[Proxy]:
    """A way to the database that can be disturbed."""
    proxy = Proxy(make_url(storage).port or 5432)
    yield proxy
    proxy.close()
