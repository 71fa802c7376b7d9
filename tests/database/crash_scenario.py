"""Die at every statement, commit, fsync and rename of a study's life, and see it heal: run by test_crash_points.py.

`python -m tests.database.crash_scenario SERVER_URL TEMPLATE FOLDER SHARE OF [PATTERN]` prints one JSON object: how many
places there are, and what was found wrong after a death at each; of a short choice, or of all whose name the regular
expression finds. One process without threads, which forks: a fresh one
for each place would spend its seconds on imports.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from orchestrator import cleaning, control, crash_points, durable, lifecycle, reading, study, workers
from orchestrator.contract import Checkpoint, EpochDone, Outcome, Predictions, UnitEnded, pack_floats
from orchestrator.database.engine import connect
from orchestrator.devices import Device
from orchestrator.launch import launch
from orchestrator.prepare import prepare
from orchestrator.records import Lease
from orchestrator.study_file import load
from tests import postgres
from tests.database import studies
from trial_worker.clerk import Clerk
from trial_worker.desk import AllDone, Desk, Taken, Wanted
from trial_worker.line import Line
from trial_worker.spool import Delivery, Spool, name_of

STUDY = """
study: s
model: {path: ./model}
task: classification
data: {path: rows.jsonl}
cross_validation: {folds: 2}
baselines: []
training: {epochs: 2}
artifacts: {store: ./store, keep: 1}
search:
  sampler: tpe
  space: {learning_rate: {low: 1e-5, high: 1e-1, log: true}}
budget: {trials: 1}
racing: {rule: none}
"""
LOOKS = 3


def write(folder: Path) -> None:
    """The study file, its data and its store."""
    studies.write(folder).write_text(STUDY, encoding="utf-8")
    (folder / "store").mkdir(exist_ok=True)


def live(url: str, folder: Path) -> None:
    """A whole life: launch, stop, resume, work until all is done, clean up. Can be begun again anywhere."""
    engine = connect(make_url(url))
    launch(engine, prepare(load(folder / "s.yaml"))[0])
    if not (folder / "stopped").exists():
        (folder / "stopped").touch()
        control.stop(engine, "s")
    if studies.rows(engine, "SELECT 1 FROM study WHERE state = 'stopped'"):
        control.resume(engine, "s")
    studies.expire_all(engine)
    desk = desk_of(engine, folder)
    clerk = Clerk(desk)
    clerk._adopt()
    while True:
        for _ in range(LOOKS):  # the look that closes a study finds nothing; the next one, that all is done
            clerk._take_one()
            if not desk.inbox.empty():
                break
        event = desk.inbox.get_nowait()
        if isinstance(event, AllDone):
            break
        if isinstance(event, Taken):
            train(desk, event, folder)
            while clerk._deliver_some():
                pass
    clerk._tidy()
    desk.spool.close()
    workers.leave(engine, desk.worker, "no work left")


def desk_of(engine: Engine, folder: Path) -> Desk:
    """A worker's desk, its spool in a folder of its own."""
    worker, device = workers.register(engine, [Device("cpu")])
    return Desk(
        engine=engine,
        worker=worker,
        device=device,
        names=("s",),
        spool=Spool(folder / "spool" / name_of(worker)),
        cache=folder / "cache",
        inbox=queue.Queue(),
        say=lambda _: None,
        line=Line(lambda _: None),
        wanted=Wanted(1),
    )


def train(desk: Desk, taken: Taken, folder: Path) -> None:
    """What the trainer would bring: its results follow from the configuration and the fold alone."""
    lease, first = taken.lease, 1 + (taken.resume.epoch if taken.resume else 0)
    for epoch in range(first, lease.settings.epochs + 1):
        desk.deliver(Delivery("s", lease, epoch_done(lease, epoch, desk.spool.folder)))
    ended = UnitEnded(unit=lease.unit, lease_epoch=lease.epoch, outcome=Outcome.DONE)
    desk.deliver(Delivery("s", lease, ended))


def epoch_done(lease: Lease, epoch: int, scratch: Path) -> EpochDone:
    """One epoch with its checkpoint."""
    kind = "adapter" if epoch == lease.settings.epochs else "resume"
    path = scratch / f"u{lease.unit}-l{lease.epoch}-e{epoch}-s{epoch}.safetensors"
    content = f"{kind} {lease.unit} {epoch}".encode()
    sha256 = durable.write(path, content)
    loss = studies.loss_of(lease) / epoch
    tallies = studies.epoch_done(lease, epoch=epoch, loss=loss).tallies
    return EpochDone(
        unit=lease.unit,
        lease_epoch=lease.epoch,
        epoch=epoch,
        train_loss=loss,
        seconds=1.0,
        tallies=tallies,
        predictions=Predictions(nats=pack_floats([loss] * 6), counts=pack_floats([1.0] * 6)),
        checkpoint=Checkpoint(path=str(path), sha256=sha256, bytes=len(content), kind=kind, epoch=epoch, step=epoch),
    )


def table(engine: Engine) -> list[tuple[Any, ...]]:
    """What the study found."""
    return studies.rows(engine, "SELECT configuration, state::text, value FROM trial ORDER BY configuration")


