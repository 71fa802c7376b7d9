"""A study file -> StudySpec. Every problem is found before anything is spent, and all are said at once.

`load` needs no database, no torch and no network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator import augmentation_checks, conditions, cross_checks, document, forms, hyperparameters, space
from orchestrator.document import Document, Path_
from orchestrator.errors import BadInput, Problem
from orchestrator.hyperparameters import MODEL
from orchestrator.space import Choices
from orchestrator.spec import Baselines, Budget, StudySpec

LATER = {
    "nested": "statistics",
}
RULES: Mapping[str, str] = {  # pydantic's kinds of error, in foldtune's words
    "bool_type": "must be true or false",
    "dict_type": "must be a map of keys",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "model_type": "must be a map of keys",
    "string_type": "must be text",
}


@dataclass(frozen=True)
class LoadedStudy:
    """A spec together with the file it came from."""

    spec: StudySpec
    document: Document
    folder: Path  # relative paths of the file are relative to this
    origins: Mapping[str, str]  # dotted key -> which value won: "default", "line 7", "searched, line 12"

    def problem(self, path: Path_, code: str, message: str, help: str = "") -> Problem:
        """A problem at a key of the file."""
        return self.document.problem(path, code, message, help)


def load(path: Path) -> LoadedStudy:
    """Read and validate a study file.

    Raises:
        BadInput: with every problem of the file, each with its line and column.
    """
    return resolve(document.read(path), path.resolve().parent)


def resolve(doc: Document, folder: Path) -> LoadedStudy:
    """The study of a document. Raises BadInput like `load`."""
    problems: list[Problem] = []
    raw = dict(doc.values)
    for key, topic in LATER.items():
        if key in raw:
            raw.pop(key)
            problems.append(doc.problem((key,), "later", f"'{key}' ({topic}) is not supported in this version"))
    training, names = _training(doc, raw.get("training"), problems)
    entries, entry_names = _search_space(doc, raw.get("search"), problems)
    several = _several_models(doc, raw, problems)
    raw["training"] = _complete(training, entries)
    if isinstance(raw.get("search"), dict):
        raw["search"] = {**raw["search"], "space": {name: entry.to_json() for name, entry in entries.items()}}
    if several is not None:
        entries, entry_names = {MODEL: several, **entries}, {MODEL: MODEL, **entry_names}
    waiting = _condition_problems(doc, entries, entry_names)
    problems += waiting
    for name in sorted(set(names) & set(entry_names)):
        problems.append(doc.problem(("training", names[name]), "both", f"'{name}' is both fixed and searched"))
    sound = {} if waiting else entries  # of what cannot be walked nothing more is said
    problems += cross_checks.check(doc, raw, sound, entry_names, folder)
    problems += augmentation_checks.check(doc, raw, sound, entry_names)
    spec: StudySpec | None = None
    try:
        spec = StudySpec.model_validate(raw)
    except ValidationError as error:
        problems += [_translate(doc, detail) for detail in _as_written(doc, error)]
    if problems or spec is None:
        problems.sort(key=lambda problem: (problem.line, problem.column))
        raise BadInput(problems)
    origins = _origins(doc, spec, names, entry_names)
    return LoadedStudy(_with_defaults(spec, entries), doc, folder, origins)


def smoke(loaded: LoadedStudy) -> LoadedStudy:
    """The same study made tiny: 1 trial, 2 folds, 1 epoch, 40 rows, under a name of its own."""
    spec = loaded.spec
    left = space.fixed(spec.space, "epochs", 1)
    if spec.search.sampler == "grid":
        left = {name: Choices(choices=(value,)) for name, value in next(space.grid(left)).items()}
    model = {} if MODEL in left and len(left[MODEL]) > 1 else {"models": None}  # a grid's first point has the first one
    searched = {name: entry.to_json() for name, entry in left.items() if name != MODEL}
    if not searched:  # only epochs were searched; the space needs one name
        searched = {"learning_rate": {"choices": [spec.training["learning_rate"]]}}
    training = _complete({**spec.training, "epochs": 1}, searched)
    limit = min(40, spec.data.limit or 40)
    small = spec.model_copy(
        update={
            "study": f"{spec.study[:40]}-smoke-{spec.digest()[:8]}",
            **model,
            "training": training,
            "search": spec.search.model_copy(update={"space": searched}),
            "cross_validation": spec.cross_validation.model_copy(update={"folds": 2, "repeats": 1}),
            "share_epochs": False,
            "baselines": Baselines(run=[]),
            "racing": spec.racing.model_copy(update={"first_folds": 1}),
            "data": spec.data.model_copy(update={"limit": limit}),
            "budget": Budget(trials=1, hours=spec.budget.hours),
        }
    )
    return dataclasses.replace(loaded, spec=small)


def _training(doc: Document, raw: Any, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, str]]:
    """Checked values by canonical name, and the name each was written under."""
    if raw is None:
        return {}, {}
    if not isinstance(raw, dict):
        message = f"'training' must be a map of hyperparameters — got {hyperparameters.show(raw)}"
        problems.append(doc.problem(("training",), "shape", message))
        return {}, {}
    written = _canonical_names(doc, ("training",), raw, problems)
    values = {}
    for name, key in written.items():
        value, problem = hyperparameters.check(name, raw[key])
        if problem:
            problems.append(doc.problem(("training", key), "value", problem))
        else:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values, written


def _search_space(doc: Document, search: Any, problems: list[Problem]) -> tuple[dict[str, space.Entry], dict[str, str]]:
    if not isinstance(search, dict):  # `StudySpec` says so
        return {}, {}
    if "space" not in search:
        problems.append(doc.problem(("search",), "missing-key", "missing 'search.space'"))
        return {}, {}
    raw = search["space"]
    if not isinstance(raw, dict) or not raw:
        rule = "'search.space' must be a map with at least one hyperparameter"
        message = f"{rule} — got {hyperparameters.show(raw)}"
        problems.append(doc.problem(("search", "space"), "shape", message))
        return {}, {}
    written = _canonical_names(doc, ("search", "space"), raw, problems)
    entries: dict[str, space.Entry] = {}
    for name, key in written.items():
        path: Path_ = ("search", "space", key)
        if not hyperparameters.FIELDS[name].metadata["searchable"]:
            problems.append(doc.problem(path, "fixed-only", f"'{name}' cannot be searched; set it under training"))
            continue
        entry, wrong = space.parse_entry(name, raw[key])
        problems += [doc.problem(path, "space", text) for text in wrong]
        if entry is not None:
            entries[name] = entry
    return entries, written


def _several_models(doc: Document, raw: dict[str, Any], problems: list[Problem]) -> Choices | None:
    """The choice between models, where the file has a list of them; in `raw` then the first one is `model`."""
    if "models" in raw:
        raw.pop("models")
        problems.append(doc.problem(("models",), "unknown-key", "unknown key 'models'", "write a list under `model`"))
    given = raw.get(MODEL)
    if not isinstance(given, list):
        return None
    if len(given) < 2:
        message = f"'model' as a list needs at least 2 models to choose from — got {len(given)}"
        problems.append(doc.problem((MODEL,), "model", message, "write the one model without a list"))
        raw[MODEL] = given[0] if given else "none"
        return None
    several = [{"path": each} if isinstance(each, str) else each for each in given]
    raw[MODEL], raw["models"] = several[0], several
    paths = [each.get("path") if isinstance(each, dict) else None for each in several]
    for at, path in enumerate(paths):
        if path is not None and path in paths[:at]:
            message = f"model {hyperparameters.show(path)} is given twice: a model is told by its path"
            problems.append(doc.problem((MODEL, at), "model", message))
    if not all(isinstance(path, str) and path for path in paths) or len(set(paths)) < len(paths):
        return None
    return Choices(choices=tuple(paths))


def _as_written(doc: Document, error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's errors by the places of the file, where a list of models stands under `model`."""
    details: list[dict[str, Any]] = [dict(detail) for detail in error.errors()]
    if not isinstance(doc.values.get(MODEL), list):
        return details
    several = [each for each in details if each["loc"][0] == "models"]
    rest = [each for each in details if each["loc"][0] not in (MODEL, "models")]
    return [*rest, *({**each, "loc": (MODEL, *each["loc"][1:])} for each in several)]


