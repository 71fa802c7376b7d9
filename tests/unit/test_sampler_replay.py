"""Replaying recorded runs: the account adds up, the rules are the product's, and a careless rule is seen."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sampler_replay import __main__ as program
from benchmarks.sampler_replay import figures, plan, proposals, synthetic, table
from benchmarks.sampler_replay.figures import Truth
from benchmarks.sampler_replay.journal import Journal
from benchmarks.sampler_replay.simulate import Form, Outcome, simulate
from orchestrator import lifecycle, study_file

TABLE = synthetic.table()
TRUTH = Truth(TABLE)
RACED = [Form(sampler="grid", rule=rule, hopeless=True) for rule in ("forgiving", "paired")]
GRID = Path(program.__file__).with_name("grid.yaml")


def winner(outcome: Outcome) -> int:
    return outcome.trials[outcome.steps[-1].trial].configuration


@pytest.mark.parametrize("slots", [1, 8])
def test_without_racing_the_whole_grid_finds_its_best(slots: int) -> None:
    outcome = simulate(TABLE, Form(sampler="grid", slots=slots), seed=3)
    assert winner(outcome) == TRUTH.best
    assert figures.measure(TRUTH, outcome).regret == 0


def test_one_after_the_other_costs_what_the_trials_cost() -> None:
    outcome = simulate(TABLE, Form(sampler="grid"), seed=0)
    assert outcome.spent == outcome.clock == sum(TRUTH.costs)
    assert {trial.state for trial in outcome.trials} == {"complete", "diverged"}


@pytest.mark.parametrize("form", [*RACED, Form(sampler="random", rule="paired", slots=5, trials=9)])
def test_the_account_adds_up(form: Form) -> None:
    outcome = simulate(TABLE, form, seed=1)
    found = figures.measure(TRUTH, outcome)
    full = sum(TRUTH.costs[trial.configuration] for trial in outcome.trials if trial.duplicate_of is None)
    assert outcome.spent == sum(trial.spent for trial in outcome.trials)
    assert found.saved * full == pytest.approx(full - outcome.spent)
    assert found.idle * outcome.clock * form.slots == pytest.approx(outcome.clock * form.slots - outcome.spent)
    assert found.complete + found.stopped + found.diverged + found.repeated == len(outcome.trials)
    assert all(set(trial.units.values()) <= {"done", "diverged", "cancelled"} for trial in outcome.trials)


@pytest.mark.parametrize("form", RACED)
def test_racing_saves_and_never_stops_the_default(form: Form) -> None:
    outcome = simulate(TABLE, form, seed=0)
    assert figures.measure(TRUTH, outcome).saved > 0.25
    assert outcome.trials[0].is_default
    assert outcome.trials[0].state == "complete"
    assert winner(outcome) == TRUTH.best


def test_a_rule_that_stops_everything_is_seen() -> None:
    outcome = simulate(TABLE, RACED[0], seed=0, judge=lambda *_: "so it is")
    found = figures.measure(TRUTH, outcome)
    assert winner(outcome) == TABLE.default
    assert found.best_stopped
    assert found.own_best_stopped
    assert found.regret == pytest.approx(TRUTH.loss(TABLE.default) - TRUTH.loss(TRUTH.best))
    assert found.to_good_trials == float("inf")
    assert figures.cell([found])["to_good_trials"]["median"] is None


def test_a_fold_that_diverges_ends_its_trial_and_costs_its_epoch() -> None:
    outcome = simulate(TABLE, Form(sampler="grid"), seed=0)
    diverged = [trial for trial in outcome.trials if trial.state == "diverged"]
    assert [trial.spent for trial in diverged] == [2, 2]
    assert all(TRUTH.values[trial.configuration] is None for trial in diverged)


def test_under_racing_first_folds_come_before_further_ones() -> None:
    form = replace(RACED[0], sampler="random", trials=6)
    outcome = simulate(TABLE, form, seed=0, judge=lambda *_: None)
    assert outcome.steps[0].trial == 0  # the default, with all its folds
    assert outcome.steps[0].spent == TRUTH.costs[TABLE.default]
    assert outcome.steps[1].trials == 6  # nobody's second fold before everybody's first


@pytest.mark.parametrize(("cap", "most"), [("product", 2), ("slots", 4), ("none", 10)])
def test_the_cap_bounds_open_trials(cap: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    ask = proposals.Sampler.propose

    def spied(self, number, past, known):  # type: ignore[no-untyped-def]
        opened.append(sum(each.state == "running" for each in past) + 1)
        return ask(self, number, past, known)

    monkeypatch.setattr(proposals.Sampler, "propose", spied)
    form = Form(sampler="tpe", rule="forgiving", slots=4, cap=cap, trials=10)
    simulate(synthetic.table(diverging=False), form, seed=0, judge=lambda *_: None)
    assert max(opened) == most
    assert lifecycle.open_cap("tpe", 10, 1) == 2


def test_a_replay_is_a_function_of_its_seed() -> None:
    form = Form(sampler="tpe", rule="paired", slots=2, trials=8)
    first, again, other = (simulate(TABLE, form, seed) for seed in (0, 0, 1))
    assert first == again
    assert [trial.configuration for trial in first.trials] != [trial.configuration for trial in other.trials]


def test_answers_from_ranges_are_moved_to_the_nearest_point() -> None:
    asked = proposals.asked(TABLE, ranges=True)
    assert asked.entries["learning_rate"] == {"low": 1e-4, "high": 3e-2, "log": True}
    assert asked.entries["epochs"] == {"low": 1, "high": 3}
    assert asked.entries["batch_size"] == {"choices": [8, 32]}
    near = proposals.snapped(TABLE, asked, {"learning_rate": 1.8e-3, "batch_size": 32, "epochs": 2})
    assert TABLE.configurations[near].params == {"learning_rate": 3e-3, "batch_size": 32, "epochs": 2}


def test_what_is_known_is_drawn_again_as_often_as_in_the_product() -> None:
    from orchestrator import trials

    assert proposals.REDRAWS == trials.REDRAWS


@pytest.mark.parametrize("name", ["table.json", "table.json.gz"])
def test_a_recorded_file_round_trips(name: str, tmp_path: Path) -> None:
    table.save(TABLE, tmp_path / name)
    assert table.load(tmp_path / name) == TABLE


def test_a_file_that_lacks_a_unit_is_refused(tmp_path: Path) -> None:
    runs = [dict(run) for run in TABLE.runs]
    del runs[2][0, 1]
    table.save(replace(TABLE, runs=tuple(runs)), tmp_path / "table.json")
    with pytest.raises(ValueError, match=r"run 2 lacks \(0, 1\)"):
        table.load(tmp_path / "table.json")


def test_a_recording_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path, unit = tmp_path / "units.jsonl", TABLE.unit(0, (0, 0))
    with closing(Journal(path, {"study": "a"})) as journal:
        journal.add("run", (0, 0), unit, "AACAPw==")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"run": "run", "repe')
    with closing(Journal(path, {"study": "a"})) as again:
        assert again.units == {("run", (0, 0)): unit}
        again.add("run", (0, 1), unit, "AACAPw==")
    assert path.read_bytes().startswith(whole)
    with closing(Journal(path, {"study": "a"})) as last:
        assert len(last.units) == 2
    with pytest.raises(ValueError, match="begun with another study"):
        Journal(path, {"study": "b"})


def test_the_grids_header_says_what_it_costs() -> None:
    loaded = study_file.load(GRID)
    points = plan.points(loaded.spec.space, loaded.spec.training, "mean")
    assert (points.points, points.epochs) == (288, 435)
    assert points.epochs * loaded.spec.cross_validation.folds == 2175
    assert all(name in GRID.read_text(encoding="utf-8") for name in ("288", "435", "2175"))
    assert points.configurations[points.default].params["learning_rate"] == 2e-4
    for each in points.configurations:
        shared = each.params["lr_schedule"] == "constant"
        assert points.runs[each.run].settings.epochs == (3 if shared else each.epochs)


def test_the_program_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.save(TABLE, tmp_path / "table.json.gz")
    options = ["--seeds", "2", "--trials", "6", "--samplers", "random", "--rules", "none", "paired", "--slots", "1"]
    assert program.main([str(tmp_path / "table.json.gz"), *options]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert [form["rule"] for form in found["forms"]] == ["none", "paired"]
    assert found["forms"][0]["saved"]["median"] == 0
    assert "within 1 %" in err
