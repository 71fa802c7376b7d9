"""What a unit needs before it can train: rows that models write, labels that models give. A course asks, step by step.

A course knows no device, no clock and no cache: it yields what it wants and is sent the answer, see `staged`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator import baselines
from orchestrator.contract import Settings, TrainUnit, derive_seed
from orchestrator.texts import fingerprint
from trial_worker.augment import prompts, self_training
from trial_worker.augment.copies import rewritten
from trial_worker.augment.filters import worthy
from trial_worker.augment.made import Made
from trial_worker.augment.noise import kept
from trial_worker.engine.training_part import held_apart, stopping_rows
from trial_worker.tasks.interface import Row
from trial_worker.tasks.rows import Rows


@dataclass(frozen=True)
class Write:
    """Have this writer write; the answer is the text. writer: "paraphraser", "back_translator" or "generator"."""

    writer: str
    asked: prompts.Asked


@dataclass(frozen=True)
class Train:
    """Train this unit, with made rows; the answer is its logits after the last epoch, (validation, classes)."""

    unit: TrainUnit
    made: tuple[Made, ...]


Course = Generator[Write | Train, str | np.ndarray, tuple[Made, ...]]


def wanted(settings: Settings) -> bool:
    """Whether a unit has a course at all; a baseline has none, whatever its study fixes."""
    return baselines.name_of(settings) is None and any(
        (settings.paraphrases, settings.synthetic, settings.pseudo_rounds)
    )


def course(unit: TrainUnit, rows: Rows, templates: Mapping[str, str]) -> Course:
    """The way to the rows that this unit trains on beside its own.

    templates: what each writer is asked, by the writer's name.

    Raises:
        ValueError: too few rows, or rows that cannot be rewritten.
    """
    unit = held_apart(unit, stopping_rows(rows, unit))
    fold = {number: rows.raw[number] for number in unit.train}
    written: list[Made] = []
    for number, row in fold.items():
        for copy in range(unit.settings.paraphrases):
            written.append((yield from _paraphrase(row, number, copy, templates)))
    if unit.settings.synthetic:
        for label, asked in prompts.synthetic(templates["generator"], fold, unit.settings.synthetic):
            text = prompts.first_line(_text((yield Write("generator", asked)))).removeprefix(f"{label}:").strip()
            written.append(Made({"text": text, "label": label}, asked.sources, "generation"))
    labelled: tuple[Made, ...] = ()
    if unit.settings.pseudo_rounds:
        labelled = yield from _self_training(unit, rows, written)
    return (*selected(written, rows, unit.train), *labelled)


def selected(written: Sequence[Made], rows: Rows, training: Sequence[int]) -> tuple[Made, ...]:
    """What is good of what was written after these training rows alone, as far as they can tell."""
    fold = {number: rows.raw[number] for number in training}
    own = [one for one in written if fold.keys() >= set(one.sources)]
    parts: Iterator[Iterator[Made]] = (
        worthy((one for one in own if (one.technique == "paraphrase") == alike), fold, paraphrases=alike)
        for alike in (True, False)
    )
    return tuple(one for part in parts for one in part)


def _paraphrase(
    row: Row, number: int, copy: int, templates: Mapping[str, str]
) -> Generator[Write, str | np.ndarray, Made]:
    """Of each text that may change; by way of another language where there is a model for the way back.

    Back-translation is that of Sennrich, Haddow and Birch 2016, arXiv 1511.06709, used as in Xie et al. 2020,
    arXiv 1904.12848.
    """
    way = [name for name in ("paraphraser", "back_translator") if name in templates]
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    rewritten(row, note)
    said = []
    for text in texts:
        other = text
        for writer in way:
            if other:
                asked = prompts.paraphrase(templates[writer], other, number, copy)
                other = prompts.first_line(_text((yield Write(writer, asked))))
        said.append(kept(other, text))
    answers = iter(said)
    return Made(rewritten(row, lambda _: next(answers)), (number,), "paraphrase")


def _self_training(
    unit: TrainUnit, rows: Rows, written: Sequence[Made]
) -> Generator[Train, str | np.ndarray, tuple[Made, ...]]:
    """Labels for the pool by models of the training fold, see docs/decisions/0013.

    Models of all inner parts but one predict that one and the pool. The first gives the temperature, by which the
    second become confidences; each further round has one model of the whole fold and the rows labelled so far.
    """
    fold = {number: rows.raw[number] for number in unit.train}
    known = {fingerprint(rows.raw[number]) for number in (*unit.train, *unit.validation)}
    pool = [number for number in rows.pool if fingerprint(rows.raw[number]) not in known]
    if not pool:
        return ()
    labels, threshold = rows.task.labels, unit.settings.pseudo_threshold
    texts = [rows.unlabelled(number) for number in pool]
    parts = self_training.inner_parts(fold, unit.seed)
    held, guesses = [], []
    for number, part in enumerate(parts):
        others = tuple(row for row in unit.train if row not in set(part))
        stage = _stage(unit, others, (*part, *pool), "part", number)
        logits = _logits((yield Train(stage, selected(written, rows, others))))
        held.append(logits[: len(part)])
        guesses.append(logits[len(part) :])
    truth = np.array([labels.index(fold[row]["label"]) for part in parts for row in part])
    temperature = self_training.temperature(np.concatenate(held), truth)
    sure = self_training.confidences(guesses, temperature)
    for number in range(1, unit.settings.pseudo_rounds):
        found = self_training.labelled(texts, sure, labels, threshold, unit.train)
        stage = _stage(unit, unit.train, tuple(pool), "round", number)
        logits = _logits((yield Train(stage, (*selected(written, rows, unit.train), *found))))
        sure = self_training.confidences([logits], temperature)
    return tuple(self_training.labelled(texts, sure, labels, threshold, unit.train))


def _stage(unit: TrainUnit, train: tuple[int, ...], validation: tuple[int, ...], name: str, number: int) -> TrainUnit:
    """A unit inside the unit: nothing of it is reported or kept."""
    return replace(
        unit,
        seed=derive_seed(unit.seed, "self-training", name, number),
        settings=replace(unit.settings, paraphrases=0, synthetic=0, pseudo_rounds=0),
        train=train,
        validation=validation,
        scratch=None,
        resume=None,
        all_logits=False,
    )


def _text(answer: str | np.ndarray) -> str:
    assert isinstance(answer, str)
    return answer


def _logits(answer: str | np.ndarray) -> np.ndarray:
    assert isinstance(answer, np.ndarray)
    return answer
