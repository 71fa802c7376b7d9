"""The chaos checker finds nothing in a clean study, and every bug that is planted in one."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from benchmarks.chaos import collect
from benchmarks.chaos.checker import Violation, check
from orchestrator import durable, leases, trials
from orchestrator.contract import EpochDone
from orchestrator.records import Lease
from tests.database import studies

CANARY = "canary-0123456789abcdef"
Look = Callable[[], list[Violation]]


@pytest.fixture
def look(engine: Engine, tmp_path: Path) -> Look:
    """A finished study, as the checker sees it after whatever the test does to it."""
    studies.launched(engine, tmp_path, rates="[1e-3]")
    with engine.begin() as connection:
        collect.install_witness(connection)
    history = tmp_path / "history"
    history.mkdir()
    who = studies.worker(engine)
    told = [note for lease in studies.train_all(engine, who, "s") for note in notes(lease)]
    (history / "4711.jsonl").write_text("".join(json.dumps(note) + "\n" for note in told))
    table = {str(key): float(value) for key, value in studies.rows(engine, "SELECT configuration, value FROM trial")}

    def now() -> list[Violation]:
        with engine.connect() as connection:
            stuck = collect.stuck(connection, bound=0)
            secrets = collect.secrets_in_tables(connection, CANARY)
        secrets += collect.secrets_in_files([history], CANARY)
        return check(
            collect.collect(engine, "s", table, history=history, store=tmp_path / "store", stuck=stuck, secrets=secrets)
        )

    return now


def notes(lease: Lease) -> list[dict[str, object]]:
    """What a worker writes into its history of a unit that it trained to its end."""
    about = {"time": time.time(), "unit": lease.unit, "lease_epoch": lease.epoch, "attempt": lease.attempt}
    accepted = [{**about, "event": "accepted", "epoch": epoch + 1} for epoch in range(lease.settings.epochs)]
    return [{**about, "event": "leased"}, *accepted, {**about, "event": "ended"}]


def plant(engine: Engine, *statements: str) -> None:
    """Change tables behind the program's back, its own guards switched off."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no trigger, no foreign key
        for statement in statements:
            connection.execute(text(statement))


def broken(found: list[Violation]) -> set[str]:
    return {violation.invariant for violation in found}


def test_a_clean_study_shows_none(look: Look) -> None:
    assert look() == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM trial WHERE id = (SELECT min(id) FROM trial)",
        "UPDATE trial SET configuration = 'of nobody' WHERE id = (SELECT max(id) FROM trial)",
        "UPDATE trial SET state = 'waiting', value = NULL WHERE id = (SELECT max(id) FROM trial)",
        "UPDATE trial SET told = false WHERE id = (SELECT max(id) FROM trial)",
        "UPDATE public.trials SET state = 'RUNNING' WHERE number = 1",
        "UPDATE public.trials SET state = 'FAIL' WHERE number = 1",
        "UPDATE public.trial_values SET value = value + 1e-12",
        "UPDATE public.trial_params SET param_value = 1 - param_value WHERE param_name = 'batch_size'",
        "INSERT INTO public.trials (number, study_id, state) SELECT 99, study_id, 'FAIL' FROM public.studies",
    ],
)
def test_i1_a_point_without_its_one_end(engine: Engine, look: Look, statement: str) -> None:
    plant(engine, statement)
    assert "I1" in broken(look())


@pytest.mark.parametrize(
    "statements",
    [
        (
            "ALTER TABLE result DROP CONSTRAINT result_pkey",
            "INSERT INTO result SELECT * FROM result WHERE unit = (SELECT min(unit) FROM result)",
        ),
        (
            "DROP INDEX trial_configuration",
            "UPDATE trial SET configuration = (SELECT configuration FROM trial ORDER BY id LIMIT 1)",
        ),
        ("INSERT INTO witness.event (what, trial, state) SELECT what, trial, state FROM witness.event",),
    ],
)
def test_i2_something_is_accepted_twice(engine: Engine, look: Look, statements: tuple[str, ...]) -> None:
    plant(engine, *statements)
    assert "I2" in broken(look())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE result SET lease_epoch = 7 WHERE unit = (SELECT min(unit) FROM result)",
        "UPDATE result SET lease_epoch = lease_epoch + 1 WHERE epoch = 1",
        "UPDATE result SET reported_at = reported_at - interval '1 hour'",
        "INSERT INTO attempt (unit, lease_epoch, number, granted_at) "
        "SELECT id, 2, 2, now() - interval '1 hour' FROM unit",
        "UPDATE witness.event SET live_epoch = live_epoch + 1 WHERE what = 'accepted'",
    ],
)
def test_i3_a_result_of_a_lost_lease(engine: Engine, look: Look, statement: str) -> None:
    plant(engine, statement)
    assert "I3" in broken(look())


