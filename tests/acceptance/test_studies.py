"""Every study file of the repository runs: small in each test run, whole in `make test-slow`."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import study_file
from orchestrator.launch import launch
from orchestrator.prepare import prepare
from tests.acceptance import light
from tests.acceptance.commands import ROOT, foldtune
from tests.database.studies import rows

FILES = sorted((ROOT / "studies").rglob("*.yaml"))
NEED_PACKAGE = {
    *("glosses", "grid", "verse_pairs", "marks", "chapters", "speech", "speakers", "augmentation", "self-training"),
    *("regularisation", "methods", "paraphrases", "back-translation", "synthetic", "models"),
}
NEED_SMOLLM2 = {
    "instructions",
    "paraphrases",
    "back-translation",
    "synthetic",
}  # `make smollm`, which no test waits for
WITHOUT_TORCH = {  # run small by the light engine; with their model in test_readme.py, or like another one of these
    "glosses",
    *("paraphrases", "back-translation", "synthetic"),
}
# Of the other studies test_task_journeys.py trains each task, with tiny models.
TRAINED_SMALL = ("causal", "rewriting", "novels")
SECONDS = {  # on 2 CPU cores
    "glosses": 480,
    "grid": 300,
    "causal": 480,
    **dict.fromkeys(
        ("verse_pairs", "marks", "chapters", "speech", "speakers", "rewriting", "named_pairs", "models"), 900
    ),
    "augmentation": 600,
    "self-training": 3600,
    **dict.fromkeys(("regularisation", "methods", "novels", "decoder"), 1200),
    **dict.fromkeys(NEED_SMOLLM2, 5400),
}


def study_files(names: Collection[str] = SECONDS) -> list[object]:
    return [pytest.param(path, id=path.stem, marks=marks(path.stem)) for path in FILES if path.stem in names]


def marks(name: str) -> list[pytest.MarkDecorator]:
    absent = name in NEED_SMOLLM2 and not (ROOT / "studies" / "data" / "smollm2").is_dir()
    skipped = [pytest.mark.skip(reason="needs `make smollm`")] if absent else []
    return skipped + ([pytest.mark.package_model] if name in NEED_PACKAGE else [])


def test_there_are_study_files_and_each_has_a_time_limit() -> None:
    assert {path.stem for path in FILES} == set(SECONDS)


@pytest.mark.parametrize("path", study_files())
def test_a_study_file_is_valid_and_says_how_to_run_it(path: Path) -> None:
    done = foldtune("check", str(path))
    assert done.returncode == 0, done.stderr
    assert f"#   foldtune run studies/{path.name}" in path.read_text(encoding="utf-8").splitlines()


def test_small_studies_of_the_repositorys_own_models_are_trained_by_one_worker(
    engine: Engine, storage: str, foldtune_home: Path
) -> None:
    names = []
    for name in TRAINED_SMALL:
        loaded = study_file.smoke(study_file.load(ROOT / "studies" / f"{name}.yaml"))
        launch(engine, prepare(loaded)[0])
        names.append(loaded.spec.study)
    done = foldtune("worker", *names, OPTUNA_STORAGE=storage)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name in names:
        best = json.loads(foldtune("best", name, "--json", OPTUNA_STORAGE=storage).stdout)
        assert len(best["folds"]) == 2
        assert sum(fold["n"] for fold in best["folds"]) > 0


@pytest.mark.parametrize("path", study_files(WITHOUT_TORCH))
def test_a_study_file_runs_small(path: Path, storage: str) -> None:
    done = foldtune("run", str(path), "--smoke", "--workers", "1", "--json", OPTUNA_STORAGE=storage, **light.LIGHT)
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)
    assert len(best["folds"]) == 2
    assert sum(fold["n"] for fold in best["folds"]) > 0
    assert best["settings"]["epochs"] == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", study_files())
def test_a_study_file_runs_whole_and_its_winner_is_real(
    path: Path, storage: str, engine: Engine, record_property: pytest.RecordProperty
) -> None:
    began = time.monotonic()
    done = foldtune("run", str(path), "--json", timeout=SECONDS[path.stem], OPTUNA_STORAGE=storage)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)
    status = json.loads(foldtune("status", path.stem, "--json", OPTUNA_STORAGE=storage).stdout)
    assert status["state"] == "complete"
    assert status["trials"]["complete"] + status["trials"]["stopped"] == status["budget"]["trials"]["total"]
    default = rows(engine, "SELECT value FROM trial WHERE is_default")[0][0]
    assert best["value"] <= default
    floor = rows(engine, "SELECT floor FROM study")[0][0]
    if floor is not None:
        assert best["metrics"]["validation_loss"] < floor["validation_loss"]
        assert best["metrics"]["accuracy"] > floor["accuracy"]
    origins = dict(rows(engine, "SELECT origin, count(*) FROM trial WHERE searched GROUP BY origin"))
    if path.stem == "glosses":
        assert origins["model"] >= 6
    for name, value in {"seconds": round(seconds), "default": default, **best["metrics"], **best["params"]}.items():
        record_property(name, value)
    record_property("device_seconds", round(status["budget"]["hours"]["used"] * 3600))
    assert seconds < SECONDS[path.stem]
