"""The search speed benchmark: its recorded search, order of units and figures; and every form on a tiny model."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, order
from benchmarks.search_speed import account, figures, fleet, harness, product, record, replay
from benchmarks.search_speed.account import Run, Spent, Tokens, UnitResult, Winner
from orchestrator import study_file
from orchestrator.contract import TrainUnit
from orchestrator.spec import Racing
from tests import tiny_models
from tests.acceptance.commands import ROOT

FOLDER = Path(figures.__file__).parent
NAMES = ("account", "engine", "figures", "fleet", "form", "harness", "replay", "scores", "__main__")
LIGHT = (*(FOLDER / f"{name}.py" for name in NAMES), Path(order.__file__), Path(machine.__file__))
PURE = ("contract", "lifecycle", "objective", "racing")
STUDY = """
study: tiny
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 3, seed: 3}}
training: {{target_modules: [query, value], max_length: 16, pooling: {pooling}, lora_dropout: 0.1}}
search:
  sampler: random
  space:
    learning_rate: {{low: 1e-3, high: 1e-1, log: true}}
    batch_size: [4, 8]
    epochs: {{low: 1, high: 2}}
    lora_rank: [2, 4]
"""
SECONDS = 900


@pytest.fixture(scope="module")
def glosses() -> replay.Replay:
    return replay.load(FOLDER / "glosses.json")


# --- the recorded search -------------------------------------------------------------------------------------


def test_the_recorded_search_is_of_the_studys_space(glosses: replay.Replay) -> None:
    spec = study_file.load(FOLDER.parents[1] / "studies" / "glosses.yaml").spec
    assert len(glosses.trials) == 12
    assert len({json.dumps(dict(trial.params)) for trial in glosses.trials}) == 12
    for trial in glosses.trials:
        assert all(trial.params[name] in entry for name, entry in spec.space.items())
    rows = glosses.rows()
    assert set(Counter(rows[row]["label"] for row in glosses.test).values()) == {6}


def test_no_fold_touches_the_test_part(glosses: replay.Replay) -> None:
    assert len(glosses.test) == 60
    for fold in range(glosses.folds):
        train, validation = glosses.split(fold)
        assert set(train) | set(validation) == set(glosses.inner)
        assert not set(train) & set(validation)
    assert not set(glosses.inner) & set(glosses.test)


def test_settings_are_whole_and_alpha_follows_the_rank(glosses: replay.Replay) -> None:
    settings = glosses.settings(glosses.trial(3))
    assert (settings.lora_rank, settings.lora_alpha, settings.target_modules) == (16, 32.0, ("query", "value"))
    quick = glosses.quick()
    assert [trial.number for trial in quick.trials] == [1, 2, 7]
    assert {trial.folds for trial in quick.trials} == {(0, 1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"assignment": (0, 1, 2, 3, 4)}, "rows are assigned"),
        ({"assignment": (0,) * 300}, "has no row"),
        ({"trials": ()}, "no trials"),
        ({"quick_folds": (0, 0)}, "quick has folds"),
        ({"quick_trials": (99,)}, "quick names trials"),
        ({"fixed": {"epochs": 3}}, "both fixed and searched"),
    ],
)
def test_a_replay_that_contradicts_itself_is_refused(glosses: replay.Replay, change: dict[str, Any], said: str) -> None:
    assert replay.problems(glosses, 300) == []
    assert said in "; ".join(replay.problems(changed(glosses, **change), 300))


# --- order and stopping --------------------------------------------------------------------------------------


def simulate(
    work: replay.Replay, loss: dict[int, float], *, raced: bool, slots: int = 1
) -> tuple[fleet.Study, list[tuple[int, int]]]:
    """Train units of one epoch with so many slots; the oldest ends first. Returns also (trial, fold) as handed out."""
    study = fleet.Study(work, raced=raced)
    running: list[TrainUnit] = []
    ran: list[tuple[int, int]] = []
    while True:
        while len(running) < slots and (unit := study.next()) is not None:
            running.append(unit)
            ran.append((unit.trial, unit.fold))
        if not running:
            return study, ran
        unit = running.pop(0)
        each = loss[unit.trial] + 0.01 * unit.fold
        items = len(unit.validation)
        tallies = {"nats": each * items, "items": items, "correct": 0} if math.isfinite(each) else None
        study.heard(
            fleet.Epoch(unit=unit.unit, epoch=1, last=True, tallies=tallies, nats=[each] * items, counts=[1.0] * items)
        )


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_without_racing_every_unit_runs_once(slots: int, glosses: replay.Replay) -> None:
    study, ran = simulate(glosses, dict.fromkeys(range(12), 1.0), raced=False, slots=slots)
    assert sorted(ran) == [(trial, fold) for trial in range(12) for fold in range(5)]
    assert len(study.results) == 60
    assert not study.stopped


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_racing_finishes_the_best_trial_and_stops_the_hopeless(slots: int, glosses: replay.Replay) -> None:
    study, ran = simulate(glosses, {trial: 1.0 + abs(trial - 6) for trial in range(12)}, raced=True, slots=slots)
    folds = Counter(trial for trial, _ in ran)
    assert folds[6] == 5
    assert 6 not in study.stopped
    assert len(ran) <= 5 + 5 + 10 + 2 * slots  # the first trial, the best one, one fold of the others
    assert account.best(study.results, study.stopped)[0] == 6


def test_a_trial_that_diverges_gets_no_further_fold(glosses: replay.Replay) -> None:
    study, ran = simulate(glosses, {0: math.inf, **dict.fromkeys(range(1, 12), 1.0)}, raced=False)
    assert Counter(trial for trial, _ in ran) == {0: 1, **dict.fromkeys(range(1, 12), 5)}
    assert account.cv_losses(study.results)[0] is None


def test_a_unit_of_a_stopped_trial_is_told_at_its_next_epoch(glosses: replay.Replay) -> None:
    study = fleet.Study(glosses, raced=True)
    first, second = study.next(), study.next()
    assert first is not None
    assert second is not None
    assert study.heard(
        fleet.Epoch(unit=first.unit, epoch=1, last=False, tallies={"nats": 9.0, "items": 9, "correct": 0})
    )
    for trial, place in study._running.values():
        trial.units[place] = "cancelled"
    assert not study.heard(
        fleet.Epoch(unit=second.unit, epoch=1, last=False, tallies={"nats": 9.0, "items": 9, "correct": 0})
    )
    assert study.busy  # the first one has not heard of it yet


# --- figures -------------------------------------------------------------------------------------------------


def run_of(form: str, cpu: float, *, test_loss: float = 1.0, winner: int = 1, stopped: bool = False) -> Run:
    units = [UnitResult(trial=1, fold=f, nats=40.0 + f, items=48, correct=30, cpu=cpu / 3) for f in range(2)]
    units.append(UnitResult(trial=7, fold=0, nats=90.0, items=48, correct=9, cpu=cpu / 3))
    return Run(
        form=form,
        device="cpu",
        start=Spent(4.0, 3.0),
        search=Spent(cpu, cpu / 2),
        units=units,
        tokens=Tokens(train_real=100, train_computed=150, evaluation_real=20),
        winner=Winner(trial=winner, cv_loss=0.85, test_loss=test_loss, test_accuracy=0.7),
        stopped={7: 1} if stopped else {},
    )


def test_figures_of_runs(glosses: replay.Replay) -> None:
    runs = {
        "kept": [run_of("kept", cpu) for cpu in (30.0, 33.0, 30.0)],
        "foldtune": [run_of("foldtune", cpu) for cpu in (15.0, 15.0, 10.0)],
        "foldtune_racing": [run_of("foldtune_racing", 6.0, test_loss=0.9, winner=2, stopped=True)] * 3,
        "kept_own_dropout": [run_of("kept_own_dropout", 36.0)],
    }
    found = figures.compose(glosses, runs)
    assert json.loads(json.dumps(found)) == found
    assert (found["basis"], found["ratio_training"], found["ratio_search"]) == ("cpu seconds", 2.0, 5.0)
    assert found["ranges"]["ratio_training"] == [2.0, 3.0]
    assert found["ratio_training_reload"] is None
    assert found["with_start"]["ratio_training"] == round(34 / 19, 3)
    assert found["own_dropout"] == {"units": 3, "cpu_ratio": 1.2}
    assert found["outcome"]["as_good"]
    assert not found["outcome"]["kept"]["same_winner"]
    kept = found["forms"]["kept"]
    assert kept["cpu_seconds"] == {"median": 30.0, "min": 30.0, "max": 33.0, "values": [30.0, 33.0, 30.0]}
    assert (kept["cpu_seconds_per_trial"], kept["trials_per_hour"]) == (15.0, 480.0)
    assert kept["tokens"]["evaluation"] == {"real": 20, "computed": None}
    losses = {trial["trial"]: trial["cv_loss"] for trial in found["trials"]}
    assert losses[1]["kept"] == round(81 / 96, 4)
    assert losses[7] == {"kept": 1.875, "foldtune": 1.875, "foldtune_racing": None}


def test_a_worse_trial_than_full_cross_validation_finds_is_said(glosses: replay.Replay) -> None:
    runs = {"kept": [run_of("kept", 30.0)], "foldtune_racing": [run_of("r", 9.0, winner=2, test_loss=1.1)]}
    outcome = figures.outcome(runs)
    assert outcome is not None
    assert not outcome["as_good"]


def test_a_run_travels_between_processes() -> None:
    one = run_of("kept", 3.0, stopped=True)
    back = account.from_json(json.loads(json.dumps(one.to_json())))
    assert (back.search, back.winner, back.stopped, list(back.units)) == (
        one.search,
        one.winner,
        one.stopped,
        list(one.units),
    )


def test_a_diverged_unit_takes_its_trial_out_of_the_choice() -> None:
    units = [
        UnitResult(trial=0, fold=0, nats=None, items=5, correct=0),
        UnitResult(trial=1, fold=0, nats=9.0, items=5, correct=1),
    ]
    assert account.best(units, {}) == (1, 1.8)


def test_the_products_figures_count_the_default_configuration(glosses: replay.Replay) -> None:
    shown = [{"params": dict(trial.params), "value": 1.0 + trial.number} for trial in glosses.trials]
    found = product.composed(glosses, Spent(130.0, 65.0), {"value": 1.0}, {"trials": {"complete": 12}}, shown)
    assert (found["trials"], found["cpu_seconds_per_trial"], found["trials_per_hour"]) == (13, 10.0, 720.0)
    assert (found["winner"], found["same_configurations"]) == (0, True)
    assert not product.composed(glosses, Spent(1.0, 1.0), {"value": 1.0}, {"trials": {}}, shown[1:])[
        "same_configurations"
    ]


def test_quick_says_what_it_leaves_out() -> None:
    options = harness.Options(replay=Path("x"), quick=True, engine_only=False, repeats=1, threads=1)
    assert {"product", "reload", "kept_own_dropout", "ray_tune"} <= harness.absent(options).keys()
    chosen = harness.Options(
        replay=Path("x"), quick=False, engine_only=False, repeats=1, threads=1, without=("reload", "product")
    )
    assert harness.absent(chosen).items() >= {"reload": "--without", "product": "--without"}.items()


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_the_engine_form_needs_no_optuna_and_no_database(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    apart = ("optuna", "sklearn", "sqlalchemy", "pydantic", "accelerate", "datasets", "ray")
    assert not {module for module in imported if str(module).split(".")[0] in apart}
    ours = {module for module in imported if str(module).startswith(("orchestrator", "trial_worker"))}
    engine = {"trial_worker.engine", "trial_worker.engine.stream", "trial_worker.tasks"}
    assert ours <= {"orchestrator", *(f"orchestrator.{name}" for name in PURE), *engine}


def test_racing_here_is_the_products_default() -> None:
    default = Racing()
    assert {name: getattr(default, name) for name in fleet.RACING} == fleet.RACING


# --- real processes ----------------------------------------------------------------------------------------


def recorded(folder: Path, pooling: str) -> Path:
    """A replay of three trials on 30 rows and a BERT with random weights."""
    (folder / "model").mkdir()
    tiny_models.save_bert(folder / "model")
    tiny_models.write_rows(folder / "rows.jsonl", tiny_models.classification_rows(30))
    (folder / "study.yaml").write_text(STUDY.format(pooling=pooling), encoding="utf-8")
    made = record.record(study_file.load(folder / "study.yaml"), folder / "replay.json", 3, 6, [0, 2])
    (folder / "replay.json").write_text(json.dumps(made), encoding="utf-8")
    return folder / "replay.json"


def measured(*arguments: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "FOLDTUNE_SYSTEM_HOME"}
    command = [sys.executable, "-m", "benchmarks.search_speed", "--threads", "1", "--repeats", "1", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def same_work(found: dict[str, Any]) -> None:
    same = [form for name, form in found["forms"].items() if name != "foldtune_racing"]
    for part in ("training", "evaluation"):
        assert len({form["tokens"][part]["real"] for form in same}) == 1
        assert all(form["tokens"][part]["computed"] >= form["tokens"][part]["real"] for form in same)
    assert len({form["units"] for form in same}) == 1
    assert same[0]["units"] >= found["forms"]["foldtune_racing"]["units"]
    for trial in found["trials"]:
        losses = trial["cv_loss"]
        assert losses["kept"] == pytest.approx(losses["foldtune"], abs=1.0)
    assert all(form["repeats_agree"] for form in found["forms"].values())
    assert found["ratio_training"] > 0


def test_the_recorded_folds_are_scikit_learns(glosses: replay.Replay) -> None:
    from sklearn.model_selection import StratifiedKFold

    rows = glosses.rows()
    labels = [rows[row]["label"] for row in glosses.inner]
    splitter = StratifiedKFold(n_splits=glosses.folds, shuffle=True, random_state=glosses.fold_seed)
    for fold, (train, validation) in enumerate(splitter.split(labels, labels)):
        expected = tuple(tuple(glosses.inner[at] for at in part) for part in (train, validation))
        assert glosses.split(fold) == expected


def test_a_study_file_trains_the_recorded_list(glosses: replay.Replay, tmp_path: Path) -> None:
    loaded = study_file.load(product.write_study(glosses, tmp_path))
    assert record.drawn(loaded.spec, 12) == [dict(trial.params) for trial in glosses.trials]
    rows = (tmp_path / "inner.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(glosses.inner) == 240


@pytest.mark.slow
def test_the_small_part_of_a_recorded_search(tmp_path: Path) -> None:
    found = measured("--replay", str(recorded(tmp_path, "first")), "--quick", "--engine-only", "--json")
    assert found["forms"]["kept"]["units"] == 4
    assert "product" not in found
    same_work(found)


@pytest.mark.slow
def test_a_whole_recorded_search_with_the_product(tmp_path: Path) -> None:
    found = measured("--replay", str(recorded(tmp_path, "mean")))
    assert found["forms"]["kept"]["units"] == 9
    assert found["own_dropout"]["units"] == 4
    same_work(found)
    whole = found["product"]
    assert whole["same_configurations"]
    assert whole["states"]["complete"] == 3
    assert whole["trials"] == 4  # the default configuration stands beside the searched ones
    assert None not in whole["cv_losses"]
