"""Everything about a study that can be known, and be wrong, before a database is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator import (
    augmentation,
    comparing,
    dataset,
    devices,
    folds,
    forecast,
    forms,
    generation_checks,
    models,
    preflight,
    reach,
    readers,
    sizes,
    stopping,
    stores,
    tokens,
)
from orchestrator.augmentation import Pool
from orchestrator.contract import ModelPin, WriterPin
from orchestrator.dataset import Snapshot
from orchestrator.document import Path_
from orchestrator.errors import BadInput, Problem
from orchestrator.findings import Finding
from orchestrator.folds import FoldPlan
from orchestrator.forecast import Forecast, Given
from orchestrator.spec import StudySpec
from orchestrator.study_file import LoadedStudy
from orchestrator.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything `launch` writes, computed before it touches the database."""

    loaded: LoadedStudy
    snapshot: Snapshot
    plan: FoldPlan
    models: tuple[ModelPin, ...]
    writers: dict[str, WriterPin]  # models that write training rows, by name
    pool: Pool | None
    tokens: tuple[Tokens, ...]  # of the rows, for each of the models

    @property
    def model(self) -> ModelPin:
        """The only one, or the first."""
        return self.models[0]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A study without errors. snapshot: None of a dataset of the hub, which is fetched at launch."""

    snapshot: Snapshot | None
    tokens: tuple[Tokens, ...]  # of the rows, for each of the models
    findings: tuple[Finding, ...]  # about the rows
    others: tuple[str, ...]  # cautions about all else
    forecast: Forecast | None

    @property
    def cautions(self) -> list[str]:
        """All of them, in words."""
        return [*map(str, self.findings), *self.others]


def check(loaded: LoadedStudy) -> Checked:
    """Data and model, as far as can be checked without torch, database and network.

    Raises:
        BadInput: with every problem found.
    """
    source = loaded.spec.data
    if readers.is_hub(source.path, source.format, loaded.folder):
        problems = [*_model_problems(loaded), *_store_problems(loaded)]
        if problems:
            raise BadInput(problems)
        caution = f"{source.path!r} is a dataset of the hub: its rows are checked at launch"
        others = (caution, *_model_cautions(loaded))
        return Checked(snapshot=None, tokens=(), findings=(), others=others, forecast=None)
    snapshot = read(loaded)
    pins = (None,) * len(loaded.spec.sources)
    counted = _tokens(loaded, snapshot, pins)
    return Checked(
        snapshot=snapshot,
        tokens=counted,
        findings=tuple(preflight.findings(loaded.spec, snapshot, counted)),
        others=tuple(_model_cautions(loaded)),
        forecast=expected(loaded, snapshot, counted, pins),
    )


def _tokens(loaded: LoadedStudy, snapshot: Snapshot, pins: Sequence[ModelPin | None]) -> tuple[Tokens, ...]:
    """Of the rows, for each of the study's models."""
    rows, task = snapshot.parsed, loaded.spec.task
    return tuple(
        tokens.count(source, loaded.folder, rows, task, pin)
        for source, pin in zip(loaded.spec.sources, pins, strict=True)
    )


def expected(
    loaded: LoadedStudy, snapshot: Snapshot, counted: Sequence[Tokens], pins: Sequence[ModelPin | None]
) -> Forecast:
    """What the study will cost on this machine, by sizes alone. counted, pins: of each of its models."""
    places = [models.files(source, loaded.folder, pin) for source, pin in zip(loaded.spec.sources, pins, strict=True)]
    try:
        kind, workers = devices.chosen_devices("auto")[0].kind, devices.default_workers("auto")
    except subprocess.TimeoutExpired:  # a driver that hangs is the worker's to report
        kind, workers = "cuda", 1
    pool = augmentation.pool(loaded.spec.data, loaded.folder)
    counts = given(snapshot, pool)
    each = [
        forecast.by_formula(loaded.spec, counts, own, None if where is None else sizes.model_size(where), kind, workers)
        for where, own in zip(places, counted, strict=True)
    ]
    return forecast.mean(each)


def given(snapshot: Snapshot, pool: Pool | None) -> Given:
    """What a forecast counts by."""
    return Given(rows=snapshot.rows, classes=len(snapshot.classes), pool=pool.rows if pool else 0)


def planned(spec: StudySpec, snapshot: Snapshot) -> FoldPlan:
    """The study's folds."""
    wanted = spec.cross_validation
    return folds.plan(
        snapshot.rows,
        wanted.folds,
        repeats=wanted.repeats,
        seed=wanted.seed,
        labels=snapshot.strata if wanted.stratify else None,
        groups=snapshot.groups,
    )


def read(loaded: LoadedStudy) -> Snapshot:
    """The rows, frozen; fetches a dataset of the hub. Raises BadInput like `check`."""
    wanted = loaded.spec
    problems = [*_model_problems(loaded), *_store_problems(loaded)]
    try:
        snapshot = dataset.snapshot(wanted.data, wanted.task, loaded.folder, wanted.seed)
    except BadInput as error:
        if problems:
            raise BadInput([*problems, *error.problems]) from None
        raise
    problems += [*augmentation.problems(loaded, snapshot), *generation_checks.problems(loaded, snapshot)]
    augmentation.pool(wanted.data, loaded.folder)
    errors, _ = folds.problems(snapshot.rows, wanted.cross_validation.folds, snapshot.labels, snapshot.groups)
    if wanted.objective == "entity_f1" and not forms.are_bio(snapshot.classes):
        message = f"'entity_f1' needs tags O, B-TYPE and I-TYPE — got {', '.join(snapshot.classes[:5])}"
        problems.append(loaded.problem(("objective",), "objective", message))
    problems += [loaded.problem(("cross_validation", "folds"), "folds", message) for message in errors]
    problems += _stopping_problems(loaded, snapshot.rows)
    if problems:
        raise BadInput(problems)
    return snapshot


