"""A study's rows on this machine's disk, as a worker needs them."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

from sqlalchemy import Engine, text

from orchestrator import augmentation, dataset, durable, queries
from orchestrator.database.engine import transaction
from orchestrator.errors import BAD_DATA, CANNOT_WRITE, USAGE, FoldtuneError
from orchestrator.records import StudyRecord


def fetch(engine: Engine, record: StudyRecord, folder: Path) -> Path:
    """The snapshot's JSONL in `folder`, verified by its sha256; downloaded once. That of a pool is put beside it.

    Raises:
        FoldtuneError: the rows cannot be had, or are not those the study began with (exit code 65), or not
            be written here (73).
    """
    if record.pool is not None:
        _fetch(engine, record, record.pool, folder)
    return _fetch(engine, record, record.snapshot, folder)


def content(engine: Engine, record: StudyRecord, sha256: str) -> bytes:
    """Rows with this sha256, of a study's snapshot or pool, from the database or read anew. Raises like `fetch`."""
    with transaction(engine) as connection:
        row = connection.execute(
            text("SELECT content FROM snapshot WHERE sha256 = :sha256"), {"sha256": sha256}
        ).one_or_none()
    if row is None:
        raise queries.NoStudy("the study was deleted meanwhile", code=USAGE)
    packed = row.content
    found = _reread(record, sha256) if packed is None else zlib.decompress(packed)
    if durable.sha256(found) != sha256:
        file = record.spec.data.path if sha256 == record.snapshot else record.spec.data.pool
        raise FoldtuneError(
            f"{file} changed since the study began (was {sha256[:12]}, is {durable.sha256(found)[:12]})",
            help="start a new study for the new rows",
            code=BAD_DATA,
        )
    return found


def place(folder: Path, sha256: str) -> Path:
    """Where rows with this sha256 are."""
    return folder / f"{sha256}.jsonl"


def _fetch(engine: Engine, record: StudyRecord, sha256: str, folder: Path) -> Path:
    path = place(folder, sha256)
    if path.exists() and durable.sha256(path.read_bytes()) == sha256:
        return path
    rows = content(engine, record, sha256)
    try:
        _write(path, rows)
    except OSError as error:
        raise FoldtuneError(
            f"the study's rows cannot be written to {folder}: {error.strerror}",
            help="set FOLDTUNE_HOME to a folder you may write to",
            code=CANNOT_WRITE,
        ) from None
    return path


def _reread(record: StudyRecord, sha256: str) -> bytes:
    spec = record.spec
    if sha256 != record.snapshot:
        pool = augmentation.pool(spec.data, Path(record.folder))
        return pool.content if pool else b""
    return dataset.snapshot(spec.data, spec.task, Path(record.folder), spec.seed).content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)  # workers of one machine share the folder: none may see half a file
