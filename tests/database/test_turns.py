"""One worker at a time draws a study's suggestions, and none waits for ever for one that does not come back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator import queries, study, trials, turns
from orchestrator.database.engine import transaction
from orchestrator.records import Lease, StudyRecord
from tests.database import studies


def launched(engine: Engine, tmp_path: Path, more: str = "") -> int:
    """The id of a study of random search whose default configuration is trained."""
    studies.launched(engine, tmp_path, sampler="random", rates=studies.RANGE, budget="{trials: 12}", more=more)
    with transaction(engine) as connection:
        number = queries.study(connection, "s").id
        connection.execute(text("UPDATE trial SET state = 'cancelled'"))
        connection.execute(text("UPDATE unit SET state = 'cancelled'"))
    return number


def test_of_workers_that_want_a_suggestion_at_once_one_draws_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(engine, tmp_path)
    workers = [studies.worker(engine) for _ in range(3)]
    drawn: list[int] = []
    suggest = study.suggest

    def slow(question: study.Question) -> Any:
        drawn.append(question.seed)
        time.sleep(0.2)
        return suggest(question)

    monkeypatch.setattr(study, "suggest", slow)
    taken: list[int] = []
    barrier = threading.Barrier(3)

    def take(worker: int) -> None:
        barrier.wait()
        found = trials._take_from(engine, worker, "s", None, None)
        assert found is not None
        taken.append(found[1].unit)

    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr(engine.pool, "_max_overflow", 10)  # three workers, of a process each, in one
    threads = [threading.Thread(target=take, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 3
    # the first one's second fold may go to another, that then throws away nothing
    assert len(drawn) == len(set(drawn)) == studies.rows(engine, "SELECT suggestions FROM study")[0][0]


def test_who_finds_others_drawing_all_the_time_comes_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, worker = launched(engine, tmp_path), studies.worker(engine)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    with turns.turn(engine, number) as mine:
        assert mine
        began = time.monotonic()
        assert trials.take(engine, worker, ["s"]) is None
        assert time.monotonic() - began < 2
    assert trials.take(engine, worker, ["s"]) is not None


def test_who_cannot_draw_gets_the_further_folds_that_come_after(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, worker = launched(engine, tmp_path, more="racing: {rule: forgiving}"), studies.worker(engine)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)

    def take() -> tuple[StudyRecord, Lease]:
        taken = trials.take(engine, worker, ["s"])
        assert taken is not None
        return taken

    studies.train(engine, *take())
    pace, second = take()[1], take()
    assert second[1].trial != pace.trial
    studies.train(engine, *second)
    with turns.turn(engine, number):
        further = take()[1]
    assert (further.trial, further.fold) == (second[1].trial, 1)
    assert take()[1].trial > second[1].trial


def test_a_turn_that_the_server_ended_harms_nobody(engine: Engine, tmp_path: Path) -> None:
    """As of a process that was frozen, or of a Gaussian process that thought for long."""
    number = launched(engine, tmp_path)
    ended = (  # in this database: other tests use the same server
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'advisory' AND classid = :kind"
    )
    with turns.turn(engine, number) as mine:
        assert mine
        with transaction(engine) as connection:
            connection.execute(text(ended), {"kind": turns._TURN})
        time.sleep(0.2)
        with turns.turn(engine, number) as next_one:
            assert next_one
    with turns.turn(engine, number) as mine:
        assert mine


def test_studies_do_not_wait_for_each_other(engine: Engine) -> None:
    with turns.turn(engine, 1) as mine, turns.turn(engine, 2) as also:
        assert mine
        assert also