def prepare(loaded: LoadedStudy) -> tuple[Prepared, list[str]]:
    """Every check, then the fold plan and the model's commit or content hash: (prepared, cautions).

    The artifacts' store is used once, so that a study does not begin that could keep nothing.
    """
    snapshot = read(loaded)
    wrong = stores.probe(stores.resolved(loaded.spec.artifacts.store, loaded.folder))
    if wrong:
        raise BadInput([_store_problem(loaded, wrong)])
    plan = planned(loaded.spec, snapshot)
    pins = tuple(models.pin(source, loaded.folder) for source in loaded.spec.sources)
    if wrong := comparing.problem(loaded.spec, loaded.folder, pins):
        raise BadInput([loaded.problem(("model",), "model", wrong)])
    counted = _tokens(loaded, snapshot, pins)
    cautions = [*map(str, preflight.findings(loaded.spec, snapshot, counted))]
    for at, (source, pin) in enumerate(zip(loaded.spec.sources, pins, strict=True)):
        if pin.origin == "hub":
            _refuse_family(loaded, at, pin)
        cautions += [*models.cautions(source), *reach.cautions(loaded.spec, source, loaded.folder, pin)]
    prepared = Prepared(
        loaded=loaded,
        snapshot=snapshot,
        plan=plan,
        models=pins,
        writers=augmentation.pins(loaded),
        pool=augmentation.pool(loaded.spec.data, loaded.folder),
        tokens=counted,
    )
    return prepared, [*dict.fromkeys(cautions), *_size_cautions(loaded)]


def _stopping_problems(loaded: LoadedStudy, rows: int) -> list[Problem]:
    """Too few rows to stop by, where a trial may stop early."""
    wanted, parts = loaded.spec, loaded.spec.cross_validation.folds
    share = min(wanted.extremes("stopping_share"))
    held = stopping.expected(rows, parts, share)
    if held >= stopping.LEAST or not max(wanted.extremes("patience")):
        return []
    message = (
        f"'patience' needs {stopping.LEAST} rows at least to stop by — "
        f"got {held}, {share:g} of the {rows - -(-rows // parts)} that a fold trains on"
    )
    where = ("search", "space", "patience") if "patience" in wanted.space else ("training", "patience")
    return [loaded.problem(where, "patience", message, "use a larger stopping_share, more rows, or patience: 0")]


def _model_problems(loaded: LoadedStudy) -> list[Problem]:
    own = [
        found
        for at, source in enumerate(loaded.spec.sources)
        for found in _of_model(
            loaded, at, models.check(source, loaded.folder, loaded.document.file, wanted=loaded.spec.task)
        )
    ]
    if not own and (wrong := comparing.problem(loaded.spec, loaded.folder)):
        own = [loaded.problem(("model",), "model", wrong)]
    return [*own, *augmentation.model_problems(loaded)]


def _of_model(loaded: LoadedStudy, at: int, found: list[Problem]) -> list[Problem]:
    """The same of the study's models, at its place in the file."""
    place: Path_ = ("model", "path") if loaded.spec.models is None else ("model", at, "path")
    return [loaded.problem(place, each.code, each.message, each.help) for each in found]


def _refuse_family(loaded: LoadedStudy, at: int, pin: ModelPin) -> None:
    """Of a model of the hub, whose configuration has come with its pin."""
    source = loaded.spec.sources[at]
    where = models.files(source, loaded.folder, pin)
    config = {} if where is None else models.json_object(where / "config.json")
    found = models.family_problems(source, config, loaded.spec.task, loaded.document.file)
    if found:
        raise BadInput(_of_model(loaded, at, found))


def _model_cautions(loaded: LoadedStudy) -> list[str]:
    said = [
        caution
        for source in loaded.spec.sources
        for caution in (*models.cautions(source), *reach.cautions(loaded.spec, source, loaded.folder))
    ]
    return list(dict.fromkeys(said))


def _store_problems(loaded: LoadedStudy) -> list[Problem]:
    wrong = stores.problem(stores.resolved(loaded.spec.artifacts.store, loaded.folder))
    return [_store_problem(loaded, wrong)] if wrong else []


def _store_problem(loaded: LoadedStudy, wrong: str) -> Problem:
    message = f"'artifacts.store' must be `database`, a folder that is there, or a URL that can be used — {wrong}"
    return loaded.problem(("artifacts", "store"), "store", message)


def _size_cautions(loaded: LoadedStudy) -> list[str]:
    """What it costs that states to go on from are too large for the database; nothing where they are not."""
    if loaded.spec.artifacts.store != stores.DATABASE:
        return []
    size = sizes.resume_state(loaded.spec, loaded.folder)
    if size is None or size <= stores.SMALL:
        return []
    return [
        f"a checkpoint takes about {size / 2**20:.0f} MiB, and the database takes pieces up to "
        f"{stores.SMALL // 2**20}: a unit whose worker dies starts its fold anew on another machine, "
        "unless `artifacts: {store: /shared/folder}` or a URL names a place that all of them see"
    ]
