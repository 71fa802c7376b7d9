"""Die at every statement and commit around a stop by racing, and see it heal: run by test_rungs.py.

`python -m tests.database.racing_scenario SERVER_URL TEMPLATE FOLDER` prints one JSON object, as `crash_scenario` does.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from orchestrator import lifecycle, study, trials
from orchestrator.database.engine import connect
from orchestrator.launch import launch
from tests import postgres
from tests.database import crash_scenario, studies

FIRST = "before SELECT id FROM unit WHERE trial = ANY"  # the stop's first statement
LAST = "before UPDATE trial SET told = true"


def write(folder: Path) -> Path:
    """Two points of a grid; the second is far behind."""
    return studies.write(folder, rates="[1e-3]", folds=2, more="training: {epochs: 1}\nracing: {rule: forgiving}\n")


def live(url: str, folder: Path) -> None:
    """Launch, and train until nothing is left. Can be begun again anywhere."""
    engine = connect(make_url(url))
    launch(engine, studies.prepared(folder / "s.yaml"))
    studies.expire_all(engine)
    worker = studies.worker(engine)
    while (taken := trials.take(engine, worker, ["s"])) is not None:
        lease = taken[1]
        for epoch in range(1, lease.settings.epochs + 1):
            loss = (9.0 if lease.settings.batch_size == 8 and lease.settings.learning_rate == 1e-3 else 1.0) / epoch
            trials.report(engine, lease, [studies.epoch_done(lease, epoch=epoch, loss=loss)])
        trials.finish(engine, "s", lease, studies.end(lease))


def state(url: str) -> list[Any]:
    """All that must be the same after any death."""
    engine = connect(make_url(url))
    shown = study.storage(engine.url)
    ended = [
        (trial.number, trial.state.name, trial.value, sorted(trial.intermediate_values.items()))
        for trial in shown.get_all_trials(shown.get_study_id_from_name("s"))
    ]
    tables = (
        "SELECT configuration, state::text, value, reason, told FROM trial ORDER BY configuration",
        "SELECT trial, repeat, fold, state::text, charges, reason FROM unit ORDER BY 1, 2, 3",
        "SELECT state::text FROM study",
        "SELECT count(*) FROM attempt WHERE ended_at IS NULL",
        "SELECT count(*), count(DISTINCT (unit, epoch)) FROM result",
    )
    return json.loads(json.dumps([ended, *([list(row) for row in studies.rows(engine, query)] for query in tables)]))


def chosen(places: Sequence[str]) -> list[str]:
    """From the stop's first statement until Optuna has heard of it: every second of ours, two of Optuna's hundred."""
    first = next(at for at, place in enumerate(places) if place.startswith(FIRST))
    last = next(at for at, place in enumerate(places) if at > first and place.startswith(LAST))
    around = [place for place in places[first - 4 : last + 4] if not crash_scenario.as_before(place)]
    ours = [place for place in around if not place.startswith("optuna: ")]
    return ours[::2] + [place for place in around if place.startswith("optuna: ")][20::60][:2]


def main(server: str, template: str, root: Path) -> dict[str, Any]:
    """Visit the chosen places."""
    lifecycle.RETURN_SECONDS = 0.0  # no owner will come back
    warm = root / "warm"
    warm.mkdir()
    write(warm)
    with postgres.fresh_database(server, template) as url:  # so that no fork pays for imports again
        live(url, warm)
        engine = connect(make_url(url))
        study.storage(engine.url).remove_session()
        study.storage(engine.url).engine.dispose()
        engine.dispose()
    undisturbed = root / "undisturbed"
    undisturbed.mkdir()
    write(undisturbed)
    with postgres.fresh_database(server, template) as url:
        assert crash_scenario.in_child(lambda: live(url, undisturbed), None, undisturbed / "places") == 0
        expected = crash_scenario.answer_of(lambda: state(url), undisturbed / "answer")
    visited = chosen((undisturbed / "places").read_text().splitlines())
    problems, survived = {}, []
    for number, place in enumerate(visited):
        folder = root / str(number)
        folder.mkdir()
        write(folder)
        with postgres.fresh_database(server, template) as url:
            if crash_scenario.in_child(lambda url=url, folder=folder: live(url, folder), place) != -signal.SIGKILL:
                survived.append(place)
            code = crash_scenario.in_child(lambda url=url, folder=folder: live(url, folder), None)
            found = crash_scenario.answer_of(lambda url=url: state(url), folder / "answer")
            if code or found != expected:
                problems[place] = [code, found]
        shutil.rmtree(folder)
    return {"visited": visited, "survived": survived, "problems": problems, "expected": expected}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
