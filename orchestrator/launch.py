"""From a loaded study file to a study in the database. Idempotent: a crash leaves nothing, or what the next call
completes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

import foldtune
from orchestrator import baselines, dataset, epochs, objective, places, projection, queries, space, spec, stores, study
from orchestrator.augmentation import Pool
from orchestrator.database.engine import transaction
from orchestrator.errors import CANNOT_WRITE, USAGE, BadInput, FoldtuneError, Problem, printable
from orchestrator.prepare import Prepared
from orchestrator.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What `launch` did."""

    name: str
    created: bool
    messages: tuple[str, ...]


def launch(engine: Engine, prepared: Prepared) -> Launched:
    """Create the study, or find it and change nothing.

    Raises:
        FoldtuneError: the name belongs to a different study; says which keys differ. Or the study has no folder in
            its store, and none can be made; to launch it again makes one.
    """
    name = prepared.loaded.spec.study
    # Asked before the row is looked for: another launch commits its row first and makes its Optuna study after.
    in_optuna = study.exists(engine.url, name)
    with transaction(engine) as connection:
        found = _find(connection, name)
        if found is None:
            if in_optuna:
                raise FoldtuneError(
                    f"Optuna already has a study named {name!r} that foldtune did not make",
                    help="choose another name under `study:`",
                    code=USAGE,
                )
            found = _insert(connection, prepared)
        created = found is True
        messages = () if created else _same_or_refuse(found, prepared)
    _make_folder(engine, name)
    projection.project(engine, name)
    return Launched(name=name, created=created, messages=messages)


def _make_folder(engine: Engine, name: str) -> None:
    """Give the study its folder in a shared store. Workers make none, see `stores.Folder`."""
    with transaction(engine) as connection:
        files = places.store(queries.study(connection, name)).shared
    if files is not None:
        try:
            files.make()
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
            message = f"the study's artifacts have no folder: {where}"
            raise FoldtuneError(message, help="make it writable and launch again", code=CANNOT_WRITE) from None


def _find(connection: Connection, name: str) -> Any:
    row = connection.execute(text("SELECT * FROM study WHERE name = :name"), {"name": name})
    return row.mappings().one_or_none()


def _insert(connection: Connection, prepared: Prepared) -> Any:
    """True if this call inserted the study; the row if somebody else was faster."""
    wanted = prepared.loaded.spec
    snapshot, pool = prepared.snapshot, prepared.pool
    for rows in (snapshot, pool) if pool else (snapshot,):
        _insert_rows(connection, rows)
    study_id = connection.execute(
        text(
            "INSERT INTO study (name, digest, spec, source, model, snapshot, labels, folder, plan, plan_digest, "
            "floor, trials_total, hours_total, version, artifacts, writers, pool) "
            "VALUES (:name, :digest, :spec, :source, :model, :snapshot, :labels, :folder, :plan, "
            ":plan_digest, :floor, :trials_total, :hours_total, :version, :artifacts, :writers, :pool) "
            "ON CONFLICT (name) DO NOTHING RETURNING id"
        ),
        {
            "name": wanted.study,
            "digest": wanted.digest(),
            "spec": wanted.model_dump_json(),
            "source": prepared.loaded.document.text,
            "model": json.dumps(_pins(prepared)),
            "snapshot": snapshot.sha256,
            "labels": json.dumps(snapshot.classes),
            "folder": str(prepared.loaded.folder),
            "plan": json.dumps({"folds": prepared.plan.folds, "assignment": prepared.plan.assignment}),
            "plan_digest": prepared.plan.digest(),
            "floor": json.dumps(_floor(prepared)),
            "trials_total": wanted.budget.trials,
            "hours_total": wanted.budget.hours,
            "version": foldtune.__version__,
            "artifacts": json.dumps({**_artifacts(prepared), "folder": places.new_folder(wanted.study)}),
            "writers": json.dumps({name: asdict(each) for name, each in prepared.writers.items()}),
            "pool": pool.sha256 if pool else None,
        },
    ).scalar_one_or_none()
    if study_id is None:
        return _find(connection, wanted.study)
    _plan_trials(connection, queries.lock_study(connection, study_id))
    return True


def _insert_rows(connection: Connection, rows: dataset.Snapshot | Pool) -> None:
    embedded = len(rows.content) <= dataset.EMBEDDED_BYTES
    connection.execute(
        text(
            "INSERT INTO snapshot (sha256, rows, bytes, content) VALUES (:sha256, :rows, :bytes, :content) "
            "ON CONFLICT (sha256) DO NOTHING"
        ),
        {
            "sha256": rows.sha256,
            "rows": rows.rows,
            "bytes": len(rows.content),
            "content": zlib.compress(rows.content) if embedded else None,
        },
    )


def _artifacts(prepared: Prepared) -> dict[str, Any]:
    wanted = prepared.loaded.spec.artifacts
    return {"store": stores.resolved(wanted.store, prepared.loaded.folder), "keep": wanted.keep}


def _pins(prepared: Prepared) -> Any:
    """The model, or a list where the study has several."""
    return [asdict(pin) for pin in prepared.models] if prepared.loaded.spec.models else asdict(prepared.model)


def _floor(prepared: Prepared) -> Mapping[str, float] | None:
    labels = prepared.snapshot.labels
    if labels is None:
        return None
    return objective.majority(labels, (prepared.plan.split(repeat, fold) for repeat, fold in prepared.plan.units))