def wrong(url: str, folder: Path, expected: Sequence[Any]) -> list[str]:
    """What must hold after a study's life, and does not."""
    engine = connect(make_url(url))
    found = []

    def check(claim: str, seen: object, wanted: object) -> None:
        if seen != wanted:
            found.append(f"{claim}: {seen}, should be {wanted}")

    check("table", [list(row) for row in table(engine)], [list(row) for row in expected])
    check("study", studies.rows(engine, "SELECT state::text FROM study"), [("complete",)])
    check("units", studies.rows(engine, "SELECT state::text, count(*) FROM unit GROUP BY 1"), [("done", 4)])
    check("charges", studies.rows(engine, "SELECT sum(charges) FROM unit"), [(0,)])
    check("results", studies.rows(engine, "SELECT count(*), count(DISTINCT (unit, epoch)) FROM result"), [(8, 8)])
    check("live attempts", studies.rows(engine, "SELECT count(*) FROM attempt WHERE ended_at IS NULL"), [(0,)])
    stale = "SELECT count(*) FROM result r JOIN attempt a USING (unit, lease_epoch) WHERE r.reported_at < a.granted_at"
    check("stale results", studies.rows(engine, stale), [(0,)])
    check("states to resume from", studies.rows(engine, "SELECT count(*) FROM artifact WHERE kind = 'resume'"), [(0,)])
    check("waiting results", [str(file) for file in (folder / "spool").glob("*/*.json")], [])
    shown = study.storage(engine.url)
    trials = shown.get_all_trials(shown.get_study_id_from_name("s"))
    ended = sorted((trial.state.name, trial.value) for trial in trials if trial.state.name != "FAIL")
    values = sorted(("COMPLETE", row[2]) for row in expected)
    check("optuna", [list(row) for row in ended], [list(row) for row in values])
    check("optuna's failures are those that `stop` cancelled", [t for t in trials if t.state.name == "FAIL"][1:], [])
    cleaning.sweep(engine, reading.view(engine, "s").record, older_than=0.0)
    files = {file.name for file in (folder / "store").glob("*/*")}
    named = {place.rpartition("/")[2] for (place,) in studies.rows(engine, "SELECT place FROM artifact")}
    check("files that no row names", sorted(files - named), [])
    check("rows without their file", sorted(named - files), [])
    return found


def in_child(action: Callable[[], object], at: str | None, log: Path | None = None) -> int:
    """Do it in a fork that dies at the place; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            connect.cache_clear()
            study._storage.cache_clear()
            crash_points.arm(at, log)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def answer_of(action: Callable[[], Any], file: Path) -> Any:
    """What an action returns in a fork of its own."""
    code = in_child(lambda: file.write_text(json.dumps(action())), None)
    return json.loads(file.read_text()) if code == 0 else [f"exit {code}"]


def warm_up(url: str, root: Path) -> Any:
    """One life in this process, so that no fork pays for imports again; the undisturbed table."""
    root.mkdir()
    write(root)
    live(url, root)
    engine = connect(make_url(url))
    found = [list(row) for row in table(engine)]
    study.storage(engine.url).remove_session()
    study.storage(engine.url).engine.dispose()
    engine.dispose()
    return found


def chosen(places: Sequence[str], pattern: str | None) -> list[str]:
    """All places with the pattern in their names; without one a short choice.

    That is the first place of each name, our own statements and files only, where something changes. Between the end of
    a statement and the beginning of the next nothing does, nor by reading: one place is enough.
    """
    if pattern is not None:
        return [place for place in places if re.search(pattern, place)]
    first: dict[str, str] = {}
    for place in places:
        first.setdefault(place.rpartition("@")[0], place)
    return [place for place in first.values() if not place.startswith("optuna: ") and not as_before(place)]


def as_before(place: str) -> bool:
    """Whether a death here leaves what one at another place does."""
    return (place.startswith("after ") and "#" in place) or place.startswith("before SELECT")


def main(server: str, template: str, root: Path, *, share: int, of: int, pattern: str | None) -> dict[str, Any]:
    """Visit every `of`-th of the chosen places, beginning with the `share`-th."""
    lifecycle.RETURN_SECONDS = 0.0  # no owner will come back
    with postgres.fresh_database(server, template) as url:
        expected = warm_up(url, root / "warm")
    undisturbed = root / "undisturbed"
    undisturbed.mkdir()
    write(undisturbed)
    with postgres.fresh_database(server, template) as url:
        assert in_child(lambda: live(url, undisturbed), None, undisturbed / "places") == 0
        problems = {"none": answer_of(lambda: wrong(url, undisturbed, expected), undisturbed / "answer")}
    places = (undisturbed / "places").read_text().splitlines()
    visited = chosen(places, pattern)[share::of]
    survived = []
    for number, place in enumerate(visited):
        folder = root / str(number)
        folder.mkdir()
        write(folder)
        with postgres.fresh_database(server, template) as url:
            if in_child(lambda url=url, folder=folder: live(url, folder), place) != -signal.SIGKILL:
                survived.append(place)
            code = in_child(lambda url=url, folder=folder: live(url, folder), None)
            found = answer_of(lambda url=url, folder=folder: wrong(url, folder, expected), folder / "answer")
            if code or found:
                problems[place] = [f"exit {code}"] * bool(code) + found
        shutil.rmtree(folder)
    return {
        "places": len(places),
        "chosen": len(chosen(places, pattern)),
        "visited": len(visited),
        "survived": survived,
        "problems": {place: found for place, found in problems.items() if found},
    }


if __name__ == "__main__":
    share, of = int(sys.argv[4]), int(sys.argv[5])
    pattern = sys.argv[6] if len(sys.argv) > 6 else None
    found = main(*sys.argv[1:3], Path(sys.argv[3]), share=share, of=of, pattern=pattern)
    print(json.dumps(found))
