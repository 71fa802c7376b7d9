"""The light engine: real training that repeats bit for bit, goes on from checkpoints, and breaks on demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import learner, study
from benchmarks.chaos.light import LightPack
from benchmarks.chaos.planted import parse
from orchestrator import objective
from orchestrator.contract import EpochDone, Outcome, Settings, TrainUnit, UnitEnded

SETTINGS = Settings(learning_rate=0.1, batch_size=8, epochs=3, lora_rank=4, lora_dropout=0.2)
DATA = learner.examples(study.rows(0), study.LABELS)


def unit(scratch: Path | None = None, number: int = 1, **settings: Any) -> TrainUnit:
    return TrainUnit(
        study=1,
        unit=number,
        lease_epoch=1,
        trial=1,
        repeat=0,
        fold=0,
        seed=77 + number,
        settings=replace(SETTINGS, **settings),
        train=tuple(range(40)),
        validation=tuple(range(40, 60)),
        scratch=None if scratch is None else str(scratch),
    )


def events(pack: LightPack, steps: int = 10_000) -> list[Any]:
    """What a pack tells within so many steps, Progress left out."""
    found: list[Any] = []
    for _ in range(steps):
        found += [event for event in pack.advance() if isinstance(event, EpochDone | UnitEnded)]
        if pack.free == pack.slots:
            break
    return found


def train(order: TrainUnit, **options: Any) -> list[Any]:
    pack = LightPack(DATA, **options)
    pack.add(order)
    return events(pack)


def numbers(found: list[Any]) -> list[Any]:
    """What must not depend on anything but settings and seed."""
    return [(e.epoch, e.train_loss, e.tallies, e.predictions) for e in found if isinstance(e, EpochDone)]


def test_it_learns_and_repeats_bit_for_bit() -> None:
    first, again = train(unit()), train(unit())
    assert numbers(first) == numbers(again)
    losses = [objective.validation_loss(done.tallies) for done in first[:-1]]
    assert losses[-1] < losses[0] < 1.2
    assert first[-1].outcome == Outcome.DONE
    assert objective.metrics(first[2].tallies)["accuracy"] > 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.2},
        {"batch_size": 16},
        {"lora_rank": 2},
        {"lora_alpha": 4.0},
        {"lora_dropout": 0.0},
        {"weight_decay": 0.5},
        {"lr_schedule": "cosine"},
        {"warmup_ratio": 0.5},
        {"warmup_steps": 5},
        {"max_grad_norm": 0.1},
    ],
)
def test_every_setting_has_its_effect(settings: dict[str, Any]) -> None:
    assert numbers(train(unit(**settings)))[-1] != numbers(train(unit()))[-1]


def test_company_changes_nothing() -> None:
    pack = LightPack(DATA, slots=2)
    pack.add(unit())
    pack.add(unit(number=2))
    assert pack.free == 0
    together = [event for event in events(pack) if event.unit == 1]
    assert numbers(together) == numbers(train(unit()))


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 7, 12, 17])
def test_a_suspended_unit_goes_on_bit_for_bit_from_any_step(tmp_path: Path, steps: int) -> None:
    whole = numbers(train(unit()))
    pack = LightPack(DATA)
    pack.add(unit(tmp_path))
    before = numbers(events(pack, steps))
    [ended] = pack.drop(1, "leaving", keep=True)
    assert isinstance(ended, UnitEnded)
    assert (ended.outcome, ended.checkpoint is None) == (Outcome.DROPPED, False)
    after = numbers(train(replace(unit(tmp_path), resume=ended.checkpoint, lease_epoch=2)))
    assert before + after == whole


def test_every_epoch_leaves_a_checkpoint_and_the_last_one_the_adapter(tmp_path: Path) -> None:
    kept = [done.checkpoint for done in train(unit(tmp_path))[:-1]]
    assert [(c.kind, c.epoch, c.step) for c in kept] == [("resume", 1, 5), ("resume", 2, 10), ("adapter", 3, 15)]
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "u1-l1-e1-s5.safetensors"
    resumed = train(replace(unit(tmp_path), resume=kept[1]))
    assert numbers(resumed) == numbers(train(unit()))[2:]


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    kept = train(unit(tmp_path))[0].checkpoint
    [other] = train(replace(unit(tmp_path, learning_rate=0.3), resume=kept))
    assert (other.outcome, "another unit" in other.reason) == (Outcome.FAILED, True)
    path = Path(kept.path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [ended] = train(replace(unit(tmp_path), resume=kept))
    assert (ended.outcome, "damaged" in ended.reason) == (Outcome.FAILED, True)


@pytest.mark.parametrize(
    ("fault", "outcome"), [("raise", Outcome.FAILED), ("nan", Outcome.DIVERGED), ("oom", Outcome.INFEASIBLE)]
)
def test_planted_faults_strike_only_the_units_they_name(fault: str, outcome: Outcome) -> None:
    assert train(unit(), faults=f"{fault}:learning_rate=0.1@2")[-1].outcome == outcome
    assert train(unit(), faults=f"{fault}:learning_rate=0.2@2")[-1].outcome == Outcome.DONE
    assert train(unit(), faults=f"{fault}:batch_size=8; nan:epochs=9")[-1].outcome == outcome


def test_what_cannot_be_planted_is_refused() -> None:
    assert parse("") == ()
    for text in ("explode", "nan:colour=red", "nan@soon"):
        with pytest.raises(ValueError, match=r"FOLDTUNE_LIGHT_FAULT|invalid literal"):
            parse(text)


def test_a_unit_stops_where_its_device_time_does() -> None:
    pack = LightPack(DATA, epoch_seconds=0.02)
    pack.add(replace(unit(), seconds_left=0.05))
    assert events(pack)[-1].outcome == Outcome.OVER_BUDGET
