"""Trained weights and states to go on from: stored, found again, and (in `cleaning`) thrown away.

A file is written before its row and deleted before its row. What a crash leaves is thus either a file that no row
names, which `cleaning.sweep` deletes, or a doomed row without a file, which `cleaning.collect` deletes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator import durable, queries
from orchestrator.cleaning import collect, prune, sweep
from orchestrator.contract import Checkpoint
from orchestrator.database.engine import transaction
from orchestrator.errors import CANNOT_WRITE, FoldtuneError
from orchestrator.places import OutsideStore, Piece, Store, Stored, store
from orchestrator.records import Lease, StudyRecord

__all__ = ["Store", "Stored", "collect", "discard", "fetch", "prune", "record", "store", "sweep", "upload"]

STATES = 2  # of each unit: the newest one, and one to go back to


def upload(record: StudyRecord, checkpoint: Checkpoint) -> Stored:
    """Bring a checkpoint's bytes where they belong. Knows no database: no row names them yet, see `record`.

    Raises:
        FoldtuneError: the store is full or away, or the file is not what the trainer wrote (exit code 73). Nothing
            of it stays; the unit goes on without this checkpoint.
    """
    try:
        content = Path(checkpoint.path).read_bytes()
        found = durable.sha256(content)
        if (len(content), found) != (checkpoint.bytes, checkpoint.sha256):
            raise OSError(f"{checkpoint.path} is damaged ({_wrong(checkpoint, len(content), found)})")
        return store(record).put(checkpoint, content)
    except OSError as error:
        what = f"{error.strerror}: {error.filename or checkpoint.path}" if error.strerror else str(error)
        message = f"the {checkpoint.kind} checkpoint of epoch {checkpoint.epoch} cannot be stored: {what}"
        raise FoldtuneError(message, help="the score does not depend on it", code=CANNOT_WRITE) from error


def discard(record: StudyRecord, stored: Stored) -> None:
    """Delete what `upload` wrote and `record` never will name: the lease was lost meanwhile. Never fails."""
    with contextlib.suppress(OSError, OutsideStore):
        where = store(record)
        files = where.shared if stored.host is None else where.local
        if stored.place is not None and files is not None:
            files.remove(stored.place.rpartition("/")[2])


def record(connection: Connection, lease: Lease, checkpoint: Checkpoint, stored: Stored) -> bool:
    """Insert the row of an uploaded checkpoint, inside the caller's fenced transaction. Idempotent.

    False: an earlier call of this lease did so, and its upload stays; this one's has no row, see `discard`.

    Older resume states of the unit go, but for one. Newer ones stay: they are of a course that could not be gone on
    with from here, and go when this one passes them. A row of the same place in the course is replaced by a later
    lease: that could not read it, or it would not have trained this epoch again.

    Raises:
        FoldtuneError: the database has no room for it (exit code 73). The caller's transaction is as it was before,
            and may go on: the score must not be lost with the weights.
    """
    if stored.content is not None:  # the server takes the time in which it receives a statement for idleness
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '600s'"))
    try:
        with connection.begin_nested():
            inserted = _insert(connection, lease, checkpoint, stored)
    except DBAPIError as error:
        if not str(getattr(error.orig, "pgcode", None) or "").startswith(("53", "54")):  # no resources, over a limit
            raise
        said = str(error.orig).strip().partition("\n")[0]
        message = f"the {checkpoint.kind} checkpoint of epoch {checkpoint.epoch} cannot be stored: {said}"
        raise FoldtuneError(message, help="the score does not depend on it", code=CANNOT_WRITE) from error
    if checkpoint.kind == "resume":
        connection.execute(
            text(
                "UPDATE artifact SET doomed = true WHERE id IN (SELECT id FROM artifact WHERE unit = :unit "
                "AND kind = 'resume' AND NOT doomed AND (epoch, step) <= (:epoch, :step) "
                "ORDER BY epoch DESC, step DESC OFFSET :states)"
            ),
            {"unit": lease.unit, "epoch": checkpoint.epoch, "step": checkpoint.step, "states": STATES},
        )
        connection.execute(
            text("DELETE FROM artifact WHERE unit = :unit AND doomed AND content IS NOT NULL"), {"unit": lease.unit}
        )

    return inserted


def _insert(connection: Connection, lease: Lease, checkpoint: Checkpoint, stored: Stored) -> bool:
    done = connection.execute(
        text(
            "INSERT INTO artifact AS old (unit, kind, epoch, step, lease_epoch, sha256, bytes, content, place, host) "
            "VALUES (:unit, :kind, :epoch, :step, :lease_epoch, :sha256, :bytes, :content, :place, :host) "
            "ON CONFLICT (unit, kind, epoch, step) DO UPDATE SET lease_epoch = excluded.lease_epoch, "
            "sha256 = excluded.sha256, bytes = excluded.bytes, content = excluded.content, place = excluded.place, "
            "host = excluded.host, doomed = false, created_at = now() "
            "WHERE old.lease_epoch < excluded.lease_epoch OR old.doomed"
        ),
        {
            "unit": lease.unit,
            "kind": checkpoint.kind,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "lease_epoch": lease.epoch,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.bytes,
            "content": stored.content,
            "place": stored.place,
            "host": stored.host,
        },
    )
    return bool(done.rowcount)


def fetch(
    engine: Engine, record: StudyRecord, unit: int, folder: Path, say: Callable[[str], None]
) -> Checkpoint | None:
    """The newest intact state of a unit, as a file in `folder`; None: begin anew.

    What is damaged or missing is passed over, with one line for each.

    Raises:
        OSError: `folder` cannot be written. FoldtuneError: the database is away.
    """
    where = store(record)
    away, here = _states(engine, where, unit)
    found = None
    for index, piece in enumerate(here):
        wrong, content = _read(engine, where, piece)
        if content is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"resume-unit{unit}-e{piece.epoch}-s{piece.step}.safetensors"
            durable.write(path, content)
            found = Checkpoint(
                path=str(path),
                sha256=piece.sha256,
                bytes=piece.bytes,
                kind=piece.kind,
                epoch=piece.epoch,
                step=piece.step,
            )
            break
        after = here[index + 1] if index + 1 < len(here) else None
        say(
            f"checkpoint of unit {unit} at {_when(piece, after)} {wrong}; "
            + (f"going back to {_when(after, piece)}" if after else "beginning anew")
        )
    if away is not None and (found is None or away.age > (found.epoch, found.step)):
        say(
            f"the newest checkpoint of unit {unit}, of epoch {away.epoch}, is on {away.host} alone; "
            + (f"going on from epoch {found.epoch}, " if found else "beginning anew, ")
            + _cost(away.epoch - (found.epoch if found else 0))
        )
    return found


def _cost(epochs: int) -> str:
    return "an epoch is trained again" if epochs == 1 else f"{epochs or 'some steps, but no'} epochs are trained again"


def _when(piece: Piece, other: Piece | None) -> str:
    """Where in its course a piece is; the epoch is enough, unless the other has the same."""
    step = f", step {piece.step}" if other is not None and other.epoch == piece.epoch else ""
    return f"epoch {piece.epoch}{step}"


def _states(engine: Engine, where: Store, unit: int) -> tuple[Piece | None, list[Piece]]:
    """(the newest state that only another machine has, those that this one can have), the newest first."""
    with transaction(engine) as connection:
        rows = connection.execute(
            text(
                "SELECT id, unit, kind, epoch, step, sha256, bytes, content IS NOT NULL AS embedded, place, host "
                "FROM artifact WHERE unit = :unit AND kind = 'resume' AND NOT doomed ORDER BY epoch DESC, step DESC"
            ),
            {"unit": unit},
        )
        pieces = [Piece.from_row(dict(row)) for row in rows.mappings()]
    away: list[Piece] = []
    here: list[Piece] = []
    for piece in pieces:
        (here if _reachable(where, piece) else away).append(piece)
    return (away[0] if away else None), here


def _reachable(where: Store, piece: Piece) -> bool:
    try:
        return piece.embedded or where.find(piece) is not None
    except OutsideStore:
        return True  # `_read` says so


def _read(engine: Engine, where: Store, piece: Piece) -> tuple[str, bytes | None]:
    """(what is wrong, None), or ("", the verified bytes)."""
    try:
        content = _content(engine, piece) if piece.embedded else _from_file(where, piece)
    except OutsideStore:
        return "names a place outside the store", None
    except FileNotFoundError:
        return "is missing", None
    except OSError as error:
        return f"cannot be read ({error.strerror or error})", None
    if isinstance(content, int):  # not even its size is right
        return f"is damaged ({_wrong(piece, content, '')})", None
    sha256 = durable.sha256(content)
    if (len(content), sha256) != (piece.bytes, piece.sha256):
        return f"is damaged ({_wrong(piece, len(content), sha256)})", None
    return "", content


def _content(engine: Engine, piece: Piece) -> bytes:
    with transaction(engine) as connection:
        found = queries.scalar(connection, "SELECT content FROM artifact WHERE id = :id", id=piece.id)
    if found is None:  # pruned meanwhile
        raise FileNotFoundError
    return bytes(found)


def _from_file(where: Store, piece: Piece) -> bytes | int:
    """The bytes of a file; its size alone if that is wrong, whatever the size."""
    place = where.find(piece)
    if place is None:
        raise FileNotFoundError
    files, name = place
    size = files.size(name)
    return files.read(name, size) if size == piece.bytes else size


def _wrong(wanted: Piece | Checkpoint, size: int, sha256: str) -> str:
    if size != wanted.bytes:
        return f"{size} bytes, should be {wanted.bytes}"
    return f"sha256 {sha256[:12]}, should be {wanted.sha256[:12]}"
