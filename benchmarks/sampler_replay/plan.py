"""What is to be recorded: every point of a study's grid and the default configuration, on every fold."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.sampler_replay.table import Configuration, Place
from orchestrator import epochs, prepare, space, study_file
from orchestrator.contract import OpenStudy, Settings, TrainUnit, derive_seed
from orchestrator.prepare import Prepared

PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained on each fold: the configuration of that digest, for which others may be read off on the way."""

    settings: Settings
    digest: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """Configurations and the runs that show them, see `Table`."""

    configurations: tuple[Configuration, ...]
    points: int
    default: int
    runs: tuple[Run, ...]

    @property
    def epochs(self) -> int:
        """Of all runs, on one fold."""
        return sum(run.settings.epochs for run in self.runs)


def points(entries: space.Space, fixed: Mapping[str, Any], pooling: str) -> Points:
    """Every point of the grid; behind them the default configuration, unless it is a point."""
    grid = list(space.grid(entries))
    default, _ = space.default_params(entries)
    configured = [space.settings(fixed, params, pooling=pooling) for params in [*grid, default]]
    digests = [space.configuration_digest(each) for each in configured]
    first = digests.index(digests[-1])
    kept = len(grid) + (first == len(grid))
    longest: dict[str, Settings] = {}
    for each in configured[:kept]:
        known = longest.get(_family(each))
        longest[_family(each)] = each if known is None or each.epochs > known.epochs else known
    numbers = {family: number for number, family in enumerate(longest)}
    return Points(
        configurations=tuple(
            Configuration(params=params, run=numbers[_family(each)], epochs=each.epochs)
            for params, each in zip([*grid, default][:kept], configured[:kept], strict=True)
        ),
        points=len(grid),
        default=first,
        runs=tuple(Run(settings=each, digest=space.configuration_digest(each)) for each in longest.values()),
    )


def _family(settings: Settings) -> str:
    """Equal for configurations of which the longest shows all others."""
    shares = epochs.shareable(settings)
    return space.configuration_digest(replace(settings, epochs=1) if shares else settings) + ("+" if shares else "")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study file, everything that can be known before it is trained."""

    prepared: Prepared
    points: Points

    def open_study(self, data: Path) -> OpenStudy:
        """For a trainer; data: where the snapshot's rows lie."""
        spec = self.prepared.loaded.spec
        return OpenStudy(
            study=1,
            name=spec.study,
            task=spec.task,
            model=self.prepared.model,
            data=str(data),
            labels=self.prepared.snapshot.classes,
        )

    def units(self) -> Iterator[tuple[Run, TrainUnit]]:
        """Every run on every fold, with the seed that the product would give it."""
        spec, folds = self.prepared.loaded.spec, self.prepared.plan
        for number, run in enumerate(self.points.runs):
            for repeat, fold in folds.units:
                train, validation = folds.split(repeat, fold)
                unit = TrainUnit(
                    study=1,
                    unit=number * len(folds.units) + folds.units.index((repeat, fold)),
                    lease_epoch=1,
                    trial=number,
                    repeat=repeat,
                    fold=fold,
                    seed=derive_seed(spec.seed, run.digest, fold, repeat),
                    settings=run.settings,
                    train=train,
                    validation=validation,
                )
                yield run, unit

    @property
    def places(self) -> Sequence[Place]:
        """Of every run."""
        return self.prepared.plan.units

    def identity(self) -> dict[str, Any]:
        """What every recorded loss depends on; two halves of a recording must agree in it."""
        return {
            "study": self.prepared.loaded.spec.digest(),
            "snapshot": self.prepared.snapshot.sha256,
            "folds": self.prepared.plan.digest(),
            "model": asdict(self.prepared.model)["pin"],
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        }


def load(path: Path) -> Plan:
    """Read a study file, its data and its model's hash.

    Raises:
        BadInput: what is wrong with them. ValueError: it is no grid.
    """
    loaded = study_file.load(path)
    entries = loaded.spec.space
    wrong = [*space.grid_problems(entries).values()]
    wrong += [f"'{name}' must be a list of choices" for name, each in entries.items() if isinstance(each, space.Range)]
    if wrong:
        raise ValueError("; ".join(wrong))
    prepared, _ = prepare.prepare(loaded)
    return Plan(prepared=prepared, points=points(entries, loaded.spec.training, prepared.model.pooling))
