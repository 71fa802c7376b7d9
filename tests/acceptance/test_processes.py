"""A study with real processes: command line, supervisors, trainers, Postgres, signals."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.acceptance import light
from tests.acceptance.commands import alive, children, foldtune, grid_study, start, wait_until
from tests.database.studies import rows

LEASED = "SELECT count(*) FROM unit WHERE state = 'leased'"
REPORTED = "SELECT count(*) FROM result"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return grid_study(tmp_path)


def test_run_goes_from_a_file_to_a_winner_that_the_database_reproduces(
    study: Path, storage: str, engine: Engine
) -> None:
    done = foldtune("run", str(study), "--workers", "1", OPTUNA_STORAGE=storage)
    assert done.returncode == 0, done.stderr
    assert "(best)" in done.stdout
    assert "Class frequencies alone reach loss" in done.stdout
    assert "Traceback" not in done.stderr
    best = foldtune("best", "tiny", "--json", OPTUNA_STORAGE=storage)
    found = json.loads(best.stdout)
    sums = rows(
        engine,
        "SELECT sum((r.tallies->>'nats')::float) / sum((r.tallies->>'items')::float), count(*) FROM result r "
        "JOIN unit u ON u.id = r.unit JOIN trial t ON t.id = u.trial "
        f"WHERE t.number = {found['trial']} AND r.epoch = 2",
    )
    assert sums == [(pytest.approx(found["value"]), 2)]
    again = foldtune("run", str(study), OPTUNA_STORAGE=storage)
    assert "launched before" in again.stderr
    assert again.stdout == done.stdout


def test_ctrl_c_stops_a_run_and_the_same_command_goes_on_to_the_same_numbers(
    tmp_path: Path, storage: str, engine: Engine
) -> None:
    study = light.write(tmp_path, epochs=8)
    run = start("run", str(study), "--workers", "1", OPTUNA_STORAGE=storage, **light.LIGHT)
    wait_until(lambda: rows(engine, REPORTED) > [(20,)])
    os.killpg(run.pid, signal.SIGINT)
    _, talk = run.communicate(timeout=30)
    assert run.returncode == 130, talk
    assert "goes on from them" in talk
    assert "Traceback" not in talk
    assert rows(engine, LEASED) == [(0,)], talk
    finished = rows(engine, "SELECT count(*) FROM unit WHERE state = 'done'")
    assert [(0,)] < finished < [(10,)]
    done = foldtune("run", str(study), "--workers", "1", OPTUNA_STORAGE=storage, **light.LIGHT)
    assert done.returncode == 0, done.stderr
    assert light.table(engine) == light.undisturbed(study)


@pytest.mark.slow  # test_recovery.py does the same with an engine that starts at once
def test_a_killed_trainer_is_replaced_and_the_numbers_are_those_of_an_unbroken_run(
    tmp_path: Path, storage: str, engine: Engine
) -> None:
    for name in ("broken", "unbroken"):
        assert foldtune("launch", str(grid_study(tmp_path, name=name)), OPTUNA_STORAGE=storage).returncode == 0
    worker = start("worker", "broken", OPTUNA_STORAGE=storage)
    wait_until(lambda: rows(engine, REPORTED) > [(1,)])
    [trainer] = children(worker.pid)
    os.kill(trainer, signal.SIGKILL)
    _, talk = worker.communicate(timeout=240)
    assert worker.returncode == 0, talk
    assert "killed by SIGKILL" in talk
    assert foldtune("worker", "unbroken", OPTUNA_STORAGE=storage).returncode == 0
    tables = [
        rows(
            engine,
            "SELECT t.configuration, t.value FROM trial t JOIN study s ON s.id = t.study "
            f"WHERE s.name = '{name}' ORDER BY t.configuration",
        )
        for name in ("broken", "unbroken")
    ]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_trainer_killed_while_it_loads_the_study_is_replaced(study: Path, storage: str, engine: Engine) -> None:
    assert foldtune("launch", str(study), OPTUNA_STORAGE=storage).returncode == 0
    worker = start("worker", "tiny", OPTUNA_STORAGE=storage)
    wait_until(lambda: bool(children(worker.pid)))
    os.kill(children(worker.pid)[0], signal.SIGKILL)
    _, talk = worker.communicate(timeout=240)
    assert worker.returncode == 0, talk
    assert "killed by SIGKILL; trying again" in talk
    assert rows(engine, "SELECT state::text, sum(charges) FROM unit GROUP BY 1") == [("done", 0)]


def test_a_trainer_dies_within_two_seconds_of_its_supervisor(study: Path, storage: str, engine: Engine) -> None:
    """Until then neither says the database's password where other users of the machine see it."""
    foldtune("launch", str(study), OPTUNA_STORAGE=storage)
    worker = start("worker", "tiny", OPTUNA_STORAGE=storage)
    wait_until(lambda: bool(children(worker.pid)))
    [trainer] = children(worker.pid)
    password = storage.split("@")[0].rpartition(":")[2]
    assert password not in Path(f"/proc/{worker.pid}/cmdline").read_text()
    assert password not in Path(f"/proc/{trainer}/cmdline").read_text()
    assert password not in Path(f"/proc/{trainer}/environ").read_text()
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    died = time.monotonic()
    wait_until(lambda: not alive(trainer), seconds=5)
    assert time.monotonic() - died < 2


