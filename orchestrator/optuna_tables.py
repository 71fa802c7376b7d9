"""Optuna's tables, read and written as they are: what its own functions do trial by trial, or reading all of a study.

Optuna's storage takes a hundred statements and a dozen commits to end a trial, and optuna-dashboard's `save_note` reads
the notes of every trial to write one. The tables are those of Optuna 5; who else reads them reads them through Optuna.
Connections have Optuna's schema in their search path, and the caller keeps others from writing the same study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

KEY = "foldtune"  # user attribute that ties an Optuna trial to foldtune's row
NOTE_LENGTH = 2045  # characters of a note, or of a figure, in one row, as optuna-dashboard reads it
NOTE_ROWS = 64  # of an older, longer note that a person may have written
PLOTTED = "foldtune:plotted:"  # system attribute of a study: what its figure of this name shows


@dataclass(frozen=True, kw_only=True)
class End:
    """How a trial ended, in Optuna's words."""

    state: str  # COMPLETE, PRUNED or FAIL
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)  # step -> value
    marks: Mapping[str, Any] = field(default_factory=dict)  # system attributes


def complete(connection: Connection) -> bool:
    """Whether Optuna's tables are there, to the last that it writes when it makes them; on any connection."""
    there = (
        "SELECT to_regclass('public.version_info') IS NOT NULL AND to_regclass('public.alembic_version') IS NOT NULL"
    )
    written = "SELECT EXISTS (SELECT 1 FROM public.version_info) AND EXISTS (SELECT 1 FROM public.alembic_version)"
    return bool(_scalar(connection, there)) and bool(_scalar(connection, written))


def start_trial(
    connection: Connection, study: int, params: Mapping[str, tuple[float, str]], attributes: Mapping[str, Any]
) -> int:
    """The number of a new trial, RUNNING. params: name -> (value as Optuna stores it, its distribution as JSON)."""
    # Numbers are counted: whoever makes a trial of a study holds this lock, and Optuna's own scripts do so too.
    connection.execute(text("SELECT 1 FROM studies WHERE study_id = :study FOR UPDATE"), {"study": study})
    trial, number = connection.execute(
        text(
            "INSERT INTO trials (number, study_id, state, datetime_start) "
            "SELECT count(*), :study, 'RUNNING', now() AT TIME ZONE 'utc' FROM trials WHERE study_id = :study "
            "RETURNING trial_id, number"
        ),
        {"study": study},
    ).one()
    connection.execute(
        text(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "SELECT :trial, name, value, kind FROM unnest(CAST(:names AS text[]), CAST(:values AS double precision[]), "
            "CAST(:kinds AS text[])) AS given(name, value, kind)"
        ),
        {
            "trial": trial,
            "names": list(params),
            "values": [value for value, _ in params.values()],
            "kinds": [kind for _, kind in params.values()],
        },
    )
    _upsert(connection, "trial_user_attributes", "trial_id", trial, attributes)
    return int(number)


def end_trial(
    connection: Connection,
    study: int,
    number: int,
    end: End,
    chosen: Mapping[str, tuple[float, str]],
    attributes: Mapping[str, Any],
    note: str,
) -> None:
    """End a trial that runs, with all that is to be said of it; nothing where it does not run.

    chosen: parameters whose values are only known now, as `start_trial` has them.
    """
    trial = _scalar(
        connection,
        "SELECT trial_id FROM trials WHERE study_id = :study AND number = :number AND state = 'RUNNING' FOR UPDATE",
        study=study,
        number=number,
    )
    if trial is None:
        return
    for name, (value, _) in chosen.items():
        connection.execute(
            text("UPDATE trial_params SET param_value = :value WHERE trial_id = :trial AND param_name = :name"),
            {"value": value, "trial": trial, "name": name},
        )
    _upsert(connection, "trial_user_attributes", "trial_id", trial, attributes)
    _upsert(connection, "trial_system_attributes", "trial_id", trial, end.marks)
    if end.reports:
        kinds = [_kind(value) for value in end.reports.values()]
        connection.execute(
            text(
                "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
                "SELECT :trial, step, value, CAST(kind AS trialintermediatevaluetype) FROM unnest(CAST(:steps AS "
                "integer[]), CAST(:values AS double precision[]), CAST(:kinds AS text[])) AS given(step, value, kind) "
                "ON CONFLICT (trial_id, step) DO NOTHING"
            ),
            {
                "trial": trial,
                "steps": list(end.reports),
                "values": [
                    value if kind == "FINITE" else None for value, kind in zip(end.reports.values(), kinds, strict=True)
                ],
                "kinds": kinds,
            },
        )
    if end.value is not None:
        kind = _kind(end.value)
        connection.execute(
            text(
                "INSERT INTO trial_values (trial_id, objective, value, value_type) "
                "VALUES (:trial, 0, :value, CAST(:kind AS trialvaluetype)) ON CONFLICT (trial_id, objective) "
                "DO UPDATE SET value = excluded.value, value_type = excluded.value_type"
            ),
            {"trial": trial, "value": end.value if kind == "FINITE" else None, "kind": kind},
        )
    write_note(connection, study, trial, note)
    connection.execute(
        text(
            "UPDATE trials SET state = CAST(:state AS trialstate), datetime_complete = now() AT TIME ZONE 'utc' "
            "WHERE trial_id = :trial"
        ),
        {"state": end.state, "trial": trial},
    )


