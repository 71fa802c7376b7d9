"""What of a study's artifacts goes, and when.

Deciding and deleting are apart: `prune` and `artifacts.record` doom rows inside their caller's transaction, `collect`
deletes what is doomed outside of any. Any number of processes may do either at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from orchestrator import places, queries, retention
from orchestrator.database.engine import transaction
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.places import OURS, OURS_UNFINISHED, OutsideStore, Piece, Store
from orchestrator.records import StudyRecord
from orchestrator.stores import Files


@dataclass(frozen=True)
class Freed:
    """What was deleted."""

    pieces: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.pieces + other.pieces, self.bytes + other.bytes)


def prune(connection: Connection, record: StudyRecord) -> None:
    """Doom what no longer has a use, once a trial has closed. Under the study's lock, after the trial's state is set.

    Resume states of closed trials go. So do adapters, but for those of `retention.kept` and of cancelled trials:
    `resume` revives these with the folds they have finished, and the best of a study keeps the adapters of all folds.
    """
    most, maximize = int(record.artifacts["keep"]), record.spec.maximize
    candidates = {
        trial.id: trial
        for trial in (
            *queries.best_trials(connection, record.id, most, maximize=maximize),
            *queries.default_trials(connection, record.id),
        )
    }
    keep = retention.kept(list(candidates.values()), keep=most, maximize=maximize)
    connection.execute(
        text(
            "UPDATE artifact SET doomed = true FROM unit u JOIN trial t ON t.id = u.trial "
            "WHERE artifact.unit = u.id AND u.study = :study AND NOT doomed AND t.state NOT IN ('waiting', 'running') "
            "AND (kind = 'resume' OR (t.state <> 'cancelled' AND NOT t.id = ANY(:kept)))"
        ),
        {"study": record.id, "kept": sorted(keep)},
    )
    connection.execute(
        text(
            "DELETE FROM artifact USING unit u WHERE artifact.unit = u.id AND u.study = :study "
            "AND doomed AND content IS NOT NULL"
        ),
        {"study": record.id},
    )


def collect(engine: Engine, record: StudyRecord) -> int:
    """Delete what is doomed, as far as this machine can reach it; how many pieces went. Idempotent.

    A store that is away is no failure: its rows stay doomed, and the next call tries again.
    """
    return _collect(engine, record).pieces


def sweep(engine: Engine, record: StudyRecord, *, older_than: float = 3600.0) -> int:
    """Delete files of the study that no row names and that are older than this, and what deleted studies left behind.

    older_than: seconds. An upload has no row yet: what is younger may be one. A store that is away is no failure.
    """
    return (_sweep(engine, record, older_than) + leftovers(engine)).pieces


def clean(engine: Engine, name: str) -> Freed:
    """Remove every artifact of a study that is not open, its adapters too.

    Raises:
        FoldtuneError: it is open, or there is none of that name.
    """
    with transaction(engine) as connection:
        record = queries.lock_study(connection, queries.study(connection, name).id)
        if record.state != "open":
            _doom_all(connection, record)
    if record.state == "open":
        message = f"study {name!r} is open, and its trials go on from what clean removes"
        raise FoldtuneError(message, help=f"`foldtune stop {name}` first", code=USAGE)
    return _collect(engine, record) + _sweep(engine, record, 0.0)


def cleanable(engine: Engine, names: Sequence[str] = ()) -> dict[str, int]:
    """How many adapters each of these studies has; without names, each study that is not open. Raises NoStudy."""
    with transaction(engine) as connection:
        for name in names:
            queries.study(connection, name)
        rows = connection.execute(
            text(
                "SELECT s.name, count(a.id) FROM study s LEFT JOIN unit u ON u.study = s.id "
                "LEFT JOIN artifact a ON a.unit = u.id AND a.kind = 'adapter' AND NOT a.doomed "
                "WHERE s.name = ANY(:names) OR (:every AND s.state <> 'open') GROUP BY s.id ORDER BY s.created_at, s.id"
            ),
            {"names": list(names), "every": not names},
        )
        return {str(name): int(count) for name, count in rows}


def elsewhere(engine: Engine, name: str) -> list[str]:
    """Where pieces of a cleaned study still are: hosts that have their own, and the store itself if it was away."""
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT DISTINCT coalesce(a.host, 'the store, which is away') FROM artifact a "
                "JOIN unit u ON u.id = a.unit JOIN study s ON s.id = u.study "
                "WHERE s.name = :name AND a.doomed ORDER BY 1"
            ),
            {"name": name},
        )
        return [str(host) for host in rows.scalars()]


def forget(connection: Connection, record: StudyRecord) -> None:
    """Remember the folder of a study that the caller's transaction deletes, until `leftovers` has emptied it."""
    connection.execute(
        text("INSERT INTO leftover (folder, store) VALUES (:folder, :store) ON CONFLICT DO NOTHING"),
        {"folder": places.own_folder(record), "store": record.artifacts["store"]},
    )