def _plan_trials(connection: Connection, record: StudyRecord) -> None:
    """Baselines, the default configuration, and for a grid every point, as waiting trials with their units."""
    by_text = record.spec.compared_by_text
    for name in baselines.wanted(record.spec.task, record.spec.baselines.run, by_text=by_text):
        chosen = baselines.params(name)
        insert_trial(connection, record, chosen, origin="baseline", in_space=False, searched=False)
    searched = record.spec.space
    default, in_space = space.default_params(searched)
    is_default = record.configuration(default)
    points: list[space.Params] = list(space.grid(searched)) if record.spec.search.sampler == "grid" else []
    if record.spec.share_epochs:
        points = epochs.families(points)
    configurations = [record.configuration(point) for point in points]
    if is_default not in configurations:
        insert_trial(connection, record, default, origin="default", is_default=True, in_space=in_space, searched=False)
    trained: dict[str, int] = {}  # two points may be one configuration: at rank 16, alpha 2r is alpha 32
    for point, configuration in zip(points, configurations, strict=True):
        first = trained.get(configuration)
        longest = {**point, "epochs": record.spec.most_epochs} if record.spec.share_epochs else point
        trial = insert_trial(
            connection,
            record,
            point,
            origin="grid",
            is_default=first is None and configuration == is_default,
            duplicate_of=first,
            run=trained.get(record.configuration(longest)),
            epoch=point["epochs"] if record.spec.share_epochs else None,
        )
        trained.setdefault(configuration, trial)


def insert_trial(
    connection: Connection,
    record: StudyRecord,
    params: Mapping[str, Any],
    *,
    origin: str,
    in_space: bool = True,
    searched: bool = True,
    is_default: bool = False,
    duplicate_of: int | None = None,
    run: int | None = None,
    epoch: int | None = None,
) -> int:
    """A waiting trial with one unit for each fold; its id.

    It has none if it repeats another trial, or if the run of another answers for it, up to its epoch.
    """
    settings = record.settings(params)
    trial_id = connection.execute(
        text(
            "INSERT INTO trial (study, searched, is_default, in_space, origin, params, settings, configuration, "
            "duplicate_of, run, epoch) VALUES (:study, :searched, :is_default, :in_space, :origin, :params, :settings, "
            ":configuration, :duplicate_of, "
            "coalesce(:run, (SELECT coalesce(o.run, o.id) FROM trial o WHERE o.id = :duplicate_of)), :epoch) "
            "RETURNING id"
        ),
        {
            "study": record.id,
            "searched": searched,
            "is_default": is_default,
            "in_space": in_space,
            "origin": origin,
            "params": json.dumps(params),
            "settings": json.dumps(asdict(settings)),
            "configuration": record.configuration(params),
            "duplicate_of": duplicate_of,
            "run": run,
            "epoch": epoch,
        },
    ).scalar_one()
    if duplicate_of is None and run is None:
        connection.execute(
            text("INSERT INTO unit (study, trial, repeat, fold) VALUES (:study, :trial, :repeat, :fold)"),
            [
                {"study": record.id, "trial": trial_id, "repeat": repeat, "fold": fold}
                for repeat, fold in record.plan.units
            ],
        )
    return int(trial_id)


def _same_or_refuse(row: Mapping[str, Any], prepared: Prepared) -> tuple[str, ...]:
    """What to say about a study that is there already; refuse when it is not the same one."""
    wanted = prepared.loaded.spec
    stored = spec.StudySpec.model_validate(row["spec"])
    differing = spec.differing_keys(stored.identity(), wanted.identity())
    if row["snapshot"] != prepared.snapshot.sha256:
        differing.append(f"data: was {row['snapshot'][:12]}, is {prepared.snapshot.sha256[:12]} (sha256 of the rows)")
    pins = row["model"] if isinstance(row["model"], list) else [row["model"]]
    for was, now in zip(pins, prepared.models, strict=False):
        if was["pin"] != now.pin:
            differing.append(f"model: was {was['pin'][:12]}, is {now.pin[:12]} (the weights of {now.path})")
    if row["writers"] != {name: asdict(each) for name, each in prepared.writers.items()}:
        differing.append("augmentation: its models are others (their weights or prompts)")
    if row["pool"] != (prepared.pool.sha256 if prepared.pool else None):
        differing.append("data.pool: its rows are others")
    if not differing and row["plan_digest"] != prepared.plan.digest():
        differing.append("folds: this machine's scikit-learn draws another split")
    if differing:
        place = prepared.loaded.document.file
        message = f"a different study named {wanted.study!r} exists: " + "; ".join(differing)
        help = f"choose another name, or `foldtune delete {wanted.study}`"
        raise BadInput([Problem(code="exists", message=message, help=help, file=place)])
    messages = [f"study {wanted.study!r} was launched before ({row['state']}); nothing was changed"]
    if (row["trials_total"], row["hours_total"]) != (wanted.budget.trials, wanted.budget.hours):
        hours = "" if wanted.budget.hours is None else f" --hours {wanted.budget.hours:g}"
        messages.append(
            f"its budget stays {row['trials_total']} trials"
            + (f", {row['hours_total']:g} hours" if row["hours_total"] else "")
            + f"; `foldtune resume {wanted.study} --trials {wanted.budget.trials}{hours}` changes it"
        )
    kept, asked = row["artifacts"], _artifacts(prepared)
    if any(kept[key] != value for key, value in asked.items()):
        place = printable(stores.shown(kept["store"]))
        messages.append(f"its artifacts stay as they were: store {place}, keep {kept['keep']}")
    return tuple(messages)
