"""A recorded search: which configurations on which rows. Standard library and the contract only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.contract import ModelPin, Settings

TEST = -1  # in an assignment: a row that no search may see


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration. number: its place in the file, kept in a subset too."""

    number: int
    params: Mapping[str, Any]
    folds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The search, complete.

    assignment: for each row of the data file the fold that validates it, or TEST.
    fixed: every hyperparameter that is not searched. space: entries as a study file's JSON.
    seed: of the study; foldtune's `random` sampler draws these trials from it.
    """

    name: str
    model: ModelPin
    data: Path
    text: str
    label: str
    folds: int
    fold_seed: int
    assignment: tuple[int, ...]
    seed: int
    fixed: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Any]]
    trials: tuple[Trial, ...]
    quick_trials: tuple[int, ...]
    quick_folds: tuple[int, ...]

    def rows(self) -> list[dict[str, str]]:
        """The data, under the names that the engine's tasks read."""
        with self.data.open(encoding="utf-8") as lines:
            raw = [json.loads(line) for line in lines]
        return [{"text": row[self.text], "label": row[self.label]} for row in raw]

    @property
    def inner(self) -> tuple[int, ...]:
        """Rows that the search may use."""
        return tuple(row for row, fold in enumerate(self.assignment) if fold != TEST)

    @property
    def test(self) -> tuple[int, ...]:
        """Rows that only the winner is scored on."""
        return tuple(row for row, fold in enumerate(self.assignment) if fold == TEST)

    def split(self, fold: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(training rows, validation rows)."""
        train = tuple(row for row, at in enumerate(self.assignment) if at not in (fold, TEST))
        return train, tuple(row for row, at in enumerate(self.assignment) if at == fold)

    def trial(self, number: int) -> Trial:
        """The trial of that number."""
        return next(trial for trial in self.trials if trial.number == number)

    def settings(self, trial: Trial) -> Settings:
        """Every hyperparameter of a trial, `lora_alpha` as a number."""
        values = {**self.fixed, **trial.params}
        if isinstance(values["target_modules"], list):
            values["target_modules"] = tuple(values["target_modules"])
        alpha = str(values["lora_alpha"])
        if alpha.endswith("r"):
            values["lora_alpha"] = float(alpha[:-1] or 1) * values["lora_rank"]
        return Settings(**values)

    def quick(self) -> Replay:
        """The small part of it, for a look."""
        chosen = [replace(self.trials[number], folds=self.quick_folds) for number in self.quick_trials]
        return replace(self, trials=tuple(chosen))


def load(path: Path) -> Replay:
    """Read a replay file.

    Raises:
        ValueError: it contradicts itself or its data. OSError: a file cannot be read. KeyError: something is missing.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    data = (path.parent / raw["data"]["path"]).resolve()
    if hashlib.sha256(data.read_bytes()).hexdigest() != raw["data"]["sha256"]:
        raise ValueError(f"{data} is not the data that {path.name} was recorded with")
    model = ModelPin(**raw["model"])
    if model.origin == "local":
        model = replace(model, root=str(path.parent.resolve()))
    replay = Replay(
        name=raw["name"],
        model=model,
        data=data,
        text=raw["data"]["text"],
        label=raw["data"]["label"],
        folds=raw["cross_validation"]["folds"],
        fold_seed=raw["cross_validation"]["seed"],
        assignment=tuple(raw["assignment"]),
        seed=raw["seed"],
        fixed=raw["fixed"],
        space=raw["space"],
        trials=tuple(
            Trial(number=number, params=trial["params"], folds=tuple(trial["folds"]))
            for number, trial in enumerate(raw["trials"])
        ),
        quick_trials=tuple(raw["quick"]["trials"]),
        quick_folds=tuple(raw["quick"]["folds"]),
    )
    wrong = problems(replay, len(replay.rows()))
    if wrong:
        raise ValueError(f"{path.name}: {'; '.join(wrong)}")
    return replay


def problems(replay: Replay, rows: int) -> list[str]:
    """What is wrong with a replay of so many rows."""
    found = []
    known = set(range(replay.folds))
    if len(replay.assignment) != rows:
        found.append(f"{len(replay.assignment)} rows are assigned, the data has {rows}")
    if set(replay.assignment) != known | {TEST}:
        found.append("a fold or the test part has no row, or there is one too many")
    if not replay.trials:
        found.append("no trials")
    for trial in replay.trials:
        if set(trial.params) != set(replay.space):
            found.append(f"trial {trial.number} does not have the searched names")
        found += _fold_problems(f"trial {trial.number}", trial.folds, known)
    found += _fold_problems("quick", replay.quick_folds, known)
    if set(replay.space) & set(replay.fixed):
        found.append("a name is both fixed and searched")
    if not replay.quick_trials or not set(replay.quick_trials) <= {trial.number for trial in replay.trials}:
        found.append("quick names trials that are not there")
    return found


def _fold_problems(what: str, folds: Sequence[int], known: set[int]) -> list[str]:
    if not folds or len(set(folds)) < len(folds) or not set(folds) <= known:
        return [f"{what} has folds {list(folds)}"]
    return []
