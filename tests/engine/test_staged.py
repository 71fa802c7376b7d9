"""Units on their way to more rows: texts that models write, labels that models of the training fold give."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.contract import EpochDone, OpenStudy, Outcome, Progress, Settings, TrainUnit, UnitEnded, WriterPin
from tests import tiny_models
from tests.scripted import Scripted
from trial_worker.augment.made import Made
from trial_worker.augment.prompts import Asked
from trial_worker.engine import Base, Pack, Rows, Staged, courses, open_study, pack, slot, staged, training_part
from trial_worker.engine.courses import Write
from trial_worker.engine.writer import Writer
from trial_worker.tasks import Classification

ROWS = tiny_models.classification_rows(24)
POOL = [{"text": f"{row['text']} and {i}"} for i, row in enumerate(tiny_models.classification_rows(9))]
SELF = {"pseudo_rounds": 2, "pseudo_threshold": 0.0, "epochs": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    names = ("bert", "gpt2", "llama", "t5")
    return {name: getattr(tiny_models, f"save_{name}")(root / name) for name in names}


@pytest.fixture(scope="module")
def bert(folders: dict[str, Path]) -> Base:
    return Base.load(tiny_models.pin(folders["bert"]), "sequence", 3)


def staged_pack(
    base: Base, cache: Path | None = None, *, rows: Any = ROWS, pool: Any = (), slots: int = 1, **writers: Writer
) -> Staged:
    return Staged(
        Pack(base, Rows(Classification(tiny_models.LABELS), rows, base.tokenizer, pool), slots), writers, cache
    )


@dataclasses.dataclass
class Told:
    steps: list[Progress]
    epochs: list[EpochDone]
    end: UnitEnded | None = None

    @property
    def numbers(self) -> list[Any]:
        return [[s.loss for s in self.steps], [(e.epoch, e.tallies, e.predictions) for e in self.epochs]]


def train(pack: Staged | Pack, unit: TrainUnit, advances: int = 100_000) -> Told:
    """Train a unit to its end, or so many advances far."""
    pack.add(unit)
    told = Told([], [])
    for _ in range(advances):
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                told.end = event
                return told
            (told.steps if isinstance(event, Progress) else told.epochs).append(event)
    return told


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], list[Made]]]:
    """(training rows, made rows) of every unit that comes to train, inner ones too."""
    seen: list[tuple[tuple[int, ...], list[Made]]] = []
    made_rows = training_part.made_rows

    def spy(rows: Rows, unit: TrainUnit, given: Any) -> list[Made]:
        made = made_rows(rows, unit, given)
        seen.append((unit.train, made))
        return made

    monkeypatch.setattr(training_part, "made_rows", spy)
    return seen


# --- self-training ------------------------------------------------------------------------------------------


def test_a_pool_is_labelled_by_models_of_the_training_fold_alone(bert: Base, admitted: Any) -> None:
    unit = tiny_models.unit(**SELF)
    told = train(staged_pack(bert, pool=POOL), unit)
    assert told.end is not None
    assert told.end.outcome == Outcome.DONE, told.end
    assert [len(made) for _, made in admitted[:3]] == [0, 0, 0]
    parts = [set(unit.train) - set(training) for training, _ in admitted[:3]]
    assert sorted(row for part in parts for row in part) == sorted(unit.train)
    assert [training for training, _ in admitted[3:]] == [unit.train, unit.train]
    for _, made in admitted[3:]:
        assert 0 < len(made) <= len(POOL)
        assert all(one.sources == unit.train and one.technique == "self-training" for one in made)
        assert {one.row["text"] for one in made} <= {row["text"] for row in POOL}
    assert [epoch.epoch for epoch in told.epochs] == [1]
    assert told.epochs[0].tallies["items"] == len(unit.validation)


def test_labels_of_validation_rows_change_nothing_that_is_trained(bert: Base, admitted: Any, tmp_path: Path) -> None:
    unit = tiny_models.unit(**SELF, word_noise=0.2)
    turned = [
        {**row, "label": tiny_models.LABELS[(i + 1) % 3]} if i in unit.validation else row for i, row in enumerate(ROWS)
    ]
    # unlabelled rows that validation rows stand among: what a careless user has
    pool = [*POOL, *({"text": ROWS[i]["text"].upper()} for i in unit.validation)]
    found = []
    for name, rows in (("as they are", ROWS), ("turned", turned)):
        (tmp_path / name).mkdir()
        told = train(staged_pack(bert, rows=rows, pool=pool), dataclasses.replace(unit, scratch=str(tmp_path / name)))
        checkpoint = told.epochs[-1].checkpoint
        assert checkpoint is not None
        found.append(([step.loss for step in told.steps], list(admitted), Path(checkpoint.path).read_bytes()))
        admitted.clear()
    assert found[0] == found[1]
    said = {one.row["text"].casefold() for _, made in found[0][1] for one in made}
    assert not said & {ROWS[i]["text"].casefold() for i in unit.validation}


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_threshold_decides_how_many_come_in(threshold: float, bert: Base, admitted: Any) -> None:
    train(staged_pack(bert, pool=POOL), tiny_models.unit(pseudo_rounds=1, pseudo_threshold=threshold, epochs=1))
    assert len(admitted) == 4
    assert len(admitted[-1][1]) == (len(POOL) if threshold == 0 else 0)


def test_seconds_of_all_stages_are_reported_with_the_first_epoch(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def later() -> float:
        nonlocal now
        now += 10
        return now

    monkeypatch.setattr(pack, "monotonic", later)
    alone = train(staged_pack(bert), tiny_models.unit(epochs=2)).epochs
    own = train(staged_pack(bert, pool=POOL), tiny_models.unit(pseudo_rounds=1, pseudo_threshold=1.0, epochs=2)).epochs
    assert own[1].seconds == alone[1].seconds
    assert own[0].seconds > alone[0].seconds + 3 * 2 * 10


def test_a_unit_without_time_for_its_stages_is_over_budget(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "monotonic", iter(range(0, 10**6, 10)).__next__)
    told = train(staged_pack(bert, pool=POOL), dataclasses.replace(tiny_models.unit(**SELF), seconds_left=75.0))
    assert told.end is not None
    assert (told.end.outcome, told.epochs) == (Outcome.OVER_BUDGET, [])


def test_a_course_that_is_broken_off_ends_with_the_same_bits(bert: Base, tmp_path: Path) -> None:
    unit = dataclasses.replace(tiny_models.unit(**{**SELF, "epochs": 2}), scratch=str(tmp_path))
    whole = train(staged_pack(bert, pool=POOL), unit)
    for advances in (1, 4, 8, 13, 17):
        cache = tmp_path / f"cache {advances}"
        staged_ = staged_pack(bert, cache, pool=POOL)
        train(staged_, unit, advances)
        assert [end.outcome for end in staged_.drop(unit.unit, "break", keep=True)] == [Outcome.DROPPED]
        assert staged_.free == staged_.slots
        again = train(staged_pack(bert, cache, pool=POOL), unit)
        assert again.numbers == whole.numbers, advances
        assert sorted(path.suffix for path in cache.iterdir()) == [".logits"] * 4


def test_a_stage_goes_on_from_its_last_epoch_or_step(
    bert: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[tuple[int, int]] = []
    begin_epoch = slot.Slot.begin_epoch

    def spy(self: slot.Slot, *paces: float | None) -> None:
        began.append((self.at.epoch, self.at.step))
        begin_epoch(self, *paces)

    monkeypatch.setattr(slot.Slot, "begin_epoch", spy)
    unit = tiny_models.unit(**{**SELF, "epochs": 3})  # stages have 12 rows: 2 steps an epoch, and 3 with the rest
    for keep, advances, expected in ((True, 3, (1, 3)), (False, 3, (1, 2)), (False, 1, (0, 0))):
        cache = tmp_path / f"{keep} {advances}"
        broken = staged_pack(bert, cache, pool=POOL)
        train(broken, unit, advances)
        broken.drop(unit.unit, "break", keep=keep)  # without it as after a kill: nothing is written
        began.clear()
        again = staged_pack(bert, cache, pool=POOL)
        train(again, unit, 1)
        again.drop(unit.unit, "seen enough")
        assert began == [expected]


def test_damaged_files_of_a_stage_are_passed_over(bert: Base, tmp_path: Path) -> None:
    unit = tiny_models.unit(**{**SELF, "epochs": 2})
    whole = train(staged_pack(bert, pool=POOL), unit)
    broken = staged_pack(bert, tmp_path, pool=POOL)
    train(broken, unit, 3)
    broken.drop(unit.unit, "break", keep=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".resume", ".state"]
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert train(staged_pack(bert, tmp_path, pool=POOL), unit).numbers == whole.numbers


def test_a_unit_goes_on_from_its_checkpoint_where_its_course_is_kept_and_else_anew(bert: Base, tmp_path: Path) -> None:
    unit = dataclasses.replace(tiny_models.unit(**{**SELF, "epochs": 3}), scratch=str(tmp_path))
    first = train(staged_pack(bert, tmp_path / "cache", pool=POOL), unit)
    resumed = dataclasses.replace(unit, resume=first.epochs[0].checkpoint, lease_epoch=2)
    again = train(staged_pack(bert, tmp_path / "cache", pool=POOL), resumed)
    assert [epoch.epoch for epoch in again.epochs] == [2, 3]
    assert again.numbers[1] == first.numbers[1][1:]
    elsewhere = train(staged_pack(bert, tmp_path / "other", pool=POOL), resumed)
    assert elsewhere.numbers == first.numbers


def test_units_of_every_kind_share_the_slots(bert: Base) -> None:
    units = [tiny_models.unit(number=i, seed=i, **(SELF if i % 2 else {"epochs": 1})) for i in range(5)]
    together = staged_pack(bert, pool=POOL, slots=2)
    queue, ended = list(units), {}
    while len(ended) < 5:
        while queue and together.free > 0:
            together.add(queue.pop(0))
        ended |= {event.unit: event.outcome for event in together.advance() if isinstance(event, UnitEnded)}
    assert set(ended.values()) == {Outcome.DONE}
    assert together.free == together.slots
    for number in range(2):
        together.add(tiny_models.unit(number=number, **SELF))
    with pytest.raises(RuntimeError, match="no free slot"):
        together.add(tiny_models.unit(number=2, **SELF))


def test_a_baseline_has_no_course() -> None:
    assert courses.wanted(Settings(**SELF))
    assert not courses.wanted(Settings(**SELF, method="majority"))


# --- written rows -------------------------------------------------------------------------------------------


def test_paraphrases_descend_from_their_rows_and_are_filtered(bert: Base, admitted: Any) -> None:
    unit = tiny_models.unit(paraphrases=1, epochs=1)
    writer = Scripted(lambda asked: asked.prompt.strip() if asked.sources[0] % 2 else f"well, {asked.prompt.strip()}")
    train(staged_pack(bert, paraphraser=writer), unit)
    assert [asked.sources for asked in writer.asked] == [(number,) for number in unit.train]
    ((training, made),) = admitted
    assert training == unit.train
    assert made
    assert all(one.technique == "paraphrase" and one.sources[0] % 2 == 0 for one in made)  # a copy is no paraphrase
    assert all(one.row["label"] == ROWS[one.sources[0]]["label"] for one in made)


def test_a_generator_that_recites_validation_rows_is_not_learnt_from(bert: Base, admitted: Any) -> None:
    unit = tiny_models.unit(synthetic=12, epochs=1)
    recited = [ROWS[number]["text"] for number in unit.validation]
    script = iter([f"{text.upper()}\nmore" for text in recited * 6])
    train(staged_pack(bert, generator=Scripted(lambda _: next(script), prompt="$label $examples")), unit)
    assert admitted[0][1] == []


def test_written_rows_are_shared_by_trials_and_stages(bert: Base, tmp_path: Path, admitted: Any) -> None:
    words = ["sharp", "wood", "joy", "apple", "anger", "flour", "stone"]
    writer = Scripted(lambda asked: " ".join(words[(asked.seed >> i) % 7] for i in range(6)), cache=tmp_path / "texts")
    settings: dict[str, Any] = {**SELF, "paraphrases": 1, "synthetic": 2}
    generator = Scripted(writer.say, "$label $examples", tmp_path / "texts")
    both = {"paraphraser": writer, "generator": generator}
    train(staged_pack(bert, pool=POOL, **both), tiny_models.unit(**settings))
    asked = (len(writer.asked), len(generator.asked))
    assert asked == (18, 3 * 2)
    for training, made in admitted:
        assert all(set(one.sources) <= set(training) for one in made)
    train(staged_pack(bert, pool=POOL, **both), tiny_models.unit(**settings, seed=99, learning_rate=1e-3))
    assert (len(writer.asked), len(generator.asked)) == asked


def test_back_translation_goes_by_another_language_and_keeps_the_row_where_nothing_comes_back(bert: Base) -> None:
    away = Scripted(lambda asked: "" if asked.prompt.endswith("0") else f"dort {asked.prompt}")
    back = Scripted(lambda asked: f"back from {asked.prompt}\nand on")
    rows = {number: {"text": f"a tool for wood {number}", "label": "x"} for number in range(2)}
    steps = courses._paraphrase(rows[1], 1, 0, {"paraphraser": "$text", "back_translator": "to English: $text"})
    assert through(steps, {"paraphraser": away, "back_translator": back}).row == {
        "text": "back from to English: dort a tool for wood 1",
        "label": "x",
    }
    steps = courses._paraphrase(rows[0], 0, 0, {"paraphraser": "$text", "back_translator": "$text"})
    assert through(steps, {"paraphraser": away, "back_translator": back}) == Made(rows[0], (0,), "paraphrase")
    assert len(back.asked) == 1
    told = train(staged_pack(bert, paraphraser=away, back_translator=back), tiny_models.unit(paraphrases=1))
    assert told.end is not None
    assert told.end.outcome == Outcome.DONE, told.end.evidence
    assert len(back.asked) > 1


def through(steps: Generator[Write, Any, Made], writers: Mapping[str, Scripted]) -> Made:
    answer = None
    while True:
        try:
            wants = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = writers[wants.writer].write(wants.asked)


def test_a_writer_that_fails_ends_the_unit_with_its_evidence(bert: Base) -> None:
    def broken(_: Asked) -> str:
        raise OSError("disk full")

    told = train(staged_pack(bert, paraphraser=Scripted(broken)), tiny_models.unit(paraphrases=1))
    assert told.end is not None
    assert (told.end.outcome, told.end.reason) == (Outcome.FAILED, "OSError: disk full")
    assert "Traceback" in told.end.evidence


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_model_writes_the_same_whatever_came_before_and_keeps_it(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pin = WriterPin(model=tiny_models.pin(folders[name]), prompt="$text", max_new_tokens=6)
    asked = [Asked(f"a {word}", (0,), seed) for word in ("tool", "feeling") for seed in (1, 2)]
    writer = Writer(pin, torch.device("cpu"), tmp_path)
    assert writer.written(asked[0]) is None
    first = [writer.write(one) for one in asked]
    writer.close()
    torch.rand(3)
    before = torch.random.get_rng_state()
    other = Writer(pin, torch.device("cpu"), None)
    assert [other.write(one) for one in reversed(asked)] == first[::-1]
    assert torch.equal(before, torch.random.get_rng_state())
    assert [writer.written(one) for one in asked] == first
    assert len(set(first)) > 1
    hotter = Writer(dataclasses.replace(pin, temperature=0.5), torch.device("cpu"), tmp_path)
    assert hotter.written(asked[0]) is None
    writer._place(asked[0]).write_text("{")
    assert writer.written(asked[0]) is None


# --- as a study ---------------------------------------------------------------------------------------------


def opened(folders: dict[str, Path], tmp_path: Path, **more: Any) -> Pack | Staged:
    study = OpenStudy(
        study=1,
        name="s",
        task="classification",
        model=tiny_models.pin(folders["bert"]),
        data=str(tiny_models.write_rows(tmp_path / "rows.jsonl", ROWS)),
        labels=tiny_models.LABELS,
        cache=str(tmp_path / "cache"),
        **more,
    )
    return open_study(study, torch.device("cpu"))


def test_a_study_without_augmenting_models_has_a_plain_pack(folders: dict[str, Path], tmp_path: Path) -> None:
    assert type(opened(folders, tmp_path)) is Pack


def test_a_whole_study_with_tiny_models_trains(folders: dict[str, Path], tmp_path: Path) -> None:
    pins = {
        name: WriterPin(model=tiny_models.pin(folders[model]), prompt="$text$label$examples", max_new_tokens=4)
        for name, model in (("paraphraser", "t5"), ("back_translator", "t5"), ("generator", "gpt2"))
    }
    pool = str(tiny_models.write_rows(tmp_path / "pool.jsonl", POOL))
    pack_ = opened(folders, tmp_path, pool=pool, writers=pins)
    assert type(pack_) is Staged
    told = train(pack_, tiny_models.unit(paraphrases=1, synthetic=1, **SELF))
    assert told.end is not None
    assert told.end.outcome == Outcome.DONE, told.end.evidence
    assert len(list((tmp_path / "cache" / "texts").iterdir())) == 2 * 18 + 3
    assert len(list((tmp_path / "cache" / "stages").iterdir())) == 4
    assert np.isfinite(told.epochs[-1].tallies["nats"])
    assert staged.Staged is type(pack_)
