"""A study's rows on this machine's disk, as a worker needs them."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

from sqlalchemy import Engine, text

from orchestrator import dataset, durable, queries
from orchestrator.database.engine import transaction
from orchestrator.errors import BAD_DATA, CANNOT_WRITE, USAGE, FoldtuneError
from orchestrator.records import StudyRecord


def fetch(engine: Engine, record: StudyRecord, folder: Path) -> Path:
    """The snapshot's JSONL in `folder`, verified by its sha256; downloaded once.

    Raises:
        FoldtuneError: the rows cannot be had, or are not those the study began with (exit code 65), or not
            be written here (73).
    """
    path = folder / f"{record.snapshot}.jsonl"
    if path.exists() and durable.sha256(path.read_bytes()) == record.snapshot:
        return path
    with transaction(engine) as connection:
        row = connection.execute(
            text("SELECT content FROM snapshot WHERE sha256 = :sha256"), {"sha256": record.snapshot}
        ).one_or_none()
    if row is None:
        raise queries.NoStudy("the study was deleted meanwhile", code=USAGE)
    packed = row.content
    content = _reread(record) if packed is None else zlib.decompress(packed)
    if durable.sha256(content) != record.snapshot:
        raise FoldtuneError(
            f"{record.spec.data.path} changed since the study began "
            f"(was {record.snapshot[:12]}, is {durable.sha256(content)[:12]})",
            help="start a new study for the new rows",
            code=BAD_DATA,
        )
    try:
        _write(path, content)
    except OSError as error:
        raise FoldtuneError(
            f"the study's rows cannot be written to {folder}: {error.strerror}",
            help="set FOLDTUNE_HOME to a folder you may write to",
            code=CANNOT_WRITE,
        ) from None
    return path


def _reread(record: StudyRecord) -> bytes:
    spec = record.spec
    return dataset.snapshot(spec.data, spec.task, Path(record.folder), spec.seed).content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)  # workers of one machine share the folder: none may see half a file
