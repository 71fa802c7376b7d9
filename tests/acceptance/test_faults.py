"""What machines do to workers: kills, disks, memory, clocks. Real processes, the light engine."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.acceptance import light
from tests.acceptance.commands import start, wait_until
from tests.acceptance.light import ROOT_ONLY, UNITS, charged, count, launched, table, worker
from tests.database import studies
from tests.database.studies import rows

as_root = pytest.mark.skipif(os.geteuid() != 0, reason=ROOT_ONLY)

STATES = (
    "SELECT a.id, a.place, a.epoch, a.unit FROM artifact a JOIN unit u ON u.id = a.unit "
    "WHERE a.kind = 'resume' AND NOT a.doomed AND u.state = 'leased' ORDER BY a.unit, a.epoch DESC"
)
STORE = "artifacts: {store: ./store}"


def store(folder: Path) -> Path:
    """A shared store beside the study file."""
    made = folder / "store"
    made.mkdir()
    return made


def no_dangling_rows(engine: Engine, store: Path) -> bool:
    """Whether every row of an artifact has its file, of the size it says."""
    found = rows(engine, "SELECT place, bytes FROM artifact WHERE NOT doomed")
    return all((store / place).stat().st_size == size for place, size in found)


def newest_states(engine: Engine) -> dict[int, Path]:
    """Unit -> place of its newest resume state, of units that train and have an older one too."""
    by_unit = {unit: list(found) for unit, found in itertools.groupby(rows(engine, STATES), lambda row: row[3])}
    return {unit: Path(found[0][1]) for unit, found in by_unit.items() if len(found) > 1}


def test_a_killed_worker_costs_the_running_epoch_and_the_next_one_goes_on_after_the_last(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.4") as first:
        wait_until(lambda: count(engine, "result") > 1)
        before = rows(engine, "SELECT unit, epoch, lease_epoch FROM result")
    studies.expire_all(engine)  # as after 30 s
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as second:
        assert second.end() == 0
    assert "attempt 2, from epoch" in second.talk
    assert set(before) <= set(rows(engine, "SELECT unit, epoch, lease_epoch FROM result"))
    assert first.process.returncode == -signal.SIGKILL
    assert charged(engine) == 0
    assert table(engine) == expected


def test_a_state_that_is_cut_off_flipped_emptied_or_gone_is_named_and_the_one_before_it_used(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    files = store(tmp_path)
    expected = launched(engine, tmp_path, epochs=8, more=STORE)
    with worker(storage, FOLDTUNE_LIGHT_SLOTS="4", FOLDTUNE_LIGHT_EPOCH_SECONDS="0.6"):
        wait_until(lambda: len(newest_states(engine)) == 4)
    cut, flipped, emptied, gone = (files / place for place in newest_states(engine).values())
    os.truncate(cut, cut.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 64
    flipped.write_bytes(content)
    os.truncate(emptied, 0)
    gone.unlink()
    studies.expire_all(engine)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as second:
        assert second.end() == 0
    assert second.talk.count("; going back to epoch") == 4, second.talk
    assert second.talk.count("bytes, should be") == 2
    assert second.talk.count("is damaged (sha256") == 1
    assert second.talk.count("is missing; going back") == 1
    assert table(engine) == expected


def test_a_damaged_state_without_another_begins_the_fold_anew_to_the_same_numbers(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.6"):
        wait_until(lambda: count(engine, "artifact") > 0)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE artifact SET content = '' WHERE kind = 'resume'")
    studies.expire_all(engine)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as second:
        assert second.end() == 0
    assert "is damaged (0 bytes, should be" in second.talk
    assert "beginning anew" in second.talk
    assert table(engine) == expected


@as_root
def test_a_full_store_costs_checkpoints_and_no_score_and_leaves_no_row_without_its_file(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    with light.disk(store(tmp_path), "1m") as files:
        expected = launched(engine, tmp_path, more=STORE)
        with worker(storage) as running:
            wait_until(lambda: count(engine, "artifact") > 2)
            ballast = light.fill(files)
            wait_until(lambda: "No space left on device" in running.talk)
            ballast.unlink()
            assert running.end() == 0
        assert "checkpoint of epoch" in running.talk
        assert "the score counts without it" in running.talk
        assert no_dangling_rows(engine, files)
        assert not list(files.rglob("*.tmp"))
        assert rows(engine, "SELECT kind, count(*) FROM artifact WHERE kind = 'adapter' GROUP BY 1")
    assert table(engine) == expected


def test_a_store_that_goes_away_and_comes_back_costs_checkpoints_and_no_score(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    files = store(tmp_path)
    expected = launched(engine, tmp_path, more=STORE)
    with worker(storage) as running:
        wait_until(lambda: count(engine, "artifact") > 2)
        files.rename(tmp_path / "elsewhere")
        wait_until(lambda: "the score counts without it" in running.talk)
        (tmp_path / "elsewhere").rename(files)
        assert running.end() == 0
    assert no_dangling_rows(engine, files)
    assert table(engine) == expected


def test_a_model_that_changed_after_launch_is_refused_and_its_unit_given_back(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original + b"!")
    with worker(storage) as refused:
        assert refused.end() == 1
    assert "is another one here (was " in refused.talk
    assert rows(engine, "SELECT count(*), max(attempts) FROM unit WHERE state = 'waiting'") == [(UNITS, 1)]
    assert (charged(engine), count(engine, "result")) == (0, 0)
    weights.write_bytes(original)
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as running:
        assert running.end() == 0
    assert table(engine) == expected


def test_rows_that_changed_after_launch_are_not_read_where_the_study_carries_them_and_refused_where_not(
    engine: Engine, storage: str, tmp_path: Path, foldtune_home: Path
) -> None:
    expected = launched(engine, tmp_path)
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "one more", "label": "a"}\n')
    with engine.begin() as connection:  # as of a dataset that is too large for the database
        [content] = connection.exec_driver_sql("SELECT content FROM foldtune.snapshot").scalars()
        connection.exec_driver_sql("UPDATE foldtune.snapshot SET content = NULL")
    with worker(storage) as refused:
        assert refused.end() == 1
    assert "rows.jsonl changed since the study began (was " in refused.talk
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE foldtune.snapshot SET content = %s", (content,))
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as running:
        assert running.end() == 0
    assert table(engine) == expected


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of little memory; the file to write a process id to."""
    root = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    group = root / f"foldtune-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(512 * 2**20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group of our own: {error}")
    yield group / "cgroup.procs"
    wait_until(lambda: not (group / "cgroup.procs").read_text().strip(), seconds=10)
    group.rmdir()


