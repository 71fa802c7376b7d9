"""Early stopping: a fold stops by training rows of its own, keeps the weights of its best epoch, and can be broken."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from orchestrator.contract import EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from orchestrator.stopping import held_out
from tests import tiny_models
from tests.engine import test_augmentation as augmentation
from tests.engine import test_resume as resume
from tests.parity import test_company as company
from trial_worker.engine import Base, Pack, Rows, courses
from trial_worker.engine.state import _metadata
from trial_worker.tasks import CausalLm, Classification, Regression

STOPS: dict[str, Any] = {"patience": 2, "stopping_share": 0.3, "epochs": 12, "learning_rate": 3e-2}
ROWS = 24


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.load(tiny_models.pin(tiny_models.save_bert(tmp_path_factory.mktemp("bert"))), "sequence", 3)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.load(tiny_models.pin(tiny_models.save_gpt2(tmp_path_factory.mktemp("gpt2"))), "causal", 0)


def classes(base: Base, rows: list[dict[str, str]] | None = None) -> Pack:
    return Pack(base, Rows(Classification(tiny_models.LABELS), rows or tiny_models.uneven_rows(), base.tokenizer))


def tokens(base: Base) -> Pack:
    return Pack(base, Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer))


def stopping_rows(pack: Pack, unit: TrainUnit) -> tuple[int, ...]:
    return held_out({n: pack.rows.raw[n] for n in unit.train}, unit.settings.stopping_share)


def trained(pack: Pack, unit: TrainUnit, scratch: Path) -> list[EpochDone]:
    scratch.mkdir(parents=True, exist_ok=True)
    _, epochs, end = augmentation.train(pack, dataclasses.replace(unit, scratch=str(scratch)))
    assert end.outcome == Outcome.DONE, end.evidence
    return epochs


def weights(done: EpochDone) -> dict[str, torch.Tensor]:
    assert done.checkpoint is not None
    return {name: t for name, t in load_file(done.checkpoint.path).items() if name.startswith("weight/")}


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "first": ("bert", {}),
    "mean, dropout": ("bert", {"pooling": "mean", "lora_dropout": 0.2, "label_smoothing": 0.1}),
    "noise": ("bert", {"word_noise": 0.3, "class_weights": "balanced", "learning_rate": 1e-1}),
    "the model itself": ("bert", {"method": "full", "learning_rate": 1e-2}),
    "language model": ("gpt2", {"lr_schedule": "constant"}),
}


def test_a_regressions_loss_is_on_one_scale_whatever_is_held_out_or_made(bert: Base, tmp_path: Path) -> None:
    """Its nats are in standard deviations of the fold's numbers; by what a trial trains on, each has its own."""
    rows = [{**row, "number": math.exp(len(row["text"]) / 20)} for row in tiny_models.number_rows(40)]
    base = Base.load(bert.pin, "sequence", 1)
    pack = Pack(base, Rows(Regression(), rows, base.tokenizer))
    losses = set()
    for chosen in ({}, {"patience": 2, "stopping_share": 0.4}, {"word_noise": 0.2, "augment_copies": 2}):
        unit = tiny_models.unit(40, epochs=1, learning_rate=1e-12, **chosen)
        [done] = trained(pack, unit, tmp_path)
        losses.add(round(done.tallies["nats"], 4))
    assert len(losses) == 1, losses


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_unit_that_trains_on_the_other_rows_and_is_watched_on_these(
    kind: str, bert: Base, gpt2: Base, tmp_path: Path
) -> None:
    """Watched as a validation part is: the same losses epoch by epoch, up to the stop, and the weights of the best."""
    name, chosen = KINDS[kind]
    pack = classes(bert) if name == "bert" else tokens(gpt2)
    unit = tiny_models.unit(ROWS, **{**STOPS, **chosen})
    apart = stopping_rows(pack, unit)
    plain = dataclasses.replace(
        unit,
        train=tuple(n for n in unit.train if n not in apart),
        validation=apart,
        settings=dataclasses.replace(unit.settings, patience=0, stopping_share=0.15),
    )
    epochs, watched = trained(pack, unit, tmp_path / "a"), trained(pack, plain, tmp_path / "b")
    losses = [each.tallies["nats"] / each.tallies["items"] for each in watched]
    best = 0  # the first minimum that two epochs in a row do not beat
    while any(later < losses[best] for later in losses[best + 1 : best + 3]):
        best = next(n for n in range(best + 1, best + 3) if losses[n] < losses[best])
    assert best < 9, "it must stop early, or nothing is seen here"
    assert [each.chosen for each in epochs] == [None] * (best + 2) + [best + 1]
    assert [each.train_loss for each in epochs] == [each.train_loss for each in watched[: best + 3]]
    assert epochs[-1].checkpoint is not None
    assert epochs[-1].checkpoint.kind == "adapter"
    assert same(weights(epochs[-1]), weights(watched[best]))
    assert not same(weights(epochs[-1]), weights(watched[best + 2]))


