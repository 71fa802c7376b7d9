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
from orchestrator import dataset, folds, models, objective, projection, space, spec, study
from orchestrator.contract import ModelPin
from orchestrator.database.engine import transaction
from orchestrator.dataset import Snapshot
from orchestrator.errors import USAGE, BadInput, FoldtuneError, Problem
from orchestrator.folds import FoldPlan
from orchestrator.study_file import LoadedStudy


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything `launch` writes, computed before it touches the database."""

    loaded: LoadedStudy
    snapshot: Snapshot
    plan: FoldPlan
    model: ModelPin


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What `launch` did."""

    name: str
    created: bool
    messages: tuple[str, ...]


def check(loaded: LoadedStudy) -> tuple[Snapshot, list[str]]:
    """Data and model, as far as can be checked without torch, database and network: (snapshot, cautions).

    Raises:
        BadInput: with every problem found.
    """
    wanted = loaded.spec
    problems = models.check(wanted.model, loaded.folder, loaded.document.file)
    problems = [loaded.problem(("model",), problem.code, problem.message, problem.help) for problem in problems]
    try:
        snapshot = dataset.snapshot(wanted.data, wanted.task, loaded.folder, wanted.seed)
    except BadInput as error:
        if problems:
            raise BadInput([*problems, *error.problems]) from None
        raise
    errors, cautions = folds.problems(snapshot.rows, wanted.cross_validation.folds, snapshot.labels, snapshot.groups)
    problems += [loaded.problem(("cross_validation", "folds"), "folds", message) for message in errors]
    if problems:
        raise BadInput(problems)
    return snapshot, [*snapshot.cautions, *(cautions if wanted.cross_validation.stratify else [])]


def prepare(loaded: LoadedStudy) -> tuple[Prepared, list[str]]:
    """`check`, then the fold plan and the model's commit or content hash: (prepared, cautions)."""
    snapshot, cautions = check(loaded)
    wanted = loaded.spec.cross_validation
    stratified = snapshot.labels if wanted.stratify else None
    plan = folds.plan(
        snapshot.rows,
        wanted.folds,
        repeats=wanted.repeats,
        seed=wanted.seed,
        labels=stratified,
        groups=snapshot.groups,
    )
    model = models.pin(loaded.spec.model, loaded.folder)
    return Prepared(loaded=loaded, snapshot=snapshot, plan=plan, model=model), cautions


def launch(engine: Engine, prepared: Prepared) -> Launched:
    """Create the study, or find it and change nothing.

    Raises:
        FoldtuneError: the name belongs to a different study; says which keys differ.
    """
    name = prepared.loaded.spec.study
    with transaction(engine) as connection:
        found = _find(connection, name)
        if found is None:
            if study.exists(engine.url, name):
                raise FoldtuneError(
                    f"Optuna already has a study named {name!r} that foldtune did not make",
                    help="choose another name under `study:`",
                    code=USAGE,
                )
            found = _insert(connection, prepared)
        created = found is True
        messages = () if created else _same_or_refuse(found, prepared)
    projection.project(engine, name)
    return Launched(name=name, created=created, messages=messages)


def _find(connection: Connection, name: str) -> Any:
    row = connection.execute(text("SELECT * FROM study WHERE name = :name"), {"name": name})
    return row.mappings().one_or_none()


