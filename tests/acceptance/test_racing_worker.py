"""A raced study with a real worker: what is behind stops, and a worker in the middle of it lets go."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from orchestrator import reading
from orchestrator.launch import launch
from tests.acceptance.light import charged, count, worker
from tests.database import studies
from tests.database.studies import rows


def test_a_worker_races_a_grid_to_its_end(engine: Engine, storage: str, tmp_path: Path) -> None:
    path = studies.write(tmp_path, rates="[1e-2, 5.0]", folds=3, more="racing: {rule: forgiving}\n")
    launch(engine, studies.prepared(path))
    with worker(storage, FOLDTUNE_LIGHT_SLOTS="4", FOLDTUNE_LIGHT_EPOCH_SECONDS="0.05") as running:
        assert running.end() == 0
    status = reading.status(reading.view(engine, "s"))
    assert (status["state"], status["trials"]["complete"], status["trials"]["stopped"]) == ("complete", 2, 2)
    stopped = rows(engine, "SELECT DISTINCT params->>'learning_rate' FROM trial WHERE state = 'stopped'")
    assert stopped == [("5.0",)]
    best = reading.best(reading.view(engine, "s"))
    assert best is not None
    assert len(best["folds"]) == 3
    assert charged(engine) == 0
    assert count(engine, "trial WHERE in_space AND NOT told") == 0
    assert count(engine, "attempt WHERE ended_at IS NULL") == 0
