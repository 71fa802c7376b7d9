"""Everything about a study that can be known, and be wrong, before a database is touched."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import dataset, folds, models, readers
from orchestrator.contract import ModelPin
from orchestrator.dataset import Snapshot
from orchestrator.errors import BadInput, Problem
from orchestrator.folds import FoldPlan
from orchestrator.study_file import LoadedStudy


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything `launch` writes, computed before it touches the database."""

    loaded: LoadedStudy
    snapshot: Snapshot
    plan: FoldPlan
    model: ModelPin


def check(loaded: LoadedStudy) -> tuple[Snapshot | None, list[str]]:
    """Data and model, as far as can be checked without torch, database and network: (snapshot, cautions).

    A dataset of the hub is not fetched: no snapshot then, and a caution.

    Raises:
        BadInput: with every problem found.
    """
    source = loaded.spec.data
    if readers.is_hub(source.path, source.format, loaded.folder):
        problems = _model_problems(loaded)
        if problems:
            raise BadInput(problems)
        return None, [f"{source.path!r} is a dataset of the hub: its rows are checked at launch"]
    return read(loaded)


def read(loaded: LoadedStudy) -> tuple[Snapshot, list[str]]:
    """The rows, frozen, and cautions about them; fetches a dataset of the hub. Raises BadInput like `check`."""
    wanted = loaded.spec
    problems = _model_problems(loaded)
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
    """Every check, then the fold plan and the model's commit or content hash: (prepared, cautions)."""
    snapshot, cautions = read(loaded)
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


def _model_problems(loaded: LoadedStudy) -> list[Problem]:
    found = models.check(loaded.spec.model, loaded.folder, loaded.document.file)
    return [loaded.problem(("model", "path"), problem.code, problem.message, problem.help) for problem in found]