def _insert(connection: Connection, prepared: Prepared) -> Any:
    """True if this call inserted the study; the row if somebody else was faster."""
    wanted = prepared.loaded.spec
    snapshot = prepared.snapshot
    embedded = len(snapshot.content) <= dataset.EMBEDDED_BYTES
    connection.execute(
        text(
            "INSERT INTO snapshot (sha256, rows, bytes, content) VALUES (:sha256, :rows, :bytes, :content) "
            "ON CONFLICT (sha256) DO NOTHING"
        ),
        {
            "sha256": snapshot.sha256,
            "rows": snapshot.rows,
            "bytes": len(snapshot.content),
            "content": zlib.compress(snapshot.content) if embedded else None,
        },
    )
    study_id = connection.execute(
        text(
            "INSERT INTO study (name, digest, spec, source, model, snapshot, labels, folder, plan, plan_digest, "
            "floor, trials_total, hours_total, version) VALUES (:name, :digest, :spec, :source, :model, :snapshot, "
            ":labels, :folder, :plan, :plan_digest, :floor, :trials_total, :hours_total, :version) "
            "ON CONFLICT (name) DO NOTHING RETURNING id"
        ),
        {
            "name": wanted.study,
            "digest": wanted.digest(),
            "spec": wanted.model_dump_json(),
            "source": prepared.loaded.document.text,
            "model": json.dumps(asdict(prepared.model)),
            "snapshot": snapshot.sha256,
            "labels": json.dumps(snapshot.classes),
            "folder": str(prepared.loaded.folder),
            "plan": json.dumps({"folds": prepared.plan.folds, "assignment": prepared.plan.assignment}),
            "plan_digest": prepared.plan.digest(),
            "floor": json.dumps(_floor(prepared)),
            "trials_total": wanted.budget.trials,
            "hours_total": wanted.budget.hours,
            "version": foldtune.__version__,
        },
    ).scalar_one_or_none()
    if study_id is None:
        return _find(connection, wanted.study)
    _plan_trials(connection, study_id, wanted, prepared.plan)
    return True


def _floor(prepared: Prepared) -> Mapping[str, float] | None:
    labels = prepared.snapshot.labels
    if labels is None:
        return None
    return objective.majority(labels, (prepared.plan.split(repeat, fold) for repeat, fold in prepared.plan.units))


def _plan_trials(connection: Connection, study_id: int, wanted: spec.StudySpec, plan: FoldPlan) -> None:
    """The default configuration, and for a grid every point, as waiting trials with their units."""
    default, in_space = space.default_params(wanted.space)
    points = list(space.grid(wanted.space)) if wanted.search.sampler == "grid" else []
    if default not in points:
        insert_trial(connection, study_id, wanted, plan, default, origin="default", in_space=in_space, searched=False)
    for point in points:
        insert_trial(
            connection, study_id, wanted, plan, point, origin="grid", in_space=True, is_default=point == default
        )


def insert_trial(
    connection: Connection,
    study_id: int,
    wanted: spec.StudySpec,
    plan: FoldPlan,
    params: Mapping[str, Any],
    *,
    origin: str,
    in_space: bool = True,
    searched: bool = True,
    is_default: bool | None = None,
    duplicate_of: int | None = None,
) -> int:
    """A waiting trial with one unit for each fold (none if it repeats another trial); its id."""
    settings = space.settings(wanted.training, params)
    trial_id = connection.execute(
        text(
            "INSERT INTO trial (study, searched, is_default, in_space, origin, params, settings, configuration, "
            "duplicate_of) VALUES (:study, :searched, :is_default, :in_space, :origin, :params, :settings, "
            ":configuration, :duplicate_of) RETURNING id"
        ),
        {
            "study": study_id,
            "searched": searched,
            "is_default": origin == "default" if is_default is None else is_default,
            "in_space": in_space,
            "origin": origin,
            "params": json.dumps(params),
            "settings": json.dumps(asdict(settings)),
            "configuration": space.configuration_digest(settings),
            "duplicate_of": duplicate_of,
        },
    ).scalar_one()
    if duplicate_of is None:
        connection.execute(
            text("INSERT INTO unit (study, trial, repeat, fold) VALUES (:study, :trial, :repeat, :fold)"),
            [{"study": study_id, "trial": trial_id, "repeat": repeat, "fold": fold} for repeat, fold in plan.units],
        )
    return int(trial_id)


def _same_or_refuse(row: Mapping[str, Any], prepared: Prepared) -> tuple[str, ...]:
    """What to say about a study that is there already; refuse when it is not the same one."""
    wanted = prepared.loaded.spec
    stored = spec.StudySpec.model_validate(row["spec"])
    differing = spec.differing_keys(stored.identity(), wanted.identity())
    if row["snapshot"] != prepared.snapshot.sha256:
        differing.append(f"data: was {row['snapshot'][:12]}, is {prepared.snapshot.sha256[:12]} (sha256 of the rows)")
    if row["model"]["pin"] != prepared.model.pin:
        differing.append(f"model: was {row['model']['pin'][:12]}, is {prepared.model.pin[:12]} (its weights)")
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
    return tuple(messages)