def test_validation_rows_change_no_bit_of_the_adapter_nor_the_epoch(bert: Base, tmp_path: Path) -> None:
    """Their labels turned, and even other texts of other lengths in their place."""
    rows, unit = tiny_models.uneven_rows(), tiny_models.unit(ROWS, **STOPS)
    turned, strange = list(rows), list(rows)
    for n in unit.validation:
        turned[n] = {**rows[n], "label": tiny_models.LABELS[(tiny_models.LABELS.index(rows[n]["label"]) + 1) % 3]}
        strange[n] = {"text": "bread " * (n + 1), "label": "tool"}
    found = []
    for place, each in enumerate((rows, turned, strange)):
        epochs = trained(classes(bert, each), unit, tmp_path / str(place))
        assert epochs[-1].checkpoint is not None
        content = Path(epochs[-1].checkpoint.path).read_bytes()
        found.append((len(epochs), epochs[-1].chosen, content, [e.tallies["nats"] for e in epochs]))
    assert found[0][:3] == found[1][:3] == found[2][:3]
    assert found[0][3] != found[1][3]
    assert found[0][0] < unit.settings.epochs


def test_all_epochs_without_a_stop_still_end_with_the_best(bert: Base, tmp_path: Path) -> None:
    pack, unit = classes(bert), tiny_models.unit(ROWS, **{**STOPS, "patience": 100})
    epochs = trained(pack, unit, tmp_path)
    assert len(epochs) == 12
    chosen = epochs[-1].chosen
    assert chosen is not None
    assert chosen < 12
    assert same(weights(epochs[-1]), weights(epochs[chosen - 1]))


def test_no_row_to_stop_by_and_nothing_made_of_one_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Base.load(tiny_models.pin(tiny_models.save_roberta(tmp_path)), "sequence", 3)
    pack = augmentation.packed(letters, augmentation.MARKED)
    unit = tiny_models.unit(augmentation.ROWS, **augmentation.NOISE, epochs=1, patience=1, stopping_share=0.3)
    apart = stopping_rows(pack, unit)
    texts = augmentation.texts_trained_on(pack, unit, monkeypatch)
    assert set("".join(texts)) - {" "} == {chr(97 + n) for n in unit.train if n not in apart}
    assert len(texts) == 3 * (15 - len(apart))


def test_writers_are_shown_none_of_the_rows_to_stop_by(bert: Base) -> None:
    pack = classes(bert, augmentation.MARKED)
    unit = tiny_models.unit(augmentation.ROWS, paraphrases=1, synthetic=1, patience=1, stopping_share=0.3)
    asked = []
    steps = courses.course(unit, pack.rows, {"paraphraser": "$text", "generator": "$label $examples"})
    wants: courses.Write | courses.Train | None = next(steps)
    while wants is not None:
        assert isinstance(wants, courses.Write)
        asked.append(wants.asked.prompt)
        try:
            wants = steps.send("a sharp tool of joy")
        except StopIteration:
            wants = None
    told = "\n".join(asked)
    apart = stopping_rows(pack, unit)
    assert all(pack.rows.raw[n]["text"] not in told for n in apart)
    assert all(pack.rows.raw[n]["text"] in told for n in unit.train if n not in apart)


# --- company and breaks ---------------------------------------------------------------------------------------


