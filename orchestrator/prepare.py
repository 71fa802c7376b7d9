"""Everything about a study that can be known, and be wrong, before a database is touched."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import augmentation, comparing, dataset, folds, forms, models, reach, readers, sizes, stores
from orchestrator.augmentation import Pool
from orchestrator.contract import ModelPin, WriterPin
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
    models: tuple[ModelPin, ...]
    writers: dict[str, WriterPin]  # models that write training rows, by name
    pool: Pool | None

    @property
    def model(self) -> ModelPin:
        """The only one, or the first."""
        return self.models[0]


def check(loaded: LoadedStudy) -> tuple[Snapshot | None, list[str]]:
    """Data and model, as far as can be checked without torch, database and network: (snapshot, cautions).

    A dataset of the hub is not fetched: no snapshot then, and a caution.

    Raises:
        BadInput: with every problem found.
    """
    source = loaded.spec.data
    if readers.is_hub(source.path, source.format, loaded.folder):
        problems = [*_model_problems(loaded), *_store_problems(loaded)]
        if problems:
            raise BadInput(problems)
        caution = f"{source.path!r} is a dataset of the hub: its rows are checked at launch"
        return None, [caution, *_model_cautions(loaded)]
    return read(loaded)


def read(loaded: LoadedStudy) -> tuple[Snapshot, list[str]]:
    """The rows, frozen, and cautions about them; fetches a dataset of the hub. Raises BadInput like `check`."""
    wanted = loaded.spec
    problems = [*_model_problems(loaded), *_store_problems(loaded)]
    try:
        snapshot = dataset.snapshot(wanted.data, wanted.task, loaded.folder, wanted.seed)
    except BadInput as error:
        if problems:
            raise BadInput([*problems, *error.problems]) from None
        raise
    problems += augmentation.problems(loaded, snapshot)
    augmentation.pool(wanted.data, loaded.folder)
    errors, cautions = folds.problems(snapshot.rows, wanted.cross_validation.folds, snapshot.labels, snapshot.groups)
    if wanted.objective == "entity_f1" and not forms.are_bio(snapshot.classes):
        message = f"'entity_f1' needs tags O, B-TYPE and I-TYPE — got {', '.join(snapshot.classes[:5])}"
        problems.append(loaded.problem(("objective",), "objective", message))
    problems += [loaded.problem(("cross_validation", "folds"), "folds", message) for message in errors]
    if problems:
        raise BadInput(problems)
    if not wanted.cross_validation.stratify:
        cautions = []
    return snapshot, [*snapshot.cautions, *cautions, *_model_cautions(loaded)]


def prepare(loaded: LoadedStudy) -> tuple[Prepared, list[str]]:
    """Every check, then the fold plan and the model's commit or content hash: (prepared, cautions).

    The artifacts' store is used once, so that a study does not begin that could keep nothing.
    """
    snapshot, cautions = read(loaded)
    wrong = stores.probe(stores.resolved(loaded.spec.artifacts.store, loaded.folder))
    if wrong:
        raise BadInput([_store_problem(loaded, wrong)])
    wanted = loaded.spec.cross_validation
    stratified = snapshot.strata if wanted.stratify else None
    plan = folds.plan(
        snapshot.rows,
        wanted.folds,
        repeats=wanted.repeats,
        seed=wanted.seed,
        labels=stratified,
        groups=snapshot.groups,
    )
    pins = tuple(models.pin(source, loaded.folder) for source in loaded.spec.sources)
    wrong = comparing.problem(loaded.spec, loaded.folder, pins)
    if wrong:
        raise BadInput([loaded.problem(("model",), "model", wrong)])
    for source, pin in zip(loaded.spec.sources, pins, strict=True):
        if pin.origin == "hub":
            cautions = [*cautions, *reach.cautions(loaded.spec, source, loaded.folder, pin)]
    prepared = Prepared(
        loaded=loaded,
        snapshot=snapshot,
        plan=plan,
        models=pins,
        writers=augmentation.pins(loaded),
        pool=augmentation.pool(loaded.spec.data, loaded.folder),
    )
    return prepared, [*cautions, *_size_cautions(loaded)]


def _model_problems(loaded: LoadedStudy) -> list[Problem]:
    own = [
        loaded.problem(
            ("model", "path") if loaded.spec.models is None else ("model", at, "path"), p.code, p.message, p.help
        )
        for at, source in enumerate(loaded.spec.sources)
        for p in models.check(source, loaded.folder, loaded.document.file)
    ]
    if not own and (wrong := comparing.problem(loaded.spec, loaded.folder)):
        own = [loaded.problem(("model",), "model", wrong)]
    return [*own, *augmentation.model_problems(loaded)]


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
