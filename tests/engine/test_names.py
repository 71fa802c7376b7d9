"""Classes by their names: a decoder is asked for all of them at once, and each is as if it were asked alone."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration, MT5Config, MT5ForConditionalGeneration

from orchestrator import baselines
from orchestrator.contract import EpochDone, Outcome, Settings, TrainUnit, UnitEnded
from tests import tiny_models
from tests.engine.test_engine import floats
from trial_worker.engine import Base, Pack, Rows, UnusableModel
from trial_worker.engine.choices import choice_scores, keeps_apart
from trial_worker.tasks import Seq2SeqClassification
from trial_worker.tasks.interface import collate

NAMES = ("a feeling", "food", "some tool for cutting")
ROWS = [
    {**row, "label": NAMES[tiny_models.LABELS.index(row["label"])]}
    for row in tiny_models.classification_rows()  # names of one token and of many, one beginning as a text does
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return loaded(tiny_models.save_t5(tmp_path_factory.mktemp("t5")))


def loaded(folder: Path, **holding: Any) -> Base:
    return Base.load(tiny_models.pin(folder, **holding), "seq2seq", 3)


def pack_of(base: Base, rows: Sequence[dict[str, str]] = ROWS) -> Pack:
    labels = sorted({row["label"] for row in rows})
    return Pack(base, Rows(Seq2SeqClassification(labels), rows, base.tokenizer))


def trained(pack: Pack, unit: TrainUnit) -> tuple[list[EpochDone], UnitEnded]:
    pack.add(unit)
    epochs = []
    while True:
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                return epochs, event
            if isinstance(event, EpochDone):
                epochs.append(event)


WORDS = st.lists(st.sampled_from(tiny_models.CORPUS[0].split()), min_size=1, max_size=4).map(" ".join)


@given(
    names=st.lists(WORDS, min_size=2, max_size=6, unique=True),
    numbers=st.lists(st.integers(0, 23), min_size=1, max_size=4, unique=True),
)
@settings(deadline=None, max_examples=15)
def test_a_names_score_is_its_log_likelihood_behind_the_row_alone(
    names: list[str], numbers: list[int], t5: Base
) -> None:
    task = Seq2SeqClassification(names)
    rows = [{"text": ROWS[number]["text"], "label": names[0]} for number in numbers]
    items = task.encode(rows, t5.tokenizer)
    with torch.no_grad():
        found = choice_scores(t5.model, collate(items, 2, t5.device))
        for item, scores in zip(items, found, strict=True):
            for name, score in zip(names, scores, strict=True):
                ids = t5.tokenizer(text_target=name, return_tensors="pt")["input_ids"]
                assert ids[0, -1] == t5.tokenizer.eos_token_id
                logits = t5.model(input_ids=item.ids[None], labels=ids).logits
                alone = logits.log_softmax(-1).gather(2, ids[..., None]).sum()
                assert float(score) == pytest.approx(float(alone), rel=1e-5)
            assert scores.logsumexp(0) < 0  # of all that could be written, the names are a part


def test_the_logits_that_are_kept_have_their_probabilities_in_float16_too(t5: Base) -> None:
    """As log-likelihoods of names they are tens of nats below 0."""
    epochs, _ = trained(pack_of(t5), tiny_models.unit(epochs=1))
    kept = epochs[-1].predictions
    assert kept.logits is not None
    logits = np.frombuffer(base64.b64decode(kept.logits), "<f2").astype(float).reshape(-1, 3)
    assert (logits.max(-1) == 0).all()
    assert logits.min() < 0
    truth = [sorted(NAMES).index(ROWS[row]["label"]) for row in tiny_models.unit().validation]
    said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = np.frombuffer(base64.b64decode(kept.nats), "<f4")
    assert np.exp(said[np.arange(len(truth)), truth]) == pytest.approx(np.exp(-nats), abs=1e-3)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_unit_learns_in_nats_per_row(method: str, t5: Base) -> None:
    pack, rate = pack_of(t5), {"full": 3e-3}.get(method, 2e-2)
    epochs, end = trained(pack, tiny_models.unit(epochs=8, learning_rate=rate, method=method, lora_rank=8))
    assert end.outcome == Outcome.DONE, end.evidence
    assert epochs[-1].train_loss < epochs[0].train_loss * 0.9
    tallies = epochs[-1].tallies
    assert tallies["items"] == 6
    assert set(tallies) == {"nats", "items", "correct", "tp", "fp", "fn", "bins"}
    assert epochs[-1].predictions.logits is not None
    scores = floats(epochs[-1].predictions.logits, "<f2").reshape(6, 3).astype(np.float64)
    likely = torch.from_numpy(scores).log_softmax(1).numpy()
    truth = [NAMES.index(ROWS[number]["label"]) for number in tiny_models.unit().validation]
    assert tallies["nats"] == pytest.approx(-likely[np.arange(6), truth].sum(), abs=0.1)  # they travel in float16


@pytest.mark.parametrize("chosen", [{"mixup_alpha": 0.4}, {"r_drop_alpha": 1.0, "lora_dropout": 0.2}])
def test_what_compares_classes_compares_these(chosen: dict[str, Any], t5: Base) -> None:
    losses = [trained(pack_of(t5), tiny_models.unit(**extra))[0][-1].train_loss for extra in ({}, chosen)]
    assert losses[0] != losses[1]


def test_layers_computed_anew_and_a_base_in_4_bits_are_asked_too(tmp_path: Path, t5: Base) -> None:
    place = tiny_models.save_t5(tmp_path)
    unit = tiny_models.unit(epochs=1)
    expected = trained(pack_of(t5), unit)[0][-1].tallies
    assert trained(pack_of(loaded(place, gradient_checkpointing=True)), unit)[0][-1].tallies == expected
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'foldtune[quantized]'")
    assert trained(pack_of(loaded(place, quantization="nf4")), unit)[1].outcome == Outcome.DONE


# --- what it cannot be ------------------------------------------------------------------------------------------


def of_kind(kind: Any, config: Any, folder: Path) -> Path:
    tokenizer = tiny_models.byte_tokenizer(eos=True, pad_is_eos=False)
    return tiny_models._save(kind, config(vocab_size=len(tokenizer), pad_token_id=2, eos_token_id=1), tokenizer, folder)


SIZES = {"d_model": 16, "decoder_start_token_id": 2}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
OTHERS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "bart": (
        BartForConditionalGeneration,
        lambda **sizes: BartConfig(**SIZES, **BART, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes),
    ),
    "mt5": (MT5ForConditionalGeneration, lambda **sizes: MT5Config(**SIZES, d_kv=8, d_ff=32, num_layers=2, **sizes)),
}


def test_a_decoder_that_counts_from_the_first_token_is_refused(tmp_path: Path) -> None:
    place = of_kind(*OTHERS["bart"], tmp_path)
    with pytest.raises(UnusableModel, match=r"BartForConditionalGeneration cannot sort by the classes' names: its dec"):
        loaded(place)
    assert Base.load(tiny_models.pin(place), "seq2seq", 0)  # to write, and nothing side by side


def test_others_of_t5s_kind_are_taken(tmp_path: Path) -> None:
    assert keeps_apart(loaded(of_kind(*OTHERS["mt5"], tmp_path)).model)


def test_names_that_are_the_same_to_the_tokenizer_are_refused(t5: Base) -> None:
    rows = [{"text": "bread", "label": label} for label in ("wood", "stone")]
    tokenizer = tiny_models.word_tokenizer()
    with pytest.raises(ValueError, match="to this model's tokenizer the labels 'strange' and 'unheard' are the same"):
        Seq2SeqClassification(("strange", "unheard")).encode(rows, tokenizer)
    assert len(Seq2SeqClassification(("stone", "wood")).encode(rows, t5.tokenizer)) == 2


# --- baselines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", baselines.NAMING)
def test_every_baseline_of_the_task_gives_a_probability_of_each_class(name: str, t5: Base) -> None:
    unit = dataclasses.replace(tiny_models.unit(), settings=Settings(**baselines.params(name)))
    (done,), end = trained(pack_of(t5), unit)
    assert end.outcome == Outcome.DONE, end.evidence
    assert done.tallies["items"] == 6
    assert done.tallies["nats"] / 6 < 3


def test_zero_shot_is_the_model_before_any_step(t5: Base) -> None:
    """Against a source without content, at the scale that fits the training rows best: another model, other scores."""
    unit = dataclasses.replace(tiny_models.unit(), settings=Settings(**baselines.params("zero-shot")))
    turned = [{**row, "text": row["text"][::-1]} for row in ROWS]
    (one,), _ = trained(pack_of(t5), unit)
    (two,), _ = trained(pack_of(t5, turned), unit)
    assert one.predictions.nats != two.predictions.nats
    assert trained(pack_of(t5), unit)[0][0].predictions == one.predictions