def test_i3_catches_a_program_without_its_fence(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.launched(engine, tmp_path)
    with engine.begin() as connection:
        collect.install_witness(connection)
    late, next_one = studies.worker(engine), studies.worker(engine)
    taken = trials.take(engine, late, ["s"])
    assert taken is not None
    studies.expire(engine, taken[1])
    assert trials.take(engine, next_one, ["s"]) is not None
    monkeypatch.setattr(leases, "hold", lambda *_: None)
    report(engine, taken[1], studies.epoch_done(taken[1], epoch=1))
    assert "I3" in broken(check(collect.collect(engine, "s", {})))


def report(engine: Engine, lease: Lease, done: EpochDone) -> None:
    trials.report(engine, lease, [done])


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM result WHERE epoch = 2 AND unit = (SELECT min(unit) FROM result)",
        "DELETE FROM attempt WHERE unit = (SELECT min(id) FROM unit)",
        "UPDATE attempt SET ended_at = NULL, cause = NULL",
    ],
)
def test_i4_something_acknowledged_is_missing(engine: Engine, look: Look, statement: str) -> None:
    plant(engine, statement)
    assert "I4" in broken(look())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trial SET state = 'running', value = NULL WHERE id = (SELECT min(id) FROM trial)",
        "UPDATE unit SET state = 'leased', expires_at = now() - interval '1 day' WHERE id = (SELECT min(id) FROM unit)",
    ],
)
def test_i5_something_is_stuck(engine: Engine, look: Look, statement: str) -> None:
    plant(engine, statement)
    assert "I5" in broken(look())


def store_artifact(engine: Engine, kind: str, content: bytes | None, place: str | None = None) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO artifact (unit, kind, epoch, step, lease_epoch, sha256, bytes, content, place) "
                "SELECT min(id), :kind, 3, 9, 1, :sha256, 4, :content, :place FROM unit"
            ),
            {"kind": kind, "sha256": durable.sha256(b"good"), "content": content, "place": place},
        )


def test_i6_takes_whole_artifacts_wherever_they_are(engine: Engine, look: Look, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "piece").write_bytes(b"good")
    store_artifact(engine, "adapter", None, "piece")
    assert look() == []


@pytest.mark.parametrize(("kind", "content"), [("adapter", b"gooD"), ("resume", b"good")])
def test_i6_damaged_bytes_and_states_that_nobody_needs(engine: Engine, look: Look, kind: str, content: bytes) -> None:
    store_artifact(engine, kind, content)
    assert broken(look()) == {"I6"}


def test_i6_a_row_without_its_file_and_a_file_without_its_row(engine: Engine, look: Look, tmp_path: Path) -> None:
    store_artifact(engine, "adapter", None, "piece")
    (tmp_path / "store").mkdir()
    old = tmp_path / "store" / "other"
    old.write_bytes(b"good")
    assert [violation.text for violation in look()] == ["adapter of unit 1 epoch 3 step 9 is missing"]
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    assert len(look()) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trial SET value = value + 1e-15 WHERE id = (SELECT max(id) FROM trial)",
        "UPDATE trial SET state = 'failed', value = NULL WHERE id = (SELECT max(id) FROM trial)",
    ],
)
def test_i7_another_table_than_the_undisturbed_one(engine: Engine, look: Look, statement: str) -> None:
    plant(engine, statement)
    assert "I7" in broken(look())


def test_i8_the_password_in_a_table(engine: Engine, look: Look) -> None:
    plant(engine, f"UPDATE attempt SET evidence = 'postgresql://me:{CANARY}@host/db' WHERE unit = 1")
    assert [violation.text for violation in look()] == ["foldtune.attempt.evidence holds the password"]


def test_i8_the_password_in_a_file_and_in_base64(look: Look, tmp_path: Path) -> None:
    (tmp_path / "history" / "a.log").write_bytes(b"user:" + CANARY.encode())
    (tmp_path / "history" / "b.log").write_bytes(base64.b64encode(b"user:" + CANARY.encode() + b"@host"))
    assert [violation.invariant for violation in look()] == ["I8", "I8"]


def test_a_torn_last_line_of_a_history_counts_for_nothing(look: Look, tmp_path: Path) -> None:
    with (tmp_path / "history" / "4711.jsonl").open("a") as file:
        file.write('{"time": 1.0, "event": "accep')
    assert look() == []


def test_the_program_itself_ends_leases_that_ran_out(engine: Engine, look: Look) -> None:
    plant(
        engine,
        "UPDATE study SET state = 'open'",
        "UPDATE trial SET state = 'running', value = NULL, told = false WHERE id = 1",
        "UPDATE unit SET state = 'leased', expires_at = now() - interval '1 day' WHERE id = 1",
    )
    assert "I5" in broken(look())
    studies.train_all(engine, studies.worker(engine), "s")
    assert "I5" not in broken(look())
