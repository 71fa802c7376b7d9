"""Frozen values from rows of foldtune's schema. One constructor each, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator import space
from orchestrator.contract import ModelPin, Settings, WriterPin, build
from orchestrator.folds import FoldPlan
from orchestrator.hyperparameters import MODEL
from orchestrator.spec import Budget, StudySpec


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study as the database has it."""

    id: int
    name: str
    spec: StudySpec  # with the budget of the row, which `resume` may have raised
    model: ModelPin
    snapshot: str  # sha256
    labels: tuple[str, ...]
    folder: str
    plan: FoldPlan
    floor: Mapping[str, float] | None
    state: str
    noted: str | None
    source: str
    artifacts: Mapping[str, Any]  # {"store": "database" | folder | URL, "keep": n}
    pool: str | None = None  # sha256 of its rows without labels
    writers: Mapping[str, WriterPin] = field(default_factory=dict)  # models that write training rows
    models: Mapping[str, ModelPin] = field(
        default_factory=dict
    )  # by path, where the search chooses; `model` is the first

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> StudyRecord:
        spec = StudySpec.model_validate(row["spec"])
        budget = Budget(trials=row["trials_total"], hours=row["hours_total"])
        plan = FoldPlan(row["plan"]["folds"], tuple(tuple(repeat) for repeat in row["plan"]["assignment"]))
        several = row["model"] if isinstance(row["model"], list) else []
        return cls(
            id=row["id"],
            name=row["name"],
            spec=spec.model_copy(update={"budget": budget}),
            model=build(ModelPin, several[0] if several else row["model"]),
            models={pin["path"]: build(ModelPin, pin) for pin in several},
            snapshot=row["snapshot"],
            pool=row["pool"],
            writers={name: build(WriterPin, pin) for name, pin in row["writers"].items()},
            labels=tuple(row["labels"]),
            folder=row["folder"],
            plan=plan,
            floor=row["floor"],
            state=row["state"],
            noted=row["noted"],
            source=row["source"],
            artifacts=row["artifacts"],
        )

    @property
    def trials_total(self) -> int:
        """The budget of searched trials."""
        return self.spec.budget.trials or 0

    def settings(self, params: Mapping[str, Any]) -> Settings:
        """Every hyperparameter of a configuration of this study, resolved."""
        return space.settings(self.spec.training, params, pooling=self.pin(params.get(MODEL)).pooling)

    def configuration(self, params: Mapping[str, Any]) -> str:
        """Equal for what trains the same, see `space.configuration_digest`."""
        searched = self.pin(params.get(MODEL)) if self.models else None
        return space.configuration_digest(self.settings(params), searched)

    def pin(self, model: str | None) -> ModelPin:
        """The model of this path; the first one, or the only one, where a configuration names none."""
        return self.model if model is None else self.models[model]


def key_of(trial: int, generation: int) -> str:
    """Ties an Optuna trial to the row of this id, and to this life of it."""
    return f"{trial}.{generation}"


def trial_of(key: str) -> int:
    """The id in a key; -1 in what is none."""
    trial = key.partition(".")[0]
    return int(trial) if trial.isdecimal() else -1


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the database has it."""

    id: int
    number: int | None
    searched: bool
    is_default: bool
    in_space: bool
    origin: str
    params: Mapping[str, Any]
    settings: Settings
    state: str
    value: float | None
    reason: str
    duplicate_of: int | None
    run: int | None  # the trial whose folds are its results; None: its own
    epoch: int | None  # of these the epoch that counts; None: each unit's own, or the last
    generation: int
    told: bool

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TrialRecord:
        names = cls.__dataclass_fields__
        return cls(**{**{name: row[name] for name in names}, "settings": build(Settings, row["settings"])})

    @property
    def key(self) -> str:
        """Ties the Optuna trial to this row, and to this life of it."""
        return key_of(self.id, self.generation)

    @property
    def trained(self) -> int:
        """The trial whose folds are its results."""
        return self.run or self.id

    @property
    def shown(self) -> Mapping[str, Any]:
        """Its hyperparameters, with the epoch that was chosen for it."""
        return self.params if self.epoch is None else {**self.params, "epochs": self.epoch}

    @property
    def is_baseline(self) -> bool:
        """Whether it is no fine-tune, but what fine-tunes are measured against."""
        return self.origin == "baseline"

    @property
    def name(self) -> str:
        """What people call it: its number in Optuna, "default", or the baseline's name."""
        if self.is_baseline:
            return self.settings.method
        return "default" if self.is_default else str(self.number)


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What one unit reported at the epoch that counts for a trial."""

    trial: int
    repeat: int
    fold: int
    epoch: int
    tallies: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to one unit. Every write carries `epoch` and `token`: together they are the fence."""

    study: int
    trial: int
    unit: int
    epoch: int
    token: str
    repeat: int
    fold: int
    attempt: int
    settings: Settings
    configuration: str
    seconds_left: float | None
    model: str | None = None  # its path, of a study with several; None: the study's only one
    charges: int = 0  # failures that were the unit's own; with any, it trains alone
