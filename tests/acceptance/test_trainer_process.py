"""The trainer as the supervisor meets it: a real process, real pipes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import contract
from orchestrator.contract import (
    Beat,
    Checkpoint,
    DropUnit,
    EpochDone,
    Limit,
    OpenStudy,
    Outcome,
    Progress,
    Ready,
    Shutdown,
    StudyOpened,
    StudyRefused,
    TrainUnit,
    UnitEnded,
)
from tests import tiny_models

ROOT = Path(__file__).parents[2]
LIGHT = "tests.light_engine"
PARENT = """
import os, subprocess, sys
read, write = int(sys.argv[1]), int(sys.argv[2])
trainer = [sys.executable, "-m", "trial_worker.trainer", "--read-fd", str(read), "--write-fd", str(write)]
trainer += ["--engine", "tests.light_engine"]
child = subprocess.Popen(trainer, pass_fds=[read, write])
print(child.pid, flush=True)
child.wait()
"""


class Supervisor:
    """The other end of a trainer's pipes."""

    def __init__(self, *, through: str | None = None, engine: str | None = None) -> None:
        """through: a program that starts the trainer instead, see PARENT. engine: another than the trainer's own."""
        read, self._write_end = os.pipe()
        self._read_end, write = os.pipe()
        start = ["-m", "trial_worker.trainer", "--read-fd", str(read), "--write-fd", str(write)]
        if engine:
            start += ["--engine", engine]
        if through:
            start = ["-c", through, str(read), str(write)]
        self.process = subprocess.Popen(
            [sys.executable, *start],
            pass_fds=[read, write],
            cwd=ROOT,  # where a test's engine is found
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(read)
        os.close(write)
        self._out = os.fdopen(self._write_end, "w", buffering=1)
        self._lines = os.fdopen(self._read_end)

    def send(self, *messages: Any) -> None:
        for message in messages:
            self._out.write(contract.encode(message) + "\n")

    def hear(self) -> Any:
        line = self._lines.readline()
        assert line, f"the trainer ended: {self.process.communicate(timeout=10)}"
        return contract.decode(line)

    def ends(self, *, count: int) -> list[UnitEnded]:
        """So many units' ends, in their order."""
        return [self.until(UnitEnded)[-1] for _ in range(count)]

    def until(self, kind: type[Any], *, unit: int | None = None) -> list[Any]:
        """All messages up to the first of this kind (of this unit)."""
        heard = [self.hear()]
        while not (isinstance(heard[-1], kind) and unit in (None, heard[-1].unit)):
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self._out.close()

    def rest(self) -> str:
        return self._lines.read()


@contextlib.contextmanager
def supervising(**options: Any) -> Iterator[Supervisor]:
    supervisor = Supervisor(**options)
    try:
        yield supervisor
    finally:
        supervisor.process.kill()
        supervisor.process.communicate(timeout=20)
        with contextlib.suppress(BrokenPipeError):
            supervisor.close()
        supervisor._lines.close()


@pytest.fixture
def study(tmp_path: Path) -> OpenStudy:
    folder = tiny_models.save_bert(tmp_path / "bert")
    rows = tiny_models.write_rows(tmp_path / "rows.jsonl", tiny_models.classification_rows())
    return OpenStudy(
        study=1,
        name="tiny",
        task="classification",
        model=tiny_models.pin(folder),
        data=str(rows),
        labels=tiny_models.LABELS,
    )


def numbers(heard: list[Any]) -> list[Any]:
    return [(e.epoch, e.train_loss, e.tallies, e.predictions) for e in heard if isinstance(e, EpochDone)]


def test_a_whole_life_in_one_process(study: OpenStudy, tmp_path: Path) -> None:
    """One process, since each start costs seconds: everything that a trainer is asked between Ready and the end."""
    with supervising() as trainer:
        ready = trainer.hear()
        assert isinstance(ready, Ready)
        assert ready.torch

        # what cannot be opened is refused in one line, with the evidence, and the process goes on
        trainer.send(dataclasses.replace(study, study=7, model=dataclasses.replace(study.model, path="/no/model")))
        refused = trainer.hear()
        assert isinstance(refused, StudyRefused)
        assert (refused.study, "\n" in refused.reason, "no model folder" in refused.reason) == (7, False, True)
        assert "Traceback" in refused.evidence
        trainer.send(dataclasses.replace(study, study=8, labels=("feeling", "food")))
        assert "row 0: label 'tool'" in trainer.hear().reason

        trainer.send(study)
        opened = trainer.hear()
        assert isinstance(opened, StudyOpened)
        assert (opened.seconds > 0, opened.slots) == (True, 1)

        # a unit, and the same again with another between: the same bits
        unit = tiny_models.unit(lora_dropout=0.1)
        trainer.send(unit, tiny_models.unit(number=2, seed=3), dataclasses.replace(unit, unit=3))
        first = trainer.until(UnitEnded, unit=1)
        assert first[-1].outcome == Outcome.DONE
        assert sum(isinstance(message, Progress) for message in first) <= 1 + first[-2].seconds * 2 + 1
        trainer.until(UnitEnded, unit=2)
        assert numbers(trainer.until(UnitEnded, unit=3)) == numbers(first)

        # a unit of an unknown study, one that raises, one that is dropped before and one while it trains
        long = tiny_models.unit(number=6, epochs=1000)
        trainer.send(dataclasses.replace(unit, study=99, unit=4))
        assert trainer.hear().outcome == Outcome.FAILED
        trainer.send(tiny_models.unit(number=5, target_modules=["no_such_layer"]))
        failed = trainer.until(UnitEnded)[-1]
        assert (failed.outcome, "no_such_layer" in failed.evidence) == (Outcome.FAILED, True)
        trainer.send(long, dataclasses.replace(unit, unit=7))
        trainer.until(EpochDone)
        trainer.send(DropUnit(unit=7, reason="not yet begun"), DropUnit(unit=6, reason="lease lost"))
        assert [(e.unit, e.outcome, e.reason) for e in trainer.ends(count=2)] == [
            (7, Outcome.DROPPED, "not yet begun"),
            (6, Outcome.DROPPED, "lease lost"),
        ]

        # broken off in its second epoch; the rest is for another process
        kept = dataclasses.replace(tiny_models.unit(number=11, lora_dropout=0.1, epochs=20), scratch=str(tmp_path))
        trainer.send(kept, dataclasses.replace(kept, unit=12))
        begun = trainer.until(EpochDone)
        trainer.send(DropUnit(unit=11, reason="leaving", keep=True))
        begun += trainer.until(UnitEnded)
        dropped = begun[-1]
        assert dropped.checkpoint.kind == "resume"
        assert dropped.checkpoint.epoch >= 1
        whole = trainer.until(UnitEnded, unit=12)
        assert whole[-1].outcome == Outcome.DONE

        # hours: no epoch begins that would not end in time
        trainer.send(dataclasses.replace(long, unit=8))
        trainer.until(EpochDone)
        trainer.send(Limit(unit=8, seconds_left=0.0))
        over = trainer.until(UnitEnded)[-1]
        assert over.outcome == Outcome.OVER_BUDGET

        # and the process is clean after all this
        trainer.send(dataclasses.replace(unit, unit=9))
        assert numbers(trainer.until(UnitEnded)) == numbers(first)

        # Ctrl-C in a terminal reaches it too, but the supervisor decides; the end of its input ends it at once
        trainer.process.send_signal(signal.SIGINT)
        trainer.send(dataclasses.replace(long, unit=10))
        trainer.until(EpochDone)
        trainer.close()
        assert trainer.process.wait(timeout=10) == 0
        assert '"UnitEnded"' not in trainer.rest()
        assert trainer.process.communicate()[0] == ""

    with supervising() as other:
        other.send(study, dataclasses.replace(kept, lease_epoch=2, resume=dropped.checkpoint))
        rest = other.until(UnitEnded)
        assert rest[-1].outcome == Outcome.DONE
    assert numbers(begun + rest) == numbers(whole)
    assert adapter(rest) == adapter(whole)


def adapter(heard: list[Any]) -> bytes:
    """The last file of a unit that is done."""
    found = [message for message in heard if isinstance(message, EpochDone)][-1].checkpoint
    assert found is not None
    assert found.kind == "adapter"
    return Path(found.path).read_bytes()


# --- what needs no torch -----------------------------------------------------------------------------------


def light(number: int, *, steps: int = 2, epochs: int = 1, **chosen: Any) -> TrainUnit:
    """A unit of so many steps and evaluation batches in each epoch, see `light_engine`."""
    return dataclasses.replace(tiny_models.unit(number=number, batch_size=steps, epochs=epochs), **chosen)


def opened(study: int = 1, name: str = "light") -> OpenStudy:
    return OpenStudy(study=study, name=name, task="", model=tiny_models.pin(Path("none")), data="", labels=())


@pytest.fixture
def trainer() -> Iterator[Supervisor]:
    """One with the light engine, a study open."""
    with supervising(engine=LIGHT) as supervisor:
        supervisor.send(opened())
        assert supervisor.hear() == Ready(device="light", torch="none", transformers="none", peft="none")
        assert supervisor.hear().slots == 3
        yield supervisor


LONG = 4000  # epochs


def test_units_fill_the_slots_and_those_that_come_free(trainer: Supervisor) -> None:
    trainer.send(light(1, epochs=LONG), light(2, epochs=9), light(3, epochs=LONG), *(light(n) for n in (4, 5, 6)))
    heard = trainer.until(UnitEnded, unit=6)
    ends = [message.unit for message in heard if isinstance(message, UnitEnded)]
    assert ends == [2, 4, 5, 6]  # one slot after another, in the order in which they came
    assert [e.epoch for e in heard if isinstance(e, EpochDone) and e.unit == 2] == list(range(1, 10))
    told = [message.unit for message in heard if isinstance(message, Progress)]
    assert {1, 2, 3} <= set(told)  # no unit is silent because another one has just spoken


def test_a_unit_is_dropped_or_limited_wherever_it_is(trainer: Supervisor) -> None:
    given = Checkpoint(path="/given", sha256="1" * 64, bytes=1, kind="resume", epoch=1, step=2)
    trainer.send(*(light(n, epochs=LONG) for n in (1, 2, 3)), *(light(n, resume=given) for n in (4, 5)))
    trainer.send(light(6, epochs=LONG), light(7, epochs=LONG))
    trainer.until(EpochDone, unit=3)
    trainer.send(DropUnit(unit=2, reason="r", keep=True), *(DropUnit(unit=n, reason="r") for n in (4, 99)))
    trainer.send(
        DropUnit(unit=5, reason="r", keep=True), Limit(unit=3, seconds_left=0.0), Limit(unit=7, seconds_left=0)
    )
    ends = {end.unit: end for end in trainer.ends(count=5)}
    assert {n: end.outcome for n, end in ends.items()} == {
        2: Outcome.DROPPED,
        3: Outcome.OVER_BUDGET,
        4: Outcome.DROPPED,
        5: Outcome.DROPPED,
        7: Outcome.OVER_BUDGET,
    }
    kept = [ends[n].checkpoint and ends[n].checkpoint.path for n in (2, 4, 5)]
    assert kept == ["/kept", None, "/given"]

    # the same unit again, under another lease
    trainer.send(light(2, lease_epoch=2))
    assert (ended := trainer.until(UnitEnded)[-1]).outcome == Outcome.DONE
    assert (ended.unit, ended.lease_epoch) == (2, 2)


def test_opening_another_study_drops_the_units_of_the_last(trainer: Supervisor) -> None:
    trainer.send(*(light(n, epochs=LONG) for n in (1, 2, 3, 4)), opened(2), light(5), light(6, study=2))
    assert [(e.unit, e.outcome) for e in trainer.ends(count=4)] == [(n, Outcome.DROPPED) for n in (1, 2, 3, 4)]
    assert trainer.hear().study == 2
    assert [(e.unit, e.outcome) for e in trainer.ends(count=2)] == [(5, Outcome.FAILED), (6, Outcome.DONE)]

    # after one that cannot be opened none is
    trainer.send(opened(3, "unusable"), light(7, study=2))
    refused, failed = trainer.hear(), trainer.hear()
    assert (refused.reason, failed.reason) == ("this study is unusable", "study 2 is not open in this process")


def test_a_long_evaluation_beats_about_once_a_second(trainer: Supervisor) -> None:
    trainer.send(light(1, steps=1200))
    started = time.monotonic()
    heard = trainer.until(UnitEnded)
    seconds = time.monotonic() - started
    beats = [place for place, message in enumerate(heard) if isinstance(message, Beat)]
    assert 2 <= len(beats) <= seconds
    assert min(beats) > max(place for place, message in enumerate(heard) if isinstance(message, Progress))


def test_a_trainer_asked_for_its_stacks_goes_on(trainer: Supervisor) -> None:
    trainer.send(light(1, epochs=LONG))
    trainer.until(EpochDone)
    trainer.process.send_signal(signal.SIGUSR1)
    trainer.send(DropUnit(unit=1, reason="r"), light(2))
    assert trainer.ends(count=2)[-1].outcome == Outcome.DONE
    trainer.send(Shutdown())
    stacks = trainer.process.communicate(timeout=10)[1]
    assert trainer.process.returncode == 0
    assert "most recent call first" in stacks
    assert "light_engine.py" in stacks or "in run" in stacks
    assert "in _read" in stacks  # the thread that listens


def test_a_shutdown_ends_it() -> None:
    with supervising(engine=LIGHT) as trainer:
        trainer.send(Shutdown())
        assert isinstance(trainer.hear(), Ready)
        assert trainer.process.wait(timeout=20) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends the child on Linux only")
def test_it_dies_with_its_parent_though_its_input_stays_open() -> None:
    with supervising(through=PARENT) as trainer:
        assert isinstance(trainer.hear(), Ready)
        assert trainer.process.stdout is not None
        child = int(trainer.process.stdout.readline())
        os.kill(trainer.process.pid, signal.SIGKILL)
        trainer.process.wait(timeout=10)
        assert trainer.rest() == ""  # the write end is closed: the child is gone
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and _runs(child):
            time.sleep(0.02)
        assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