@as_root
def test_a_trainer_that_the_kernel_kills_for_its_memory_goes_on_with_a_quarter_of_the_rows_to_the_same_numbers(
    engine: Engine, storage: str, tmp_path: Path, small_memory: Path
) -> None:
    expected = launched(engine, tmp_path)
    inside = ("sh", "-c", f'echo $$ > {small_memory}; exec "$0" "$@"')
    hungry = {"FOLDTUNE_ENGINE": "tests.acceptance.hungry_engine", "FOLDTUNE_LIGHT_EPOCH_SECONDS": "0"}
    with worker(storage, prefix=inside, **hungry) as running:
        assert running.end() == 0, running.talk
    assert "killed by the kernel for its memory (" in running.talk
    assert "goes on with 2 rows at a time, the numbers stay" in running.talk
    assert "rows at a time" not in running.talk.replace("2 rows at a time", "")
    assert (charged(engine), rows(engine, "SELECT max(attempts) FROM unit")) == (0, [(1,)])
    assert table(engine) == expected


def test_a_loss_that_is_not_finite_ends_its_trial_as_diverged_and_never_wins(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    with worker(storage, FOLDTUNE_LIGHT_FAULT="nan:learning_rate=0.01@3", FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as running:
        assert running.end() == 0
    found = rows(engine, "SELECT state::text, count(*), count(value), max(reason) FROM trial GROUP BY 1 ORDER BY 1")
    assert found == [("complete", 3, 3, ""), ("diverged", 2, 0, "loss nan at step 3")]
    told = rows(engine, "SELECT state::text, count(*) FROM public.trials GROUP BY 1 ORDER BY 1")
    assert dict(told)["PRUNED"] == 2
    assert charged(engine) == 0
    assert table(engine).items() < expected.items()


def test_clocks_that_are_an_hour_off_have_no_effect_on_leases(engine: Engine, storage: str, tmp_path: Path) -> None:
    """Wall clocks by a module that Python loads first, monotonic ones by a time namespace where root may make one."""
    expected = launched(engine, tmp_path)
    clocks: list[tuple[dict[str, str], tuple[str, ...]]] = []
    for hours in (1, -1):
        shim = tmp_path / f"clock{hours}"
        shim.mkdir()
        text = f"import time\nreal = time.time\ntime.time = lambda: real() + {hours * 3600}\n"
        (shim / "sitecustomize.py").write_text(text, encoding="utf-8")
        monotonic = ("unshare", "-T", "--monotonic", "3600", "--boottime", "3600")
        clocks.append(({"PYTHONPATH": str(shim)}, monotonic if _time_namespaces() and hours > 0 else ()))
    [(ahead, namespace), (behind, _)] = clocks
    with (
        worker(storage, prefix=namespace, **ahead) as early,
        worker(storage, **behind) as late,
    ):
        assert (early.end(), late.end()) == (0, 0)
    assert rows(engine, "SELECT max(attempts), count(DISTINCT worker) FROM unit") == [(1, 2)]
    stamps = "SELECT count(*) FROM attempt WHERE abs(extract(epoch FROM now() - granted_at)) > 600"
    assert rows(engine, stamps) == [(0,)]
    assert table(engine) == expected


def _time_namespaces() -> bool:
    made = subprocess.run(["unshare", "-T", "--monotonic", "3600", "true"], capture_output=True, check=False)
    return made.returncode == 0


def test_two_workers_of_one_name_share_no_lease(engine: Engine, storage: str, tmp_path: Path) -> None:
    expected = launched(engine, tmp_path)
    with worker(storage, "--name", "w1", "s") as one, worker(storage, "--name", "w1", "s") as other:
        assert (one.end(), other.end()) == (0, 0)
    assert rows(engine, "SELECT count(DISTINCT worker), max(attempts) FROM unit") == [(2, 1)]
    assert rows(engine, "SELECT name, farewell, count(*) FROM worker GROUP BY 1, 2") == [("w1", "no work left", 2)]
    assert rows(engine, "SELECT state::text, count(*), count(DISTINCT configuration) FROM trial GROUP BY 1") == [
        ("complete", 5, 5)
    ]
    assert table(engine) == expected


def test_a_dashboard_killed_while_a_worker_reports_disturbs_nobody(
    engine: Engine, storage: str, tmp_path: Path
) -> None:
    expected = launched(engine, tmp_path)
    dashboard = start("dashboard", "--port", "18766", OPTUNA_STORAGE=storage)

    def asked() -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:18766/api/studies", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_until(asked)
        with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.2") as running:
            wait_until(lambda: asked() and count(engine, "result") > 4)
            dashboard.kill()
            assert running.end() == 0
    finally:
        dashboard.kill()
        dashboard.communicate()
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected


@as_root
@pytest.mark.parametrize("full", ["the log", "the results"])
def test_training_goes_on_while_the_disk_is_full_of(
    engine: Engine, storage: str, tmp_path: Path, foldtune_home: Path, full: str
) -> None:
    expected: Mapping[str, float] = launched(engine, tmp_path)
    place = tmp_path / "log" if full == "the log" else foldtune_home / "spool"
    with light.disk(place, "1m"):
        log = place / "worker.log" if full == "the log" else None
        with worker(storage, log=log, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.2") as running:
            wait_until(lambda: count(engine, "result") > 1)
            light.fill(place)
            said = running.talk
            assert running.end() == 0
        if full == "the log":
            assert running.talk == said
        else:
            assert "takes no results (No space left on device); they wait in memory" in running.talk
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected
