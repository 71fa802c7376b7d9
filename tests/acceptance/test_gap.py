"""A slot hardly waits for its next unit: that is taken shortly before the last one ends, and given back if need be."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.gap.__main__ import LIMIT, measure
from tests.acceptance.commands import grid_study, wait_until
from tests.acceptance.light import UNITS, charged, count, launched, table, worker
from tests.database.studies import rows

LEASED = "unit WHERE state = 'leased'"
LEAD = (
    "SELECT extract(epoch FROM lag(ended_at) OVER (ORDER BY granted_at) - granted_at) FROM attempt "
    "ORDER BY granted_at OFFSET 1 LIMIT 2"
)


def test_the_next_units_first_step_begins_within_100_ms_of_the_last_ones_end(tmp_path: Path, storage: str) -> None:
    (tmp_path / "log").mkdir()
    found = measure(grid_study(tmp_path, epochs=20), 1, tmp_path / "log", storage)
    assert len(found) == UNITS - 1
    assert sorted(found)[-2] < LIMIT, found  # one may meet whatever else the machine does


def test_a_unit_is_taken_seconds_ahead_and_not_sooner(engine: Engine, storage: str, tmp_path: Path) -> None:
    launched(engine, tmp_path, epochs=10)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.6"):
        wait_until(lambda: count(engine, "unit WHERE state = 'done'") == 3)
    leads = [float(lead) for (lead,) in rows(engine, LEAD)]
    assert all(0 < lead < 4 for lead in leads), leads  # units take 6 s


def test_a_worker_that_leaves_gives_back_what_it_had_taken_ahead(engine: Engine, storage: str, tmp_path: Path) -> None:
    undisturbed = launched(engine, tmp_path, epochs=10)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.3") as leaving:
        wait_until(lambda: count(engine, LEASED) == 2)
        os.kill(leaving.pid, signal.SIGTERM)
        assert leaving.end(seconds=10) == 128 + signal.SIGTERM
    assert (count(engine, LEASED), charged(engine)) == (0, 0)
    assert count(engine, "attempt WHERE ended_at IS NULL") == 0
    assert count(engine, "attempt WHERE cause = 'released'") == 2
    with worker(storage) as other:
        assert other.end() == 0
    assert table(engine) == undisturbed
