"""The artifact store: what was stored comes back bit for bit or not at all, and nothing stays for ever."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from sqlalchemy import Engine, text

from orchestrator import artifacts, cleaning, cli, control, durable, launch, places, queries, trials
from orchestrator.artifacts import Stored
from orchestrator.contract import Checkpoint
from orchestrator.database.engine import transaction
from orchestrator.errors import CANNOT_WRITE, FoldtuneError
from orchestrator.records import Lease, StudyRecord
from tests.database import studies

KINDS = ("database", "this machine", "folder", "file", "local", "memory")
FILES = KINDS[1:]
NO_CONTENT = ("database", "deleted")  # the table forbids it


def study(engine: Engine, folder: Path, store: str = "database", *, keep: int = 3, **options: str) -> StudyRecord:
    """A launched study with a store of that kind."""
    path = studies.write(folder, **options)  # type: ignore[arg-type]
    (folder / "shared").mkdir(exist_ok=True)
    where = {
        "folder": "./shared",
        "file": f"file://{folder}/shared",
        "local": f"local://{folder}/shared",
        "memory": f"memory://{folder.name}",
    }.get(store, "database")
    path.write_text(path.read_text() + f"artifacts: {{store: '{where}', keep: {keep}}}\n")
    name = launch.launch(engine, studies.prepared(path)).name
    return read(engine, name)


def read(engine: Engine, name: str = "s") -> StudyRecord:
    with transaction(engine) as connection:
        return queries.study(connection, name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that takes only pieces up to 1000 bytes: large ones are slow."""
    monkeypatch.setattr(places, "SMALL", 1000)


@pytest.fixture(autouse=True)
def forgetful_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def take(engine: Engine) -> Lease:
    taken = trials.take(engine, studies.worker(engine), ["s"])
    assert taken is not None
    return taken[1]


def checkpoint(
    folder: Path, epoch: int, *, step: int | None = None, kind: str = "resume", size: int = 2000
) -> Checkpoint:
    """A file as a trainer writes it."""
    content = (f"{kind} {epoch} {step} ".encode() * size)[:size]
    path = folder / f"{kind}-{epoch}-{step}.scratch"
    sha256 = durable.write(path, content)
    done = epoch * 10 if step is None else step
    return Checkpoint(path=str(path), sha256=sha256, bytes=size, kind=kind, epoch=epoch, step=done)


def keep(engine: Engine, record: StudyRecord, lease: Lease, what: Checkpoint) -> Stored:
    """Upload and record."""
    stored = artifacts.upload(record, what)
    with transaction(engine) as connection:
        artifacts.record(connection, lease, what, stored)
    return stored


def fetch(engine: Engine, record: StudyRecord, lease: Lease, folder: Path) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    return artifacts.fetch(engine, record, lease.unit, folder / "fetched", said.append), said


def file_of(record: StudyRecord, stored: Stored) -> Path:
    assert stored.place is not None
    return Path(stored.place) if stored.host else Path(str(record.artifacts["store"])) / stored.place


def files_of(record: StudyRecord) -> list[str]:
    """Names of every file the study has in its stores."""
    return sorted(entry.name for files in artifacts.store(record).files for entry in files.entries())