def leftovers(engine: Engine) -> Freed:
    """Delete what deleted studies have left on this machine and in their stores.

    A row outlives its folder: another machine may have one too, and a worker that has not heard of the deletion may
    upload once more. A look at a disk costs next to nothing; a URL is asked until it was empty an hour later.
    """
    with transaction(engine) as connection:
        query = "SELECT folder, store, emptied, deleted_at < now() - interval '1 hour' AS late FROM leftover"
        rows = connection.execute(text(query)).all()
    freed = Freed()
    for folder, store, emptied, late in rows:
        with contextlib.suppress(OutsideStore):
            where = places.at(store, folder)
            for files in where.files:
                if files.far and emptied:
                    continue
                here = _remove(files, 0.0)
                files.discard()
                if files.far and late and here == Freed():
                    _emptied(engine, folder)
                freed += here or Freed()
    return freed


def _emptied(engine: Engine, folder: str) -> None:
    with transaction(engine) as connection:
        connection.execute(text("UPDATE leftover SET emptied = true WHERE folder = :folder"), {"folder": folder})


def _doom_all(connection: Connection, record: StudyRecord) -> None:
    connection.execute(
        text("UPDATE artifact SET doomed = true FROM unit u WHERE artifact.unit = u.id AND u.study = :study"),
        {"study": record.id},
    )


def _collect(engine: Engine, record: StudyRecord) -> Freed:
    where = places.store(record)
    with transaction(engine) as connection:
        sizes = connection.execute(
            text(
                "DELETE FROM artifact USING unit u WHERE artifact.unit = u.id AND u.study = :study "
                "AND doomed AND content IS NOT NULL RETURNING artifact.bytes"
            ),
            {"study": record.id},
        ).scalars()
        embedded = [int(size) for size in sizes]
        rows = connection.execute(
            text(
                "SELECT a.id, a.unit, a.kind, a.epoch, a.step, a.sha256, a.bytes, false AS embedded, a.place, a.host "
                "FROM artifact a JOIN unit u ON u.id = a.unit WHERE u.study = :study AND a.doomed ORDER BY a.id"
            ),
            {"study": record.id},
        )
        pieces = [Piece.from_row(dict(row)) for row in rows.mappings()]
    freed = Freed(len(embedded), sum(embedded))
    for piece in pieces:
        if _file_gone(where, piece) and _row_gone(engine, piece):
            freed += Freed(1, piece.bytes)
    return freed


def _file_gone(where: Store, piece: Piece) -> bool:
    """Delete the file of a doomed row; False: it may still be there."""
    try:
        place = where.find(piece)
    except OutsideStore:
        return True  # no file of ours
    if place is None:
        return False
    files, name = place
    if files is where.shared and not files.there():
        return False  # not mounted here
    try:
        files.remove(name)
    except OSError:
        return False
    return True


def _row_gone(engine: Engine, piece: Piece) -> bool:
    """Delete a row, unless a later upload has taken it over meanwhile or somebody else was faster."""
    with transaction(engine) as connection:
        query = text("DELETE FROM artifact WHERE id = :id AND doomed AND place = :place")
        return connection.execute(query, {"id": piece.id, "place": piece.place}).rowcount == 1


def _sweep(engine: Engine, record: StudyRecord, older_than: float) -> Freed:
    freed = Freed()
    for files in places.store(record).files:
        freed += _remove(files, older_than, lambda: _named(engine, record)) or Freed()
    return freed


def _named(engine: Engine, record: StudyRecord) -> set[str]:
    """The names of all files that a row of the study stands for, wherever they are."""
    with transaction(engine) as connection:
        query = "SELECT a.place FROM artifact a JOIN unit u ON u.id = a.unit WHERE u.study = :study AND place <> ''"
        found = connection.execute(text(query), {"study": record.id}).scalars()
        return {str(place).rpartition("/")[2] for place in found}


def _remove(files: Files, older_than: float, named: Callable[[], set[str]] = set) -> Freed | None:
    """Delete the artifacts' files of a folder that are old enough and not named; None: it cannot be read."""
    try:
        found = [entry for entry in files.entries() if entry.age >= older_than and _ours(entry.name)]
    except OSError:
        return None
    # Asked after the folder was listed: a file written in between is not in the list, one recorded is named.
    keep = named() if found else set()
    freed = Freed()
    for entry in found:
        if entry.name not in keep:
            with contextlib.suppress(OSError):
                files.remove(entry.name)
                freed += Freed(1, entry.bytes)
    return freed


def _ours(name: str) -> bool:
    return bool(OURS.fullmatch(name) or OURS_UNFINISHED.fullmatch(name))
