"""Make a replay file from a study file.

python -m benchmarks.search_speed.record studies/glosses.yaml benchmarks/search_speed/glosses.json

The trials are those that foldtune's `random` sampler draws for the study's space and seed, so that `foldtune run` can
train the very same list.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sklearn.model_selection import train_test_split

from benchmarks.search_speed import replay
from orchestrator import folds, models, study, study_file
from orchestrator.spec import StudySpec


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_speed.record", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--test", type=int, default=60, help="rows that only the winner is scored on")
    parser.add_argument("--quick", type=int, nargs="+", default=[1, 2, 7], help="trials of --quick")
    chosen = parser.parse_args(arguments)
    loaded = study_file.load(chosen.study)
    made = record(loaded, chosen.out, chosen.trials, chosen.test, chosen.quick)
    chosen.out.write_text(_lines(made), encoding="utf-8")
    replay.load(chosen.out)


def record(loaded: study_file.LoadedStudy, out: Path, trials: int, test: int, quick: Sequence[int]) -> dict[str, Any]:
    """The replay as plain JSON."""
    spec = loaded.spec
    data = (loaded.folder / spec.data.path).resolve()
    text, label = spec.data.text or "text", spec.data.label or "label"
    with data.open(encoding="utf-8") as lines:
        labels = [json.loads(line)[label] for line in lines]
    model = models.pin(spec.model, loaded.folder)
    fixed = {**spec.training}
    if fixed["pooling"] == "auto":
        fixed["pooling"] = model.pooling
    return {
        "name": spec.study,
        "model": {**asdict(model), "root": None},
        "data": {
            "path": os.path.relpath(data, out.resolve().parent),
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "text": text,
            "label": label,
        },
        "cross_validation": {"folds": spec.cross_validation.folds, "seed": spec.cross_validation.seed},
        "seed": spec.seed,
        "fixed": fixed,
        "space": spec.search.space,
        "quick": {"trials": list(quick), "folds": [0, 1]},
        "trials": [
            {"params": params, "folds": list(range(spec.cross_validation.folds))} for params in drawn(spec, trials)
        ],
        "assignment": assigned(labels, test, spec.cross_validation.folds, spec.cross_validation.seed),
    }


def drawn(spec: StudySpec, trials: int) -> list[dict[str, Any]]:
    """What foldtune's `random` sampler suggests first, second, ..."""
    return [
        study.suggest(
            study.Question(
                sampler="random",
                space=spec.search.space,
                maximize=spec.maximize,
                trials=trials,
                seed=study.suggestion_seed(spec.seed, number, 0),
            )
        )[0]
        for number in range(trials)
    ]


def assigned(labels: Sequence[str], test: int, parts: int, seed: int) -> list[int]:
    """For each row its fold, or TEST; both splits keep the share of each label."""
    inner, _ = train_test_split(range(len(labels)), test_size=test, stratify=labels, random_state=seed)
    inner = sorted(inner)
    plan = folds.plan(len(inner), parts, seed=seed, labels=[labels[row] for row in inner])
    assignment = [replay.TEST] * len(labels)
    for row, fold in zip(inner, plan.assignment[0], strict=True):
        assignment[row] = fold
    return assignment


def _lines(made: dict[str, Any]) -> str:
    """JSON with one line for each key and each trial."""
    shown = []
    for key, value in made.items():
        if key == "trials":
            inside = ",\n    ".join(json.dumps(trial) for trial in value)
            shown.append(f'  "{key}": [\n    {inside}\n  ]')
        else:
            shown.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(shown) + "\n}\n"


if __name__ == "__main__":
    main()
