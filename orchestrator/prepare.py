"""Everything about a study that can be known, and be wrong, before a database is touched."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import dataset, folds, models
from orchestrator.contract import ModelPin
from orchestrator.dataset import Snapshot
from orchestrator.errors import BadInput
from orchestrator.folds import FoldPlan
from orchestrator.study_file import LoadedStudy


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything `launch` writes, computed before it touches the database."""

    loaded: LoadedStudy
    snapshot: Snapshot
    plan: FoldPlan
    model: ModelPin


def check(loaded: LoadedStudy) -> tuple[Snapshot, list[str]]:
    """Data and model, as far as can be checked without torch, database and network: (snapshot, cautions).

    Raises:
        BadInput: with every problem found.
    """
    wanted = loaded.spec
    problems = models.check(wanted.model, loaded.folder, loaded.document.file)
    problems = [loaded.problem(("model", "path"), problem.code, problem.message, problem.help) for problem in problems]
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