def test_units_stop_at_the_same_epochs_alone_and_in_company(tmp_path: Path) -> None:
    base = Base.load(tiny_models.pin(tiny_models.save_bert(tmp_path)), "sequence", 3)
    base.model.double()
    rows = Rows(Classification(tiny_models.LABELS), tiny_models.uneven_rows(), base.tokenizer)
    units = [
        tiny_models.unit(ROWS, number=n, seed=n, lora_rank=1 + 2 * n, batch_size=3 + n, **{**STOPS, "patience": n})
        for n in range(5)
    ]
    together = company.train(Pack(base, rows, 3), units)
    company.equal(together, company.alone(base, rows, units))
    steps = [-(-(18 - 5 * (n > 0)) // (3 + n)) for n in range(5)]
    lengths = [len(together[n]) / (steps[n] + 1) for n in range(5)]
    assert lengths[0] == 12
    assert any(length < 12 for length in lengths[1:])


@pytest.fixture(scope="module")
def packs(bert: Base, gpt2: Base) -> dict[str, Pack]:
    return {"classes": classes(bert), "tokens": tokens(gpt2)}


def small(scratch: Path | str, **chosen: Any) -> TrainUnit:
    """Three rows of nine to stop by, and a smaller last batch."""
    return resume.small(scratch, **{"patience": 1, "stopping_share": 0.34, "epochs": 4, **chosen})


STEEP = {"classes": 0.3, "tokens": 1.0}  # so that they stop early


@pytest.mark.parametrize("kind", STEEP)
def test_a_unit_broken_anywhere_ends_with_the_same_bits(kind: str, packs: dict[str, Pack], tmp_path: Path) -> None:
    unit, pack = small(tmp_path, learning_rate=STEEP[kind]), packs[kind]
    whole = resume.train(pack, unit)
    assert len(whole.epochs) < 4
    for advances in range(1, whole.advances + 1):
        broken = resume.train(pack, unit, [advances])
        assert (broken.numbers, broken.epochs[-1].chosen) == (whole.numbers, whole.epochs[-1].chosen), advances


@given(
    chosen=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**63 - 1),
            "patience": st.integers(1, 3),
            "epochs": st.integers(2, 6),
            "batch_size": st.integers(1, 8),
            "lora_dropout": st.sampled_from([0.0, 0.4]),
            "learning_rate": st.sampled_from([1e-3, 5e-2]),
            "word_noise": st.sampled_from([0.0, 0.3]),
        }
    ),
    breaks=st.lists(st.integers(1, 12), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=8)
def test_breaks_change_no_number(
    chosen: dict[str, Any], breaks: list[int], packs: dict[str, Pack], tmp_path_factory: pytest.TempPathFactory
) -> None:
    unit = small(tmp_path_factory.mktemp("broken"), **chosen)
    whole, broken = resume.train(packs["classes"], unit), resume.train(packs["classes"], unit, breaks)
    assert broken.numbers == whole.numbers
    assert [each.chosen for each in broken.epochs] == [each.chosen for each in whole.epochs]


def test_a_state_has_the_best_epoch_with_its_weights_and_others_have_nothing_of_it(
    packs: dict[str, Pack], tmp_path: Path
) -> None:
    def header(content: bytes) -> dict[str, Any]:
        return json.loads(_metadata(content)["foldtune"])

    course = resume.train(packs["classes"], small(tmp_path, patience=3))
    contents = [Path(each.checkpoint.path).read_bytes() for each in course.epochs if each.checkpoint]
    parts = [{name.partition("/")[0] for name in load(content)} for content in contents]
    assert parts == [{"weight", "exp_avg", "exp_avg_sq", "best"}] * (len(contents) - 1) + [{"weight"}]
    assert header(contents[-1])["best"]["epoch"] == course.epochs[-1].chosen
    assert header(contents[0])["best"]["epoch"] == 1
    plain = resume.train(packs["classes"], resume.small(tmp_path)).epochs[0].checkpoint
    assert plain is not None
    assert "best" not in header(Path(plain.path).read_bytes())


FORGERIES: Mapping[str, tuple[Callable[[dict[str, torch.Tensor], dict[str, Any]], Any], str]] = {
    "no best epoch": (lambda _, h: h.pop("best"), "does not say which epoch was the best"),
    "a best epoch to come": (lambda _, h: h["best"].update(epoch=2), "no best epoch of a unit"),
    "an endless loss": (lambda _, h: h["best"].update(loss="inf"), "no best epoch of a unit"),
    "a tensor too few": (lambda t, _: t.pop(min(t)), "do not share 1 tensors"),
    "none of them": (lambda t, h: (h.pop("best"), [t.pop(n) for n in list(t) if n[:5] == "best/"]), "has a best epoch"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_best_epoch_is_refused(forgery: str, packs: dict[str, Pack], tmp_path: Path) -> None:
    change, expected = FORGERIES[forgery]
    unit, pack = small(tmp_path), packs["classes"]
    given_ = resume.attempt(pack, unit, resume.Course(), None, steps=3).checkpoint
    assert given_ is not None
    assert given_.epoch == 1
    assert expected in resume.refused(pack, dataclasses.replace(unit, resume=resume.forged(given_, change)))


def test_events_of_a_unit_without_patience_name_no_epoch(bert: Base) -> None:
    steps, epochs, end = augmentation.train(classes(bert), tiny_models.unit(ROWS))
    assert all(isinstance(each, Progress) for each in steps)
    assert [each.chosen for each in epochs] == [None, None]
    assert isinstance(end, UnitEnded)
