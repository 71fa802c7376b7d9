"""Texts that units write for their validation rows: counted so that folds add up, in any company and memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import objective
from orchestrator.contract import EpochDone, Generation, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine.answering import CHUNK, Answering, chrf_counts, tallies
from trial_worker.tasks import CausalLm, Seq2Seq
from trial_worker.tasks.interface import Wanted

BOTH = ("chrf", "exact_match")
PAIRS = st.lists(st.tuples(st.text("abc é\n", max_size=12), st.text("abc é\n", max_size=12)), min_size=1, max_size=8)
ROWS = 12


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("models")
    return {
        "gpt2": Base.load(tiny_models.pin(tiny_models.save_gpt2(root / "gpt2")), "causal", 0),
        "t5": Base.load(tiny_models.pin(tiny_models.save_t5(root / "t5")), "seq2seq", 0),
    }


def pack(base: Base, most: int = 40, slots: int = 1, *, every_epoch: bool = False) -> Pack:
    task, rows = (
        (Seq2Seq(), tiny_models.rewriting_rows) if base.family == "seq2seq" else (CausalLm(), tiny_models.causal_rows)
    )
    asked = Generation(metrics=BOTH, max_new_tokens=most, every_epoch=every_epoch)
    return Pack(base, Rows(task, rows(ROWS), base.tokenizer), slots, generation=asked)  # type: ignore[arg-type]


def unit(**settings: Any) -> TrainUnit:
    return tiny_models.unit(ROWS, **{"batch_size": 4, "learning_rate": 1e-2, **settings})


def finish(pack: Pack) -> list[EpochDone | UnitEnded]:
    """Epochs and ends of what is in the pack."""
    said: list[EpochDone | UnitEnded] = []
    while pack.free < pack.slots:
        said += [event for event in pack.advance() if not isinstance(event, Progress)]
    return said


def numbers(said: list[EpochDone | UnitEnded]) -> list[Any]:
    assert isinstance(said[-1], UnitEnded)
    assert said[-1].outcome == Outcome.DONE, said[-1]
    return [
        (each.epoch, each.train_loss, each.tallies, each.predictions) for each in said if isinstance(each, EpochDone)
    ]


@given(PAIRS, st.integers(0, 8))
def test_chrf_of_pooled_counts_is_sacrebleus_of_the_pooled_rows(pairs: list[tuple[str, str]], cut: int) -> None:
    chrf = pytest.importorskip("sacrebleu.metrics.chrf")
    parts = [part for part in (pairs[:cut], pairs[cut:]) if part]
    folds = [
        tallies(BOTH, {n: said for n, (said, _) in enumerate(part)}, {n: own for n, (_, own) in enumerate(part)})
        for part in parts
    ]
    said, own = ([text.strip() for text in each] for each in zip(*pairs, strict=True))
    pooled = objective.metrics({"nats": 1.0, "items": 1, "correct": 0, **objective.add(folds)})
    assert pooled["chrf"] == pytest.approx(chrf.CHRF().corpus_score(said, [own]).score, abs=1e-9)
    assert pooled["exact_match"] == sum(a == b for a, b in zip(said, own, strict=True)) / len(pairs)


def test_what_is_not_asked_for_is_not_counted() -> None:
    assert tallies(("exact_match",), {1: " a"}, {1: "a\n"}) == {"answered": 1, "matches": 1}
    assert tallies(("chrf",), {}, {}) == {"answered": 0, "chrf": chrf_counts([])}
    assert "exact_match" not in objective.metrics({"nats": 1.0, "items": 1, "correct": 0, "chrf": [1] * 18})


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_texts_are_written_after_the_last_epoch_or_after_each(name: str, bases: dict[str, Base]) -> None:
    for every, wanted in ((False, [False, True]), (True, [True, True])):
        trained = pack(bases[name], every_epoch=every)
        trained.add(unit())
        found = numbers(finish(trained))
        assert ["chrf" in tallies for _, _, tallies, _ in found] == wanted
        assert found[-1][2]["answered"] == 3
    silent = Pack(bases[name], trained.rows)
    silent.add(unit())
    beside = numbers(finish(silent))
    assert [each[:2] for each in beside] == [each[:2] for each in found]
    assert all(found[at][2].items() >= each[2].items() for at, each in enumerate(beside))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_one_step_writes_a_few_tokens_only(name: str, bases: dict[str, Base]) -> None:
    """Between two steps the process is alive, and whoever shares the pack has its turn."""
    trained = pack(bases[name])
    trained.add(unit(learning_rate=1e-6))
    lengths: list[int] = []
    while trained.free < trained.slots:
        trained.advance()
        for slot in trained._slots.values():
            if slot.answering is not None:
                lengths.append(max(map(len, slot.answering.written.values())))
    assert max(lengths) == CHUNK


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_unit_that_is_broken_off_while_it_writes_evaluates_again(
    name: str, bases: dict[str, Base], tmp_path: Path
) -> None:
    def course(*, break_off: bool) -> list[Any]:
        trained = pack(bases[name], every_epoch=True)
        mine = dataclasses.replace(unit(learning_rate=1e-6), scratch=str(tmp_path))
        said: list[Any] = []
        trained.add(mine)
        while trained.free < trained.slots:
            said += trained.advance()
            writing = any(slot.answering is not None for slot in trained._slots.values())
            if break_off and writing and len([e for e in said if isinstance(e, EpochDone)]) == 1:
                (end,) = trained.drop(mine.unit, "a kill", keep=True)
                assert isinstance(end, UnitEnded)
                trained.add(dataclasses.replace(mine, resume=end.checkpoint))
                break_off = False
        assert not break_off
        return numbers([event for event in said if not isinstance(event, Progress)])

    assert course(break_off=True) == course(break_off=False)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_does_not_fit_is_written_in_smaller_steps(
    name: str, bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    ample = pack(bases[name])
    ample.add(unit())
    expected = numbers(finish(ample))
    refused, generate = [], Answering._generate

    def scarce(self: Answering, step: Any) -> list[list[int]]:
        if len(step.rows) > room:
            refused.append(len(step.rows))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return generate(self, step)

    monkeypatch.setattr(Answering, "_generate", scarce)
    room = 1
    tight = pack(bases[name])
    tight.add(unit())
    found = numbers(finish(tight))
    assert refused == [3]
    assert found[-1][2]["chrf"] == expected[-1][2]["chrf"]
    room = 0
    none = pack(bases[name])
    none.add(unit())
    end = finish(none)[-1]
    assert isinstance(end, UnitEnded)
    assert end.outcome == Outcome.INFEASIBLE
    assert "does not fit" in end.reason


def test_a_text_ends_where_the_models_positions_do(bases: dict[str, Base]) -> None:
    base = bases["gpt2"]  # of 64 positions
    rows = [{"prompt": "a " * length, "completion": "b"} for length in (5, 24, 31, 45)]
    items = dict(enumerate(Rows(CausalLm(), rows, base.tokenizer).items(base.limit)))
    answering = Answering(base, Generation(metrics=BOTH, max_new_tokens=1000), items)
    prompts = {row: item.gold.prompt for row, item in items.items()}
    answering._ends = set()
    while answering.todo:  # nobody's adapter is in the model, so the base itself writes
        answering.write(answering.next(10_000, 10), 0)
    assert {row: len(written) for row, written in answering.written.items()} == {
        row: max(64 - prompt, 0) for row, prompt in prompts.items()
    }


def test_of_a_conversation_the_last_answer_is_written(tmp_path: Path) -> None:
    base = Base.load(tiny_models.pin(tiny_models.save_llama(tmp_path)), "causal", 0)
    turns = [("user", "a tool"), ("assistant", "stone"), ("user", "a fruit"), ("assistant", "a pie")]
    (item,) = CausalLm().encode([{"messages": [{"role": r, "content": c} for r, c in turns]}], base.tokenizer)
    wanted = item.gold
    assert isinstance(wanted, Wanted)
    assert wanted.text == "a pie"
    asked = base.tokenizer.decode(item.ids[: wanted.prompt])
    assert asked.endswith("<|assistant|>\n")
    assert "stone" in asked
    assert wanted.end == base.tokenizer.convert_tokens_to_ids("<|end|>")
    (text,) = CausalLm().encode([{"text": "a tool"}], base.tokenizer)
    assert text.gold is None
