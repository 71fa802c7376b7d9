"""What becomes of units when their processes die, hang, lie or lose the database: real processes, the light engine.

The light engine trains a small numpy model in real time, with real checkpoints, and plants faults on demand.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.chaos.proxy import Mode, Proxy
from tests.acceptance import light
from tests.acceptance.commands import alive, foldtune, wait_until
from tests.acceptance.light import Running, count, launched, table, worker
from tests.database import studies
from tests.database.studies import rows


def outcome(process: Running, *, seconds: float = 120) -> tuple[int, str]:
    """(exit code, talk) of a worker that ends by itself."""
    return process.end(seconds=seconds), process.talk


def ended(engine: Engine, name: str = "s") -> dict[str, int]:
    """State -> trials."""
    query = "SELECT t.state::text, count(*) FROM trial t JOIN study s ON s.id = t.study "
    return dict(rows(engine, query + f"WHERE s.name = '{name}' GROUP BY 1"))


def waiting(home: Path) -> list[Path]:
    """Results that wait on this machine."""
    return sorted(home.glob("spool/*/*/*.json"))


def test_a_poison_unit_among_eight_fails_and_the_others_complete_with_unchanged_losses(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    undisturbed = launched(engine, tmp_path)
    poison = {"FOLDTUNE_LIGHT_FAULT": "abort:learning_rate=0.01@3", "FOLDTUNE_LIGHT_SLOTS": "8"}
    with worker(storage, **poison) as process:
        code, talk = outcome(process)
    assert code == 0, talk
    assert "go on by halves, none is charged" in talk
    assert table(engine).items() < undisturbed.items()
    assert ended(engine) == {"complete": 3, "failed": 2}
    charged = rows(engine, "SELECT unit, count(*), min(cause), max(cause) FROM attempt WHERE charged GROUP BY unit")
    assert sorted(row[1] for row in charged)[-2:] == [3, 3]  # one unit of each poison trial fails for good
    assert {cause for row in charged for cause in row[2:]} == {"crash"}
    blameless = (
        "SELECT count(*) FROM unit u JOIN trial t ON t.id = u.trial WHERE t.state = 'complete' AND u.charges > 0"
    )
    assert rows(engine, blameless) == [(0,)]
    status = foldtune("status", "s", OPTUNA_STORAGE=storage).stderr
    assert "killed by SIGABRT" in status
    assert "on cpu: foldtune 0" in status  # who trained it, with which versions


def test_a_killed_trainer_costs_no_attempt_and_no_finished_epoch(engine: Engine, storage: str, tmp_path: Path) -> None:
    undisturbed = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.3") as process:
        killed: set[int] = set()  # a dead one is listed until the worker has looked
        for _ in range(5):
            seen = count(engine, "result")
            wait_until(lambda seen=seen: count(engine, "result") > seen and bool({*process.trainers} - killed))
            [trainer] = {*process.trainers} - killed
            os.kill(trainer, signal.SIGKILL)
            killed.add(trainer)
        code, talk = outcome(process)
    assert code == 0
    # one of them may have died between two units, and then there is none to go on with
    assert talk.count("killed by SIGKILL; its units go on in a new one") in (4, 5)
    assert rows(engine, "SELECT max(attempts), sum(charges) FROM unit") == [(1, 0)]
    assert table(engine) == undisturbed


def test_a_hanging_unit_is_killed_with_its_stack_as_evidence_and_fails_for_good(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    launched(engine, tmp_path)
    hang = {"FOLDTUNE_LIGHT_FAULT": "hang:learning_rate=0.01@3", "FOLDTUNE_HANG_SECONDS": "1.5"}
    with worker(storage, **hang) as process:
        code, talk = outcome(process)
    assert code == 0, talk
    assert "no sign of life from the trainer" in talk
    [(cause, evidence)] = rows(
        engine, "SELECT cause, evidence FROM attempt WHERE charged ORDER BY unit, lease_epoch LIMIT 1"
    )
    assert cause == "hang"
    assert "planted.py" in evidence  # the frame that hung
    assert len(table(engine)) == 3


def test_a_worker_on_which_everything_fails_takes_itself_out_and_charges_nobody(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    undisturbed = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_FAULT="raise") as process:
        code, talk = outcome(process)
    assert code == 1
    assert "this machine, or the study, may be at fault" in talk
    assert rows(engine, "SELECT sum(charges) FROM unit") == [(0,)]
    assert count(engine, "attempt WHERE cause = 'exception' AND NOT charged") == 3
    with worker(storage) as process:
        assert outcome(process)[0] == 0
    assert table(engine) == undisturbed


def test_a_preempted_unit_goes_on_elsewhere_from_its_last_step_within_five_seconds(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    undisturbed = launched(engine, tmp_path, epochs=1, texts=96)
    slow = {"FOLDTUNE_LIGHT_EPOCH_SECONDS": "20"}
    with worker(storage, **slow) as first:
        wait_until(lambda: bool(rows(engine, "SELECT 1 FROM unit WHERE state = 'leased'")))
        wait_until(lambda: bool(first.trainers))
        time.sleep(4)  # in the middle of an epoch of many steps
        with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.1") as second:
            os.kill(first.pid, signal.SIGTERM)
            asked = time.monotonic()
            code, talk = outcome(first, seconds=10)
            assert time.monotonic() - asked < 5, talk
            assert code == 128 + signal.SIGTERM
            _, other = outcome(second)
    assert "attempt 2, from epoch 0" in other  # from a step within the first epoch
    [(cause, charged)] = rows(engine, "SELECT cause, charged FROM attempt a WHERE a.cause = 'released'")
    assert (cause, charged) == ("released", False)
    gap = "SELECT extract(epoch FROM b.granted_at - a.ended_at) FROM attempt a JOIN attempt b ON b.unit = a.unit "
    assert rows(engine, gap + "AND b.number = 2 WHERE a.number = 1")[0][0] < 5
    assert table(engine) == undisturbed


def test_a_second_signal_ends_a_worker_at_once(engine: Engine, storage: str, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="60", FOLDTUNE_LIGHT_FAULT="hang") as process:
        wait_until(lambda: bool(process.trainers) and bool(count(engine, "unit WHERE state = 'leased'")))
        [trainer] = process.trainers
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        asked = time.monotonic()
        assert process.end(seconds=10) == 128 + signal.SIGINT
        assert time.monotonic() - asked < 2
        wait_until(lambda: not alive(trainer), seconds=2)


def test_a_worker_that_was_stopped_for_longer_than_its_lease_is_fenced_and_says_so(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    undisturbed = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.5") as late:
        wait_until(lambda: count(engine, "result") > 0)
        os.kill(late.pid, signal.SIGSTOP)
        for trainer in late.trainers:
            os.kill(trainer, signal.SIGSTOP)
        studies.expire_all(engine)  # as after 30 s
        with worker(storage) as other:
            wait_until(lambda: count(engine, "attempt WHERE number = 2") >= 1)
            for trainer in late.trainers:
                os.kill(trainer, signal.SIGCONT)
            os.kill(late.pid, signal.SIGCONT)
            assert outcome(other)[0] == 0
        code, talk = outcome(late)
    assert code == 0
    assert "was lost (epoch 1 < 2); stopping it, nothing was written" in talk
    assert table(engine) == undisturbed


def test_what_a_killed_worker_had_not_delivered_is_delivered_by_the_next_one_on_the_machine(
    engine: Engine, storage: str, tmp_path: Path, foldtune_home: Path, proxy: Proxy
) -> None:
    launched(engine, tmp_path)
    with worker(light.through(storage, proxy.port), FOLDTUNE_LIGHT_EPOCH_SECONDS="0.4") as cut_off:
        wait_until(lambda: count(engine, "result") > 1)
        proxy.set(Mode.STALL)
        wait_until(lambda: len(waiting(foldtune_home)) > 2)
        before = count(engine, "result")
        os.kill(cut_off.pid, signal.SIGKILL)
    left = len(waiting(foldtune_home))
    proxy.close()
    with worker(storage) as process:
        code, talk = outcome(process)
    assert code == 0
    assert f"delivering {left} results that a worker left on this machine" in talk
    assert waiting(foldtune_home) == []
    accepted = rows(engine, "SELECT unit, epoch, lease_epoch FROM result WHERE lease_epoch = 1")
    assert len(accepted) >= before + left - 1
    assert rows(engine, "SELECT state::text, count(*) FROM trial GROUP BY 1") == [("complete", 5)]


def test_training_goes_on_while_the_database_is_silent_and_nothing_is_lost(
    engine: Engine, storage: str, tmp_path: Path, proxy: Proxy
) -> None:
    """Every byte is held up for longer than a call may take; then they flow again."""
    undisturbed = launched(engine, tmp_path)
    with worker(light.through(storage, proxy.port), FOLDTUNE_LIGHT_EPOCH_SECONDS="4") as process:
        wait_until(lambda: count(engine, "result") > 0)
        proxy.set(Mode.STALL)
        time.sleep(18)  # the first call comes up to 5 s later and is given 10; the lease lives for 25 at least
        proxy.set(Mode.PASS)
        wait_until(lambda: count(engine, "result") > 3, seconds=20)
        os.kill(process.pid, signal.SIGTERM)
        _, talk = outcome(process)
    assert "did not answer for 10 s; training goes on, results wait on this machine; giving up at" in talk
    assert "the database answers again after" in talk
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    with worker(storage) as process:
        assert outcome(process)[0] == 0
    assert table(engine) == undisturbed


def test_status_tells_of_failures_as_json_too(engine: Engine, storage: str, tmp_path: Path) -> None:
    launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_FAULT="raise:learning_rate=0.01") as process:
        assert outcome(process)[0] == 0
    found = json.loads(foldtune("status", "s", "--json", OPTUNA_STORAGE=storage).stdout)
    assert found["trials"]["failed"] == 2
    assert found["trials"]["complete"] == 2