def listed(engine: Engine, record: StudyRecord) -> list[tuple[int, bool]]:
    return [
        (int(epoch), bool(doomed))
        for epoch, doomed in studies.rows(engine, "SELECT epoch, doomed FROM artifact ORDER BY unit, kind, epoch")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_stored_comes_back_bit_for_bit(
    engine: Engine, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "this machine":
        request.getfixturevalue("small")
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    keep(engine, record, lease, checkpoint(tmp_path, 1))
    newest = checkpoint(tmp_path, 2)
    stored = keep(engine, record, lease, newest)
    assert (stored.content is None, stored.host) == (
        kind != "database",
        socket.gethostname() if kind == "this machine" else None,
    )
    found, said = fetch(engine, record, lease, tmp_path)
    assert found is not None
    assert not said
    assert (found.sha256, found.bytes, found.kind, found.epoch, found.step) == (newest.sha256, 2000, "resume", 2, 20)
    assert Path(found.path).read_bytes() == Path(newest.path).read_bytes()
    assert Path(found.path).parent == tmp_path / "fetched"


def test_a_piece_above_16_mib_stays_on_this_machine(engine: Engine, tmp_path: Path, foldtune_home: Path) -> None:
    record = study(engine, tmp_path)
    lease = take(engine)
    limit = 16 * 2**20
    assert artifacts.upload(record, checkpoint(tmp_path, 1, size=limit)).content is not None
    stored = keep(engine, record, lease, checkpoint(tmp_path, 2, size=limit + 1))
    assert stored.content is None
    path = file_of(record, stored)
    assert path.is_relative_to(foldtune_home / "artifacts")
    assert path.parent.stat().st_mode & 0o077 == 0
    found, _ = fetch(engine, record, lease, tmp_path)
    assert found is not None
    assert found.bytes == limit + 1


def test_every_flipped_byte_is_found(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    path = file_of(record, keep(engine, record, lease, checkpoint(tmp_path, 1, size=300)))
    whole = path.read_bytes()
    for place in range(300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        found, said = fetch(engine, record, lease, tmp_path)
        assert found is None, place
        assert "is damaged (sha256" in said[0]
    path.write_bytes(whole)
    assert fetch(engine, record, lease, tmp_path)[0] is not None


DAMAGES = ("flipped", "truncated", "longer", "empty", "deleted")


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, damage) for kind in ("database", "folder", "local") for damage in DAMAGES if (kind, damage) != NO_CONTENT],
)
def test_a_damaged_state_is_named_and_the_one_before_is_used(
    engine: Engine, tmp_path: Path, kind: str, damage: str
) -> None:
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    before = checkpoint(tmp_path, 2)
    keep(engine, record, lease, before)
    last = checkpoint(tmp_path, 3)
    stored = keep(engine, record, lease, last)
    content = Path(last.path).read_bytes()
    bad = {
        "flipped": b"x" + content[1:],
        "truncated": content[:-1],
        "longer": content + b"x",
        "empty": b"",
        "deleted": None,
    }[damage]
    if kind == "database":
        with transaction(engine) as connection:
            connection.execute(text("UPDATE artifact SET content = :bad WHERE epoch = 3"), {"bad": bad})
    else:
        path = tmp_path / "shared" / str(stored.place)
        path.unlink()
        if bad is not None:
            path.write_bytes(bad)
    found, said = fetch(engine, record, lease, tmp_path)
    assert found is not None
    assert (found.epoch, found.sha256) == (2, before.sha256)
    wrong = {"flipped": "damaged (sha256 ", "deleted": "missing"}.get(damage, "damaged (")
    (line,) = said
    assert line.startswith(f"checkpoint of unit {lease.unit} at epoch 3 is {wrong}")
    assert line.endswith("; going back to epoch 2")
    if damage == "flipped":
        assert f"should be {last.sha256[:12]}" in line


def test_without_an_intact_state_the_unit_begins_anew(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    assert fetch(engine, record, lease, tmp_path) == (None, [])
    file_of(record, keep(engine, record, lease, checkpoint(tmp_path, 1))).write_bytes(b"")
    found, said = fetch(engine, record, lease, tmp_path)
    assert found is None
    assert said == [f"checkpoint of unit {lease.unit} at epoch 1 is damaged (0 bytes, should be 2000); beginning anew"]


def test_two_states_of_one_epoch_are_told_apart(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    keep(engine, record, lease, checkpoint(tmp_path, 1, step=10))
    file_of(record, keep(engine, record, lease, checkpoint(tmp_path, 1, step=14))).unlink()
    found, said = fetch(engine, record, lease, tmp_path)
    assert found is not None
    assert found.step == 10
    assert "at epoch 1, step 14 is missing; going back to epoch 1, step 10" in said[0]


@pytest.mark.parametrize("kind", ["database", "folder"])
def test_two_states_of_a_unit_stay(engine: Engine, tmp_path: Path, kind: str) -> None:
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    for epoch in range(1, 6):
        keep(engine, record, lease, checkpoint(tmp_path, epoch))
        artifacts.collect(engine, record)
    assert listed(engine, record) == [(4, False), (5, False)]
    assert len(files_of(record)) == (2 if kind == "folder" else 0)


def test_a_record_sent_twice_is_one_row_and_says_so(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    what = checkpoint(tmp_path, 1)
    first, second = artifacts.upload(record, what), artifacts.upload(record, what)
    assert first.place != second.place
    with transaction(engine) as connection:
        assert artifacts.record(connection, lease, what, first)
        assert not artifacts.record(connection, lease, what, second)
    artifacts.discard(record, second)
    assert studies.rows(engine, "SELECT place FROM artifact") == [(first.place,)]
    assert len(files_of(record)) == 1


def test_a_later_lease_that_could_not_read_a_state_replaces_it(engine: Engine, tmp_path: Path) -> None:
    """Else the damaged one would be found again by every resume of this unit."""
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    for epoch in (5, 6):
        file_of(record, keep(engine, record, lease, checkpoint(tmp_path, epoch))).write_bytes(b"")
    again = dataclasses.replace(lease, epoch=lease.epoch + 1)
    assert fetch(engine, record, again, tmp_path)[0] is None
    for epoch in range(1, 7):
        keep(engine, record, again, checkpoint(tmp_path, epoch))
        found, _ = fetch(engine, record, again, tmp_path)
        assert found is not None
        assert found.epoch == epoch, "a state just written is doomed by damaged ones of a farther course"
    assert [row for row in listed(engine, record) if not row[1]] == [(5, False), (6, False)]
    artifacts.collect(engine, record)
    artifacts.sweep(engine, record, older_than=0)
    assert len(files_of(record)) == 2


def test_a_state_of_another_machine_is_named_with_its_price(
    engine: Engine, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = study(engine, tmp_path)
    lease = take(engine)
    keep(engine, record, lease, checkpoint(tmp_path, 1))
    keep(engine, record, lease, checkpoint(tmp_path, 2, size=500))
    assert fetch(engine, record, lease, tmp_path)[1] == []
    keep(engine, record, lease, checkpoint(tmp_path, 4))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        found, said = fetch(engine, record, lease, tmp_path)
        assert found is not None
        assert found.epoch == 2
        assert said == [
            f"the newest checkpoint of unit {lease.unit}, of epoch 4, is on {read_host(engine)} alone; "
            "going on from epoch 2, 2 epochs are trained again"
        ]
        with transaction(engine) as connection:
            connection.execute(text("UPDATE artifact SET doomed = true"))
        artifacts.collect(engine, record)
    assert len(files_of(record)) == 2, "another machine's files are not this one's to delete"
    assert len(studies.rows(engine, "SELECT 1 FROM artifact")) == 2
    assert cleaning.elsewhere(engine, "s") == [socket.gethostname()]
    assert artifacts.collect(engine, record) == 2
    assert files_of(record) == []


def read_host(engine: Engine) -> str:
    return str(studies.rows(engine, "SELECT host FROM artifact WHERE host IS NOT NULL LIMIT 1")[0][0])


@pytest.mark.parametrize("kind", ["folder", "this machine"])
@pytest.mark.parametrize(
    "bad", ["../../victim", "{folder}/../../victim", "/etc/hostname", "{folder}/victim", "{place}/..", ""]
)
def test_a_place_outside_the_store_is_neither_read_nor_deleted(
    engine: Engine, tmp_path: Path, kind: str, bad: str, small: None
) -> None:
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    stored = keep(engine, record, lease, checkpoint(tmp_path, 1))
    path = file_of(record, stored)
    victims = [path.parent / "victim", path.parent.parent / "victim", path.parent.parent.parent / "victim"]
    for victim in victims:
        victim.write_bytes(path.read_bytes())
    place = bad.format(folder=path.parent if kind == "this machine" else path.parent.name, place=stored.place)
    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET place = :place"), {"place": place})
    assert fetch(engine, record, lease, tmp_path)[0] is None
    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET doomed = true"))
    artifacts.collect(engine, record)
    artifacts.sweep(engine, record, older_than=0)
    assert all(victim.exists() for victim in victims)
    assert Path("/etc/hostname").exists()


def test_a_folder_that_leads_out_of_the_store_is_refused(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    with transaction(engine) as connection:
        connection.execute(
            text("UPDATE study SET artifacts = json_build_object('store', '/', 'keep', 3, 'folder', '../etc')")
        )
    with pytest.raises(FoldtuneError, match="outside the study's store") as raised:
        artifacts.upload(read(engine), checkpoint(tmp_path, 1))
    assert raised.value.code == CANNOT_WRITE
    assert record.artifacts["folder"].startswith("s-")


@pytest.mark.parametrize("kind", ["this machine", "folder", "memory"])
def test_a_full_store_costs_the_checkpoint_and_not_the_score(
    engine: Engine, tmp_path: Path, kind: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    adapter = checkpoint(tmp_path, 1, kind="adapter")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "pipe_file", full)
    with pytest.raises(FoldtuneError, match="adapter checkpoint of epoch 1 cannot be stored: No space left") as raised:
        artifacts.upload(record, adapter)
    assert raised.value.code == CANNOT_WRITE
    monkeypatch.undo()
    assert files_of(record) == []
    assert trials.report(engine, lease, [studies.epoch_done(lease, epoch=1)])


def test_a_full_database_refuses_the_checkpoint_and_takes_the_score(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path)
    lease = take(engine)
    what = checkpoint(tmp_path, 1)
    with transaction(engine) as connection:
        connection.execute(
            text(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER full_disk BEFORE INSERT ON artifact FOR EACH ROW EXECUTE FUNCTION full_disk()")
        )
    with transaction(engine) as connection:
        connection.execute(text("UPDATE unit SET reason = 'written beside it' WHERE id = :id"), {"id": lease.unit})
        with pytest.raises(FoldtuneError, match="could not extend file") as raised:
            artifacts.record(connection, lease, what, artifacts.upload(record, what))
    assert raised.value.code == CANNOT_WRITE
    assert studies.rows(engine, "SELECT count(*) FROM artifact") == [(0,)]
    assert studies.rows(engine, "SELECT count(*) FROM unit WHERE reason = 'written beside it'") == [(1,)]


def test_a_store_that_is_away_is_said_and_nothing_is_deleted(engine: Engine, tmp_path: Path) -> None:
    """A machine that has not mounted the shared disk must neither fill its own nor take every state for deleted."""
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    keep(engine, record, lease, checkpoint(tmp_path, 1))
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    (tmp_path / "shared").mkdir()
    with pytest.raises(FoldtuneError, match="cannot be stored"):
        artifacts.upload(record, checkpoint(tmp_path, 2))
    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET doomed = true"))
    assert artifacts.collect(engine, record) == artifacts.sweep(engine, record, older_than=0) == 0
    assert listed(engine, record) == [(1, True)]


def test_a_checkpoint_that_is_not_what_the_trainer_wrote_is_not_stored(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder")
    what = checkpoint(tmp_path, 1)
    for content in (b"x" * 2000, b"", None):
        Path(what.path).write_bytes(content) if content is not None else Path(what.path).unlink()
        with pytest.raises(FoldtuneError, match="cannot be stored") as raised:
            artifacts.upload(record, what)
        assert raised.value.code == CANNOT_WRITE
    assert files_of(record) == []


def train(engine: Engine, record: StudyRecord, folder: Path, most: int | None = None) -> list[Lease]:
    """Train with a resume state for each epoch and an adapter at the end; the leases."""
    done: list[Lease] = []
    who = studies.worker(engine)
    while len(done) != most and (taken := trials.take(engine, who, ["s"])) is not None:
        lease = taken[1]
        keep(engine, record, lease, checkpoint(folder, 1))
        keep(engine, record, lease, checkpoint(folder, lease.settings.epochs, kind="adapter"))
        studies.train(engine, record, lease)
        done.append(lease)
    return done


def adapters(engine: Engine) -> dict[int, int]:
    """Adapters that stay, by trial."""
    query = (
        "SELECT u.trial, count(*) FROM artifact a JOIN unit u ON u.id = a.unit "
        "WHERE kind = 'adapter' AND NOT doomed GROUP BY u.trial"
    )
    return {int(trial): int(count) for trial, count in studies.rows(engine, query)}


def prune(engine: Engine) -> None:
    with transaction(engine) as connection:
        artifacts.prune(connection, queries.lock_study(connection, queries.study(connection, "s").id))


@pytest.mark.parametrize("kind", ["database", "folder", "memory"])
def test_the_best_trials_and_the_default_keep_their_adapters(engine: Engine, tmp_path: Path, kind: str) -> None:
    record = study(engine, tmp_path, kind, keep=2)
    assert len(train(engine, record, tmp_path)) == 10
    prune(engine)
    rows = studies.rows(engine, "SELECT id, is_default FROM trial ORDER BY value")
    wanted = {trial for trial, _ in rows[:2]} | {trial for trial, is_default in rows if is_default}
    assert adapters(engine) == dict.fromkeys(wanted, 2)
    assert studies.rows(engine, "SELECT count(*) FROM artifact WHERE kind = 'resume' AND NOT doomed") == [(0,)]
    artifacts.collect(engine, record)
    left = studies.rows(engine, "SELECT place FROM artifact ORDER BY place")
    assert len(left) == 2 * len(wanted)
    if kind != "database":
        assert files_of(record) == sorted(str(place).rpartition("/")[2] for (place,) in left)
    assert artifacts.collect(engine, record) == 0


def test_an_open_trial_keeps_everything_and_a_cancelled_one_its_adapters(engine: Engine, tmp_path: Path) -> None:
    """`resume` revives a cancelled trial with its finished folds, and it may become the best."""
    record = study(engine, tmp_path, keep=0)
    train(engine, record, tmp_path, most=3)
    running = take(engine)
    keep(engine, record, running, checkpoint(tmp_path, 1))
    prune(engine)
    opened = int(studies.rows(engine, "SELECT id FROM trial WHERE state = 'running'")[0][0])
    default = int(studies.rows(engine, "SELECT id FROM trial WHERE is_default")[0][0])
    assert adapters(engine) == {default: 2, opened: 1}
    assert studies.rows(engine, "SELECT count(*) FROM artifact WHERE kind = 'resume' AND NOT doomed") == [(2,)]
    control.stop(engine, "s")
    prune(engine)
    assert adapters(engine) == {default: 2, opened: 1}
    assert studies.rows(engine, "SELECT count(*) FROM artifact WHERE kind = 'resume'") == [(0,)]


def test_a_crash_between_file_and_row_leaves_nothing_for_ever(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    kept = keep(engine, record, lease, checkpoint(tmp_path, 3))
    artifacts.upload(record, checkpoint(tmp_path, 4))  # and the worker dies before the row
    unfinished = file_of(record, kept).with_name(f"{file_of(record, kept).name}.77.tmp")
    unfinished.write_bytes(b"half")
    foreign = file_of(record, kept).with_name("notes.txt")
    foreign.write_text("a person's own")
    assert artifacts.sweep(engine, record) == 0, "an upload may be on its way to its row"
    old = time.time() - 3700
    for path in foreign.parent.iterdir():
        os.utime(path, (old, old))
    assert artifacts.sweep(engine, record) == 2
    assert files_of(record) == sorted(["notes.txt", file_of(record, kept).name])

    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET doomed = true"))
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_row_gone", crash)
        with pytest.raises(KeyboardInterrupt):
            artifacts.collect(engine, record)
    assert files_of(record) == ["notes.txt"]
    assert listed(engine, record) == [(3, True)]
    assert artifacts.collect(engine, record) == 1
    assert listed(engine, record) == []


@pytest.mark.parametrize("kind", ["database", "folder"])
def test_many_collect_and_sweep_at_once(engine: Engine, tmp_path: Path, kind: str) -> None:
    record = study(engine, tmp_path, kind)
    lease = take(engine)
    for epoch in range(8):
        keep(engine, record, lease, checkpoint(tmp_path, epoch, size=100))
    for _ in range(4):
        artifacts.upload(record, checkpoint(tmp_path, 9, size=100))
    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET doomed = true"))
    failures: list[BaseException] = []

    def tidy() -> None:
        try:
            artifacts.collect(engine, record)
            artifacts.sweep(engine, record, older_than=0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tidy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert listed(engine, record) == []
    assert files_of(record) == []


def test_a_piece_recorded_anew_while_it_is_collected_stays(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = study(engine, tmp_path, "folder")
    lease = take(engine)
    what = checkpoint(tmp_path, 1)
    keep(engine, record, lease, what)
    with transaction(engine) as connection:
        connection.execute(text("UPDATE artifact SET doomed = true"))
    really = cleaning._file_gone

    def slowly(where: places.Store, piece: places.Piece) -> bool:
        keep(engine, record, lease, what)
        return really(where, piece)

    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_file_gone", slowly)
        assert artifacts.collect(engine, record) == 0
    assert listed(engine, record) == [(1, False)]
    assert fetch(engine, record, lease, tmp_path)[0] is not None


@pytest.mark.parametrize("kind", FILES)
def test_clean_removes_everything_of_a_finished_study(engine: Engine, tmp_path: Path, kind: str, small: None) -> None:
    record = study(engine, tmp_path, kind, keep=9)
    with pytest.raises(FoldtuneError, match="is open"):
        cleaning.clean(engine, "s")
    train(engine, record, tmp_path)
    artifacts.upload(record, checkpoint(tmp_path, 9))
    assert cleaning.cleanable(engine) == cleaning.cleanable(engine, ["s"]) == {"s": 10}
    before = len(files_of(record))
    freed = cleaning.clean(engine, "s")
    assert cleaning.elsewhere(engine, "s") == []
    assert (freed.pieces, freed.bytes) == (before, before * 2000)
    assert files_of(record) == []
    assert cleaning.clean(engine, "s") == cleaning.Freed()


@pytest.mark.parametrize("kind", FILES)
def test_delete_takes_the_files_along(engine: Engine, tmp_path: Path, kind: str, small: None) -> None:
    record = study(engine, tmp_path, kind)
    keep(engine, record, take(engine), checkpoint(tmp_path, 1))
    assert len(files_of(record)) == 1
    control.delete(engine, "s")
    assert files_of(record) == []
    assert not artifacts.store(record).local.there()
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.parametrize("kind", ["this machine", "folder", "memory"])
def test_files_of_a_deleted_study_are_found_later(
    engine: Engine, tmp_path: Path, kind: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between row and files; and a worker that has not heard of it uploads once more."""
    record = study(engine, tmp_path, kind)
    keep(engine, record, take(engine), checkpoint(tmp_path, 1))
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "leftovers", lambda _: None)
        control.delete(engine, "s")
    artifacts.upload(record, checkpoint(tmp_path, 2))
    assert len(files_of(record)) == 2
    other = study(engine, tmp_path, kind, name="other")
    assert artifacts.sweep(engine, other) == 2
    assert files_of(record) == []
    with transaction(engine) as connection:
        connection.execute(text("UPDATE leftover SET deleted_at = now() - interval '2 hours'"))
    cleaning.leftovers(engine)
    assert studies.rows(engine, "SELECT emptied FROM leftover") == [(kind == "memory",)]


def test_a_study_of_the_same_name_has_a_folder_of_its_own(engine: Engine, tmp_path: Path) -> None:
    """Two databases may share a store: each would sweep the other's files, which none of its rows name."""
    record = study(engine, tmp_path, "folder")
    keep(engine, record, take(engine), checkpoint(tmp_path, 1))
    control.delete(engine, "s")
    again = study(engine, tmp_path, "folder")
    assert again.artifacts["folder"] != record.artifacts["folder"]


def test_another_store_does_not_move_a_launched_study(engine: Engine, tmp_path: Path) -> None:
    record = study(engine, tmp_path, "folder", keep=1)
    assert record.artifacts["store"] == str(tmp_path / "shared")
    path = studies.write(tmp_path)
    again = launch.launch(engine, studies.prepared(path))
    assert f"its artifacts stay as they were: store {tmp_path / 'shared'}, keep 1" in again.messages
    assert read(engine).artifacts == record.artifacts
    (tmp_path / "shared" / record.artifacts["folder"]).rmdir()
    assert len(launch.launch(engine, studies.prepared(path)).messages) == 2
    assert artifacts.upload(record, checkpoint(tmp_path, 1)).place, "launching again makes the folder again"


def command(engine: Engine, *arguments: str) -> int:
    """Run the real command line in this process; its exit code."""
    storage = engine.url.render_as_string(hide_password=False)
    argv = ["foldtune", *arguments, "--storage", storage]
    with mock.patch.object(sys, "argv", argv), pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_clean_asks_before_adapters_go_and_says_what_went(
    engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = study(engine, tmp_path, "folder", keep=9)
    assert command(engine, "clean", "s") == 2
    assert "foldtune stop s" in capfd.readouterr().err
    assert command(engine, "clean") == 0, "an open study is left alone"
    train(engine, record, tmp_path)
    assert command(engine, "clean", "--yes", "another") == 2
    assert command(engine, "clean") == 2
    assert "refusing to remove 10 adapters without --yes" in capfd.readouterr().err
    assert command(engine, "clean", "--yes") == 0
    assert "study 's': 20 pieces removed, 0.0 MiB" in capfd.readouterr().err
    assert files_of(record) == []
    assert command(engine, "clean", "s") == 0, "nothing is left to ask about"