def test_sigterm_gives_the_unit_back_uncharged_within_five_seconds(
    tmp_path: Path, storage: str, engine: Engine
) -> None:
    foldtune("launch", str(grid_study(tmp_path, epochs=500)), OPTUNA_STORAGE=storage)
    worker = start("worker", "tiny", OPTUNA_STORAGE=storage)
    wait_until(lambda: rows(engine, REPORTED) > [(3,)])
    asked = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    _, talk = worker.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert "asked to leave" in talk
    assert rows(engine, LEASED) == [(0,)], talk
    assert rows(engine, "SELECT sum(charges) FROM unit") == [(0,)]


def test_stopping_a_study_makes_its_workers_leave(tmp_path: Path, storage: str, engine: Engine) -> None:
    foldtune("launch", str(light.write(tmp_path, epochs=1000)), OPTUNA_STORAGE=storage)
    worker = start("worker", "s", OPTUNA_STORAGE=storage, **light.LIGHT)
    wait_until(lambda: rows(engine, REPORTED) > [(0,)])
    assert "goes on from them" in foldtune("stop", "s", OPTUNA_STORAGE=storage).stderr
    _, talk = worker.communicate(timeout=30)
    assert worker.returncode == 0, talk
    status = json.loads(foldtune("status", "s", "--json", OPTUNA_STORAGE=storage).stdout)
    assert status["state"] == "stopped"
    assert status["trials"]["running"] == 0


def test_the_dashboard_serves_the_study(engine: Engine, tmp_path: Path, storage: str) -> None:
    light.launched(engine, tmp_path, name="tiny")
    dashboard = start("dashboard", "--port", "18765", OPTUNA_STORAGE=storage)

    def studies() -> list[str]:
        try:
            with urllib.request.urlopen("http://127.0.0.1:18765/api/studies", timeout=5) as answer:
                return [item["study_name"] for item in json.load(answer)["study_summaries"]]
        except OSError:
            return []

    try:
        wait_until(lambda: studies() == ["tiny"])
        os.kill(dashboard.pid, signal.SIGINT)
        _, talk = dashboard.communicate(timeout=10)
        assert "Traceback" not in talk
    finally:
        dashboard.kill()
        dashboard.communicate()


def test_a_study_runs_on_the_embedded_postgres_from_nothing(
    tmp_path: Path, foldtune_home: Path, tmp_path_factory: pytest.TempPathFactory, postgres: str
) -> None:
    """No storage is named; `postgres` only makes root keep its servers out of /var/lib."""
    try:
        done = foldtune("run", str(light.write(tmp_path)), "--workers", "1", "--smoke", "--json", **light.LIGHT)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["value"] > 0
        assert foldtune("db", "status").returncode == 0
    finally:
        assert foldtune("db", "stop").returncode == 0
    assert foldtune("db", "status").returncode == 1


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("sqlite:///x.db", 2, r"must be Postgres"),
        ("nonsense", 2, "must be a URL"),
        ("postgresql://u:canary@127.0.0.1:port/db", 2, "must be a URL"),
        ("postgresql://u:canary@127.0.0.1:1/db?canary=1", 2, "unknown option"),
        ("postgresql://u:canary@127.0.0.1:1/db", 69, "refuses connections"),
        ("postgresql://u:canary@no-such-host.invalid/db", 69, "host name that cannot be found"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(url: str, code: int, message: str) -> None:
    done = foldtune("list", OPTUNA_STORAGE=url)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr
