"""JSONL, CSV, Parquet and hub datasets -> rows with their line numbers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BAD_DATA, BadInput, FoldtuneError, Problem
from orchestrator.spec import DataSource

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Row:
    """One row as the file has it."""

    line: int  # 1-based; for Parquet and the hub the row number
    values: Mapping[str, Any]


def read(source: DataSource, folder: Path) -> list[Row]:
    """All rows of a data source; a relative path is relative to `folder`.

    Raises:
        BadInput: missing, unreadable, of another format, or with broken lines (exit code 65).
    """
    kind = source.format or _kind(source, folder)
    if kind == "hub":
        return _hub(source)
    path = _local(source.path, folder)
    if not os.path.exists(path):
        raise _bad(source.path, f"no such file (looked for {path})")
    if not os.path.isfile(path):
        raise _bad(source.path, f"is {'a directory' if path.is_dir() else 'no regular file'}, expected a data file")
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise _bad(source.path, f"cannot be read: {_first_line(error)}") from None
    return {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind](raw, source.path)


def is_hub(path: str, format: object, folder: Path) -> bool:
    """Whether a data path means a dataset of the hub: it says so, or it is no file here and has no suffix."""
    if format is not None:
        return format == "hub"
    return not Path(path).suffix and not os.path.exists(_local(path, folder))


def _local(path: str, folder: Path) -> Path:
    return folder / os.path.expanduser(path)


def _kind(source: DataSource, folder: Path) -> str:
    if is_hub(source.path, source.format, folder):
        return "hub"
    path = Path(source.path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if os.path.isdir(_local(source.path, folder)):
        raise _bad(source.path, "is a directory, expected a data file")
    known = ", ".join(SUFFIXES)
    help = "name the format: `data.format: jsonl`, or hub for a dataset of the hub"
    raise _bad(source.path, f"suffix must be one of {known} — got {suffix!r}", help)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _bad(file: str, message: str, help: str = "", line: int = 0, column: int = 0) -> BadInput:
    problem = Problem(code="data", message=message, help=help, file=file, line=line, column=column)
    return BadInput([problem], code=BAD_DATA)


def _text(raw: bytes, file: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 at byte {error.start} (0x{raw[error.start]:02X})"
        raise _bad(file, message, "save the file as UTF-8", line) from None


def _jsonl(raw: bytes, file: str) -> list[Row]:
    text = _text(raw, file)
    if text.lstrip().startswith("["):
        raise _bad(file, "looks like one JSON list, expected one object a line", "write each row on its own line")
    rows, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # a ValueError: a number of more than 4300 digits
            column = getattr(error, "colno", 0)
            what = getattr(error, "msg", _first_line(error))
            problems.append(
                Problem(code="data-json", message=f"not valid JSON: {what}", file=file, line=number, column=column)
            )
            continue
        if isinstance(values, dict):
            rows.append(Row(number, values))
        else:
            message = f"a row must be an object {{...}} — got {line.strip()[:40]!r}"
            problems.append(Problem(code="data-json", message=message, file=file, line=number))
    if problems:
        rest = len(problems) - 5
        more = [Problem(code="data-json", message=f"and {rest} more lines", file=file)] if rest > 0 else []
        raise BadInput([*problems[:5], *more], code=BAD_DATA)
    return rows


def _csv(raw: bytes, file: str) -> list[Row]:
    text = _text(raw, file)
    if "\x00" in text:
        raise _bad(file, "holds the character U+0000", line=text.count("\n", 0, text.index("\x00")) + 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise _bad(file, f"column names repeat: {', '.join(header)}", line=1)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise _bad(file, f"{len(cells)} cells but {len(header)} columns", line=reader.line_num)
            rows.append(Row(reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise _bad(file, f"not valid CSV: {error}", line=reader.line_num) from None
    return rows


def _parquet(raw: bytes, file: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    if raw[:4] != b"PAR1":
        raise _bad(file, f"is not a Parquet file (starts with {raw[:4]!r})")
    try:
        rows = parquet.read_table(io.BytesIO(raw)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _bad(file, f"is a damaged Parquet file: {_first_line(error)}") from None
    return [Row(number, values) for number, values in enumerate(rows, start=1)]


def _hub(source: DataSource) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise FoldtuneError(
            f"{source.path!r} is no file here, and reading it from the hub needs the package datasets",
            help="check the path, or `pip install 'foldtune[hub]'`",
            code=BAD_DATA,
        ) from None
    try:
        table = datasets.load_dataset(source.path, split=source.split or "train")
    except Exception as error:  # the library raises many types; none of them is our bug
        raise _bad(source.path, f"cannot be loaded from the hub: {_first_line(error)}") from None
    return [Row(number, dict(values)) for number, values in enumerate(table, start=1)]
