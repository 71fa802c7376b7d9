"""What is written into Optuna's tables is what Optuna and its dashboard read, and would have written."""

from __future__ import annotations

import math
import threading
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL

from orchestrator import optuna_tables, space, study
from orchestrator.study import MEMORY, Past

ENTRIES = {"epochs": space.entry_from_json("epochs", {"low": 1, "high": 6})}


@pytest.fixture
def shown(engine: Engine) -> optuna.Study:
    return study.open_projection(engine.url, "s", "validation_loss", maximize=False, attributes={})


def ended(shown: optuna.Study, past: Past, attributes: dict[str, Any] | None = None, note: str = "") -> Any:
    number = study.show_start(shown, "7.0", past.params, ENTRIES, {"origin": "grid"})
    study.show_end(shown, number, past, attributes or {}, note, chosen={})
    return optuna.load_study(study_name="s", storage=shown._storage).trials[number]


def body(shown: optuna.Study, trial: Any = None) -> str:
    from optuna_dashboard._note import get_note_from_system_attrs

    attributes = shown._storage.get_study_system_attrs(shown._study_id)
    return str(get_note_from_system_attrs(attributes, trial and trial._trial_id)["body"])


CASES: list[tuple[Past, tuple[str, float | None, dict[int, float]]]] = [
    (Past(params={}, state="complete", value=0.5, reports=[0.7, 0.5]), ("COMPLETE", 0.5, {1: 0.7, 2: 0.5})),
    (Past(params={}, state="complete", value=math.inf), ("COMPLETE", math.inf, {})),
    (Past(params={}, state="stopped", reports=[0.7, 0.9]), ("PRUNED", 0.9, {1: 0.7, 2: 0.9})),
    (Past(params={}, state="stopped", reports=[-math.inf]), ("PRUNED", -math.inf, {1: -math.inf})),
    (Past(params={}, state="diverged", reports=[0.7]), ("PRUNED", None, {})),
    (Past(params={}, state="infeasible"), ("PRUNED", None, {})),
    (Past(params={}, state="failed", reports=[0.7]), ("FAIL", None, {})),
    (Past(params={}, state="cancelled"), ("FAIL", None, {})),
]


@pytest.mark.parametrize(("past", "seen"), CASES)
def test_optuna_reads_how_a_trial_ended(
    shown: optuna.Study, past: Past, seen: tuple[str, float | None, dict[int, float]]
) -> None:
    past = Past(params={"epochs": 2}, state=past.state, value=past.value, reports=past.reports)
    trial = ended(shown, past, {"accuracy": 0.75, "fold losses": {"repeat 0 fold 0": 0.5}}, "How it went.")
    assert (trial.state.name, trial.value, trial.intermediate_values) == seen
    assert trial.params == {"epochs": 2}
    assert trial.user_attrs == {
        optuna_tables.KEY: "7.0",
        "origin": "grid",
        "accuracy": 0.75,
        "fold losses": {"repeat 0 fold 0": 0.5},
    }
    assert trial.constraints == ({MEMORY: 1.0} if past.state == "infeasible" else {})
    assert trial.duration.total_seconds() >= 0
    assert abs((optuna.trial.create_trial(value=0.0).datetime_start - trial.datetime_complete).total_seconds()) < 60
    assert body(shown, trial) == "How it went."


def test_a_report_that_is_not_a_number_is_one_for_optuna_too(shown: optuna.Study) -> None:
    trial = ended(shown, Past(params={"epochs": 2}, state="stopped", reports=[0.5, math.nan]))
    assert trial.value is None
    assert trial.intermediate_values[1] == 0.5
    assert math.isnan(trial.intermediate_values[2])


def test_what_has_ended_is_left_as_it_is(shown: optuna.Study) -> None:
    trial = ended(shown, Past(params={"epochs": 2}, state="complete", value=0.5), note="first")
    study.show_end(shown, trial.number, Past(params={}, state="failed"), {"accuracy": 1.0}, "second", chosen={})
    again = shown.trials[trial.number]
    assert (again.state.name, again.value, again.user_attrs) == ("COMPLETE", 0.5, trial.user_attrs)
    assert body(shown, trial) == "first"


def test_a_note_of_any_length_replaces_one_of_any_length(shown: optuna.Study) -> None:
    for note in ("a", "b" * 5000, "", "ü\n'\\" * 1500, "d"):
        study.save_note(shown, note)
        assert body(shown) == note


def test_optunas_tables_are_whole_only_once_all_is_written(engine: Engine) -> None:
    with engine.connect() as connection:
        assert optuna_tables.complete(connection)
        connection.execute(text("DELETE FROM public.alembic_version"))
        assert not optuna_tables.complete(connection)
        connection.execute(text("DROP TABLE public.alembic_version"))
        assert not optuna_tables.complete(connection)


def test_who_opens_tables_that_are_there_waits_for_nobody(engine: Engine) -> None:
    opened = threading.Thread(target=_open_anew, args=(engine.url,))
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": study._LOCK})
        opened.start()
        opened.join(8)
        assert not opened.is_alive()


def _open_anew(url: URL) -> None:
    study._storage.__wrapped__(url).engine.dispose()