def _kind(value: float) -> str:
    if math.isnan(value):
        return "NAN"
    return "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"


def write_note(connection: Connection, study: int, trial: int | None, note: str) -> None:
    """The words that optuna-dashboard shows beside a trial, or beside the study (trial None)."""
    place = "dashboard" if trial is None else f"dashboard:{trial}"
    first = "dashboard:note_str:" if trial is None else f"{place}:note_str:"
    parts = [note[start : start + NOTE_LENGTH] for start in range(0, len(note), NOTE_LENGTH)]
    _upsert(
        connection,
        "study_system_attributes",
        "study_id",
        study,
        {f"{first}{index}": part for index, part in enumerate(parts)},
    )
    connection.execute(
        text(
            "INSERT INTO study_system_attributes AS a (study_id, key, value_json) VALUES (:study, :key, '1') "
            "ON CONFLICT (study_id, key) DO UPDATE SET value_json = CAST(CAST(a.value_json AS integer) + 1 AS text)"
        ),
        {"study": study, "key": f"{place}:note_ver"},
    )
    connection.execute(
        text("UPDATE study_system_attributes SET value_json = '\"\"' WHERE study_id = :study AND key = ANY(:keys)"),
        {"study": study, "keys": [f"{first}{index}" for index in range(len(parts), NOTE_ROWS)]},
    )


def plotted(connection: Connection, study: int, name: str) -> str | None:
    """What `write_plot` was last told that this figure shows; None: there is no such figure."""
    query = "SELECT value_json FROM study_system_attributes WHERE study_id = :study AND key = :key"
    found = _scalar(connection, query, study=study, key=PLOTTED + name)
    return None if found is None else str(json.loads(found))


def write_plot(connection: Connection, study: int, name: str, figure: Mapping[str, Any], shows: str) -> None:
    """A figure that optuna-dashboard shows with the study, in the place of what had this name. figure: as plotly.js.

    name: letters, digits, hyphens. shows: for `plotted`.
    """
    body = json.dumps(figure, allow_nan=False)
    prefix = f"dashboard:plot_data:{name}:"
    parts = [body[start : start + NOTE_LENGTH] for start in range(0, len(body), NOTE_LENGTH)]
    rows = {f"{prefix}{index}": part for index, part in enumerate(parts)}
    connection.execute(
        text(
            "UPDATE study_system_attributes SET value_json = '\"\"' "
            "WHERE study_id = :study AND starts_with(key, :prefix) AND key <> ALL(:keys)"
        ),
        {"study": study, "prefix": prefix, "keys": list(rows)},
    )
    _upsert(connection, "study_system_attributes", "study_id", study, {**rows, PLOTTED + name: shows})


def _upsert(connection: Connection, table: str, owner: str, of: int, attributes: Mapping[str, Any]) -> None:
    if not attributes:
        return
    connection.execute(
        text(
            f"INSERT INTO {table} ({owner}, key, value_json) "  # noqa: S608
            "SELECT :of, key, value FROM unnest(CAST(:keys AS text[]), CAST(:values AS text[])) AS given(key, value) "
            f"ON CONFLICT ({owner}, key) DO UPDATE SET value_json = excluded.value_json"
        ),
        {"of": of, "keys": list(attributes), "values": [json.dumps(value) for value in attributes.values()]},
    )


def is_whole(connection: Connection, study: int, ends: Mapping[int, str]) -> bool:
    """Whether Optuna has all trials that it ever had: none is missing between its first and last number.

    ends: our lowest and our highest number, and the keys that stand there.
    """
    [(count, highest)] = _pairs(
        connection, study, "SELECT count(*), coalesce(max(number), -1) FROM trials WHERE study_id = :study"
    )
    if count <= highest or highest < max(ends, default=-1):
        return False
    rows = _pairs(
        connection,
        study,
        "SELECT t.number, a.value_json FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
        "WHERE t.study_id = :study AND a.key = :key AND t.number = ANY(:numbers)",
        numbers=list(ends),
    )
    return {number: json.loads(key) for number, key in rows} == ends


def numbers(connection: Connection, study: int) -> dict[str, int]:
    """Of all Optuna trials that foldtune made here: key -> number."""
    rows = _pairs(
        connection,
        study,
        "SELECT a.value_json, t.number FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
        "WHERE t.study_id = :study AND a.key = :key",
    )
    return {json.loads(key): number for key, number in rows}


def running(connection: Connection, study: int) -> dict[int, str | None]:
    """Of the Optuna trials that run: number -> key. None: somebody else's."""
    rows = _pairs(
        connection,
        study,
        "SELECT t.number, a.value_json FROM trials t "
        "LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = :key "
        "WHERE t.study_id = :study AND t.state = 'RUNNING' ORDER BY t.number",
    )
    return {number: None if key is None else json.loads(key) for number, key in rows}


def _pairs(connection: Connection, study: int, query: str, **values: Any) -> Sequence[tuple[Any, Any]]:
    rows = connection.execute(text(query), {"study": study, "key": KEY, **values})
    return [(left, right) for left, right in rows]


def _scalar(connection: Connection, query: str, **values: Any) -> Any:
    return connection.execute(text(query), values).scalar()