def _condition_problems(doc: Document, entries: space.Space, written: Mapping[str, str]) -> list[Problem]:
    """Conditions that do not fit the rest of the space; nothing while some entry could not be read."""
    if not written.keys() <= entries.keys():
        return []
    return [
        doc.problem(("search", "space", written[name], "when"), "when", message)
        for name, wrong in conditions.problems(entries).items()
        for message in wrong
    ]


def _canonical_names(doc: Document, path: Path_, raw: Mapping[str, Any], problems: list[Problem]) -> dict[str, str]:
    written: dict[str, str] = {}
    for key in raw:
        name = hyperparameters.canonical_name(key)
        if name is None:
            known = [*hyperparameters.FIELDS, *hyperparameters.ALIASES]
            near = hyperparameters.did_you_mean(key, known)
            help = "known keys: " + ", ".join(hyperparameters.FIELDS) if near.startswith("known") else near
            problems.append(doc.problem((*path, key), "unknown-key", f"unknown hyperparameter '{key}'", help))
        elif name in written:
            problems.append(
                doc.problem(
                    (*path, key),
                    "duplicate-key",
                    f"'{key}' and '{written[name]}' are the same hyperparameter",
                )
            )
        else:
            written[name] = key
    return written


def _complete(training: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyperparameter that is not searched, explicit or default."""
    return {
        name: training.get(name, field.default) for name, field in hyperparameters.FIELDS.items() if name not in entries
    }


def _with_defaults(spec: StudySpec, entries: Mapping[str, space.Entry]) -> StudySpec:
    trials = spec.budget.trials
    if spec.search.sampler == "grid":
        trials = space.grid_size(entries)
    budget = spec.budget.model_copy(update={"trials": trials or 20})
    data = spec.data.model_copy(update=_columns(spec))
    return spec.model_copy(update={"budget": budget, "data": data})


def _columns(spec: StudySpec) -> dict[str, str]:
    return forms.named(spec.task, spec.data) if spec.task in forms.FORMS else {}


def _translate(doc: Document, detail: Any) -> Problem:
    """One pydantic error in foldtune's words, at its place."""
    path: Path_ = tuple(detail["loc"])
    dotted = _dotted(path)
    kind = detail["type"]
    if kind == "missing":
        return doc.problem(path[:-1], "missing-key", f"missing '{dotted}'")
    if kind == "extra_forbidden":
        help = hyperparameters.did_you_mean(str(path[-1]), _known_keys(path[:-1]))
        return doc.problem(path, "unknown-key", f"unknown key '{dotted}'", help)
    got = hyperparameters.show(detail["input"])
    rule = RULES.get(kind) or detail["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix(
        "String "
    ).rstrip(".")
    rule = rule.replace("should be", "must be").replace("should have", "must have")
    if kind == "literal_error":
        rule = "must be one of " + detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    quote = kind == "string_type" and isinstance(detail["input"], bool | int | float)
    return doc.problem(path, "value", f"'{dotted}' {rule} — got {got}", "quote it" if quote else "")


def _known_keys(path: Path_) -> list[str]:
    model: Any = StudySpec
    for part in path:
        if isinstance(part, int):  # one of several models
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _origins(
    doc: Document, spec: StudySpec, training: Mapping[str, str], searched: Mapping[str, str]
) -> dict[str, str]:
    """Which value won, for every dotted key of the resolved study."""
    origins: dict[str, str] = {}

    def walk(value: Mapping[str, Any], path: Path_) -> None:
        names = {"training": training, "search.space": searched}.get(_dotted(path))
        for key, child in value.items():
            here: Path_ = (*path, key)
            if names is not None:
                origins[_dotted(here)] = _origin(doc, (*path, names[key]) if key in names else None, key)
            elif isinstance(child, dict):
                walk(child, here)
            else:
                origins[_dotted(here)] = _origin(doc, here if here in doc.places else None, key)

    walk(spec.model_dump(mode="json"), ())
    if isinstance(doc.values[MODEL], str | list):  # a short form
        origins["model.path"] = origins["models"] = f"line {doc.places[(MODEL,)][0]}"
    return origins


def _origin(doc: Document, path: Path_ | None, name: str) -> str:
    if path is None:
        return "default"
    line = doc.place(path)[0]
    return f"line {line}" if path[-1] == name else f"line {line}, written {path[-1]}"


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path)
