"""What a unit writes in its pack is what plain PEFT writes with its adapter, a row at a time."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from orchestrator.contract import EpochDone, Generation, Outcome, TrainUnit, UnitEnded
from orchestrator.hyperparameters import FIELDS
from tests import tiny_models
from tests.parity.test_against_peft import company
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine.answering import Answering, tallies
from trial_worker.tasks import task_named

BOTH = ("chrf", "exact_match")
LONG = Generation(metrics=BOTH, max_new_tokens=40)  # more than is written in one step
CHATS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in tiny_models.causal_rows()
]
RATES = {"full": 1e-3, "dora": 5e-3, "llama": 5e-3, "llama in turns": 5e-3, "t5": 1e-2}
CASES: dict[str, tuple[Callable[[Path], Path], str, list[Any], str]] = {
    "gpt2": (tiny_models.save_gpt2, "causal_lm", tiny_models.causal_rows(), "CAUSAL_LM"),
    "llama": (tiny_models.save_llama, "causal_lm", tiny_models.causal_rows(), "CAUSAL_LM"),
    "llama in turns": (tiny_models.save_llama, "causal_lm", CHATS, "CAUSAL_LM"),
    "t5": (tiny_models.save_t5, "seq2seq", tiny_models.rewriting_rows(), "SEQ_2_SEQ_LM"),
}
METHODS = [method for method in FIELDS["method"].metadata["choices"] if method not in ("lora", "head")]


def asked(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """(what the model is given, what it is to write), by the data alone."""
    if "messages" in row:
        *before, last = row["messages"]
        return str(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)), last["content"]
    return (row["source"], row["target"]) if "source" in row else (row["prompt"], row["completion"])


def last_epoch(pack: Pack, unit: TrainUnit, others: list[TrainUnit]) -> EpochDone:
    """Of a unit among others."""
    queue, last = [*others[:1], unit, *others[1:]], None
    while True:
        while queue and pack.free:
            pack.add(queue.pop(0))
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE, event
            if event.unit == unit.unit and isinstance(event, EpochDone):
                last = event
            elif event.unit == unit.unit and isinstance(event, UnitEnded):
                assert last is not None
                return last


Heard = list[tuple[dict[str, Any], dict[int, str]]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Of every evaluation its tallies and the texts behind them."""
    found: Heard = []
    tallied = Answering.tallies

    def listen(self: Answering) -> dict[str, Any]:
        found.append((tallied(self), self.texts()))
        return found[-1][0]

    monkeypatch.setattr(Answering, "tallies", listen)
    return found


@pytest.mark.parametrize(
    ("case", "method"),
    [*((case, "lora") for case in CASES), *((case, method) for case in ("gpt2", "t5") for method in METHODS)],
)
def test_texts_of_a_pack_are_those_of_peft(case: str, method: str, tmp_path: Path, heard: Heard) -> None:
    save, task_name, rows, kind = CASES[case]
    task = task_named(task_name, ())
    save(tmp_path / "model")

    def base() -> Base:
        loaded = Base.load(tiny_models.pin(tmp_path / "model"), task.family, 0)
        loaded.model.double()
        return loaded

    # barely trained, so that the adapter matters and not every row is the same
    rate = RATES.get(method) or RATES.get(case, 5e-2)
    unit = tiny_models.unit(epochs=3, learning_rate=rate, lora_alpha="3r", method=method)
    unit = dataclasses.replace(unit, scratch=str(tmp_path))
    found: list[dict[int, str]] = []
    for slots, others in ((1, []), (3, company(4))):
        mine = base()
        done = last_epoch(Pack(mine, Rows(task, rows, mine.tokenizer), slots, generation=LONG), unit, others)
        found += [texts for sums, texts in heard if sums["chrf"] is done.tallies["chrf"]]
    assert done.checkpoint is not None
    plain = base()
    before = {row: by_peft(plain.model, plain, rows[row]) for row in unit.validation}
    model = plain.model if method == "full" else in_peft(plain, kind, use_dora=method == "dora")
    trained = {f"weight/{name}": p for name, p in model.named_parameters()}
    for name, value in load_file(done.checkpoint.path).items():
        trained[name].data = value.double()
    written = {row: by_peft(model, plain, rows[row]) for row in unit.validation}
    assert found == [written, written]
    assert len(set(written.values())) > 1
    assert written != before
    wanted = {row: asked(rows[row], plain.tokenizer)[1] for row in unit.validation}
    assert tallies(BOTH, written, wanted).items() <= done.tallies.items()


def in_peft(base: Base, kind: str, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type=kind, r=4, lora_alpha=12, target_modules="all-linear", **more)  # type: ignore[arg-type]
        return peft.get_peft_model(base.model, config).eval()


def by_peft(model: Any, base: Base, row: Mapping[str, Any]) -> str:
    tokenizer, chat = base.tokenizer, "messages" in row
    prompt, wanted = asked(row, tokenizer)
    ids = tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
    if "completion" in row:  # a token across the border is part of the answer, as in training
        whole = tokenizer(prompt + wanted)["input_ids"]
        shared = next((n for n, (a, b) in enumerate(zip(ids[0].tolist(), whole, strict=False)) if a != b), ids.shape[1])
        ids = ids[:, :shared]
    decoder = base.model.config.is_encoder_decoder
    most = min(40, base.limit - (1 if decoder else ids.shape[1]))
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")][: 1 + chat]
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )[0].tolist()
    new = out[1:] if decoder else out[ids.shape[1] :]
    end = next((place for place, token in enumerate(new) if token in ends), None)
    return str(tokenizer.decode(new[:end], skip_special_tokens=True))
