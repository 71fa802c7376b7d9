"""A unit that is broken off goes on from its checkpoint as if nothing had happened, to the last bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from orchestrator.contract import Checkpoint, EpochDone, Outcome, Progress, TrainUnit, UnitEnded
from tests import tiny_models
from trial_worker.engine import Base, Pack, Rows
from trial_worker.engine import pack as pack_module
from trial_worker.engine.state import _metadata
from trial_worker.tasks import CausalLm, Classification

KINDS: Mapping[str, dict[str, Any]] = {
    "bert, first": {"pooling": "first", "lr_schedule": "linear"},
    "bert, mean": {"pooling": "mean", "lr_schedule": "cosine", "weight_decay": 0.3},
    "gpt2, causal": {"lr_schedule": "constant", "warmup_ratio": 0.5},
}


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pack]:
    root = tmp_path_factory.mktemp("models")
    bert = Base.load(tiny_models.pin(tiny_models.save_bert(root / "bert")), "sequence", 3)
    classes = Pack(bert, Rows(Classification(tiny_models.LABELS), tiny_models.classification_rows(), bert.tokenizer))
    gpt2 = Base.load(tiny_models.pin(tiny_models.save_gpt2(root / "gpt2")), "causal", 0)
    tokens = Pack(gpt2, Rows(CausalLm(), tiny_models.causal_rows(), gpt2.tokenizer))
    return {"bert, first": classes, "bert, mean": classes, "gpt2, causal": tokens}


def small(scratch: Path | str, **chosen: Any) -> TrainUnit:
    """Dropout, a smaller last batch, and evaluations of several batches to be broken off in."""
    unit = tiny_models.unit(12, **{"lora_dropout": 0.2, "batch_size": 4, **chosen})
    return dataclasses.replace(unit, scratch=str(scratch), most_rows=2)


@dataclasses.dataclass
class Course:
    """What a unit said, whatever the number of its attempts."""

    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    epochs: list[EpochDone] = dataclasses.field(default_factory=list)
    ends: list[UnitEnded] = dataclasses.field(default_factory=list)
    advances: int = 0

    @property
    def numbers(self) -> list[Any]:
        """All but seconds, and the last file whole: equal states are equal files."""
        said = [(e.epoch, e.train_loss, e.tallies, e.predictions) for e in self.epochs]
        adapter = self.epochs[-1].checkpoint
        assert adapter is not None
        return [self.losses, said, adapter.kind, Path(adapter.path).read_bytes()]


def attempt(pack: Pack, unit: TrainUnit, course: Course, advances: int | None, steps: int | None = None) -> UnitEnded:
    """Train a unit to its end, or drop it with its state after so many advances, or steps of the optimizer."""
    pack.add(unit)
    while True:
        for event in pack.advance():
            if isinstance(event, Progress):
                assert event.step not in course.losses  # no step is done twice
                course.losses[event.step] = event.loss
                steps = None if steps is None else steps - 1
            elif isinstance(event, EpochDone):
                course.epochs.append(event)
            elif isinstance(event, UnitEnded):
                course.ends.append(event)
                return event
        course.advances += 1
        if steps == 0 or (advances is not None and (advances := advances - 1) <= 0):
            (end,) = pack.drop(unit.unit, "break", keep=True)
            assert isinstance(end, UnitEnded)
            course.ends.append(end)
            return end


def train(pack: Pack, unit: TrainUnit, breaks: Iterable[int] = ()) -> Course:
    """Train a unit, broken off after each of these numbers of advances, another one between its attempts."""
    course = Course()
    for lease, advances in enumerate([*breaks, None], start=1):
        end = attempt(pack, dataclasses.replace(unit, lease_epoch=lease), course, advances)
        if end.outcome != Outcome.DROPPED:
            break
        unit = dataclasses.replace(unit, resume=end.checkpoint)
        pack.add(tiny_models.unit(number=99, seed=5, lora_rank=2))
        pack.advance()
        pack.drop(99, "only between")
    assert course.ends[-1].outcome == Outcome.DONE, course.ends[-1]
    return course


def test_a_unit_broken_anywhere_ends_with_the_same_bits(packs: dict[str, Pack], tmp_path: Path) -> None:
    unit, pack = small(tmp_path, **KINDS["bert, mean"]), packs["bert, mean"]
    whole = train(pack, unit)
    # batches of 4, 4 and 1 rows and 3 rows of evaluation, two at once: breaks of every sort, inside batches too
    assert whole.advances == 2 * (2 + 2 + 1 + 1) - 1
    for advances in range(1, whole.advances + 1):
        broken = train(pack, unit, [advances])
        assert (broken.numbers, len(broken.ends)) == (whole.numbers, 2), advances


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_broken_after_every_step_ends_with_the_same_bits(
    kind: str, packs: dict[str, Pack], tmp_path: Path
) -> None:
    unit, pack = small(tmp_path, **KINDS[kind]), packs[kind]
    whole, broken = train(pack, unit), Course()
    steps = []
    while (end := attempt(pack, unit, broken, None, steps=1)).outcome == Outcome.DROPPED:
        assert end.checkpoint is not None
        steps.append(end.checkpoint.step)
        unit = dataclasses.replace(unit, resume=end.checkpoint, lease_epoch=unit.lease_epoch + 1)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert broken.numbers == whole.numbers


@given(
    chosen=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**63 - 1),
            "batch_size": st.integers(1, 20),
            "epochs": st.integers(1, 3),
            "lora_rank": st.integers(1, 6),
            "lora_dropout": st.sampled_from([0.0, 0.4]),
            "learning_rate": st.sampled_from([1e-3, 5e-2]),
            "lr_schedule": st.sampled_from(["constant", "linear", "cosine"]),
            "warmup_ratio": st.sampled_from([0.0, 0.3]),
            "max_grad_norm": st.sampled_from([0.0, 0.1]),
            "word_noise": st.sampled_from([0.0, 0.3]),
        }
    ),
    kind=st.sampled_from(sorted(KINDS)),
    breaks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=10)
def test_breaks_change_no_number_whatever_the_settings(
    chosen: dict[str, Any], kind: str, breaks: list[int], packs: dict[str, Pack]
) -> None:
    with TemporaryDirectory() as scratch:
        unit = small(scratch, **{"pooling": KINDS[kind].get("pooling", "auto"), **chosen})
        assert train(packs[kind], unit, breaks).numbers == train(packs[kind], unit).numbers


def test_an_epochs_seconds_include_the_part_before_the_break(
    packs: dict[str, Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def later() -> float:
        """Each go, from one look at the clock to the next, takes ten seconds."""
        nonlocal now
        now += 10
        return now

    monkeypatch.setattr(pack_module, "monotonic", later)
    unit, pack = dataclasses.replace(small(tmp_path), most_rows=None), packs["bert, first"]

    def seconds(*breaks: int) -> list[float]:
        return [epoch.seconds for epoch in train(pack, unit, breaks).epochs]

    # three steps and a batch of evaluation, which comes in the advance of the third step
    assert seconds() == [40, 40]
    assert seconds(1) == [40, 40]
    assert seconds(2, 1) == [40, 40]
    assert seconds(3) == [40, 40]  # between two epochs nothing is carried over


def test_an_evaluation_that_is_done_again_counts_twice(
    packs: dict[str, Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 100000, 10))
    monkeypatch.setattr(pack_module, "monotonic", lambda: next(now))
    # five goes of training; the first of two of evaluation comes in the advance of the fifth
    whole, broken = (train(packs["bert, first"], small(tmp_path), breaks) for breaks in ([], [5]))
    assert [epoch.seconds for epoch in whole.epochs] == [70, 70]
    assert [epoch.seconds for epoch in broken.epochs] == [80, 70]


# --- files -------------------------------------------------------------------------------------------------


def test_a_file_after_every_epoch_is_named_and_described(packs: dict[str, Pack], tmp_path: Path) -> None:
    course = train(packs["bert, mean"], small(tmp_path, pooling="mean", epochs=3))
    found = [epoch.checkpoint for epoch in course.epochs]
    assert [(c.kind, c.epoch, c.step) for c in found if c] == [("resume", 1, 3), ("resume", 2, 6), ("adapter", 3, 9)]
    names = ["u1-l1-e1-s3.safetensors", "u1-l1-e2-s6.safetensors", "u1-l1-e3-s9.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, checkpoint in zip(names, found, strict=True):
        content = (tmp_path / name).read_bytes()
        assert checkpoint is not None
        assert checkpoint.path == str(tmp_path / name)
        assert checkpoint.bytes == len(content)
        assert checkpoint.sha256 == hashlib.sha256(content).hexdigest()
        parts = {tensor.partition("/")[0] for tensor in load(content)}
        assert parts == ({"weight"} if checkpoint.kind == "adapter" else {"weight", "exp_avg", "exp_avg_sq"})
        header = json.loads(_metadata(content)["foldtune"])
        assert set(header["versions"]) == {"torch", "transformers", "peft"}
        assert (header["format"], header["kind"], header["seconds"]) == (2, checkpoint.kind, 0.0)


def test_without_a_scratch_folder_nothing_is_written(packs: dict[str, Pack], tmp_path: Path) -> None:
    course = Course()
    unit = dataclasses.replace(small(tmp_path), scratch=None)
    end = attempt(packs["bert, first"], unit, course, None, steps=5)
    assert ([epoch.checkpoint for epoch in course.epochs], end.checkpoint) == ([None], None)
    assert list(tmp_path.iterdir()) == []


def test_a_unit_that_does_not_train_yet_gives_back_what_it_was_given(packs: dict[str, Pack], tmp_path: Path) -> None:
    pack, course = packs["bert, first"], Course()
    pack.add(small(tmp_path))
    assert [event.checkpoint for event in pack.drop(1, "early", keep=True)] == [None]
    given = attempt(pack, small(tmp_path), course, 2).checkpoint
    pack.add(dataclasses.replace(small(tmp_path), resume=given))
    assert [event.checkpoint for event in pack.drop(1, "early", keep=True)] == [given]
    pack.add(small(tmp_path))
    pack.advance()
    assert [event.checkpoint for event in pack.drop(1, "not wanted")] == [None]


def test_with_nothing_left_a_unit_is_done_at_once(packs: dict[str, Pack], tmp_path: Path) -> None:
    pack, course = packs["bert, first"], train(packs["bert, first"], small(tmp_path))
    adapter = course.epochs[-1].checkpoint
    again = Course()
    end = attempt(pack, dataclasses.replace(small(tmp_path), resume=adapter), again, None)
    assert (end.outcome, again.losses, again.epochs, again.advances) == (Outcome.DONE, {}, [], 0)


def test_training_goes_on_where_a_checkpoint_cannot_be_written(
    packs: dict[str, Pack], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").write_text("no folder")
    course = Course()
    pack = packs["bert, first"]
    assert attempt(pack, small(tmp_path / "full"), course, None).outcome == Outcome.DONE
    assert [epoch.checkpoint for epoch in course.epochs] == [None, None]
    first, second = capsys.readouterr().err.splitlines()
    assert ("no checkpoint of step 3" in first, "of step 6" in second) == (True, True)
    assert attempt(pack, small(tmp_path / "full"), Course(), 2).checkpoint is None
    good, bad = train(pack, small(tmp_path)), course
    assert [e.predictions for e in good.epochs] == [e.predictions for e in bad.epochs]


# --- files that must not be believed -----------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def forged(checkpoint: Checkpoint, change: Callable[[Tensors, dict[str, Any]], None]) -> Checkpoint:
    """The file with other tensors or another header, its sha256 right."""
    content = Path(checkpoint.path).read_bytes()
    tensors, header = load(content), json.loads(_metadata(content)["foldtune"])
    change(tensors, header)
    return rewritten(checkpoint, save(tensors, {"foldtune": json.dumps(header)}))


def rewritten(checkpoint: Checkpoint, content: bytes) -> Checkpoint:
    path = Path(checkpoint.path).with_name("forged.safetensors")
    path.write_bytes(content)
    return dataclasses.replace(checkpoint, path=str(path), sha256=hashlib.sha256(content).hexdigest())


def of_shape(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors, Any], None]:
    def apply(tensors: Tensors, _: Any) -> None:
        name = sorted(name for name in tensors if name.startswith(f"{part}/"))[0]
        tensors[name] = change(tensors[name]).contiguous()

    return apply


FORGERIES: Mapping[str, tuple[Callable[[Tensors, dict[str, Any]], Any], str]] = {
    "another format": (lambda _, h: h.update(format=1), "format must be 2, got 1"),
    "another unit": (lambda _, h: h.update(unit="0" * 64), "another unit"),
    "no unit": (lambda _, h: h.pop("unit"), "another unit"),
    "no step": (lambda _, h: h.pop("step"), "does not say where"),
    "weights alone": (lambda _, h: h.update(kind="adapter"), "kind must be resume"),
    "a step ahead of its epoch": (lambda _, h: h.update(step=9), "no place of this unit"),
    "a step before its epoch": (lambda _, h: h.update(step=-1), "no place of this unit"),
    "an epoch too many": (lambda _, h: h.update(epoch=3, step=9), "no place of this unit"),
    "endless seconds": (lambda _, h: h.update(seconds=float("inf")), "no place of a unit"),
    "a tensor too few": (lambda t, _: t.pop(min(t)), "do not share 1 tensors"),
    "a tensor too many": (lambda t, _: t.update(more=torch.zeros(1)), "do not share 1 tensors"),
    "a weight that would be broadcast": (of_shape("weight", lambda t: t[:1]), "must be"),
    "a moment of another shape": (of_shape("exp_avg", lambda t: t.T), "must be"),
    "a moment of another type": (of_shape("exp_avg_sq", lambda t: t.double()), "torch.float64"),
}


@pytest.fixture
def checkpoint(packs: dict[str, Pack], tmp_path: Path) -> Checkpoint:
    """After two of the first epoch's three steps."""
    found = attempt(packs["bert, first"], small(tmp_path), Course(), None, steps=2).checkpoint
    assert found is not None
    assert (found.kind, found.epoch, found.step) == ("resume", 0, 2)
    return found


def refused(pack: Pack, unit: TrainUnit) -> str:
    """Why a unit failed before it trained."""
    course = Course()
    end = attempt(pack, unit, course, None)
    assert (end.outcome, course.losses, "\n" in end.reason) == (Outcome.FAILED, {}, False)
    assert end.reason.startswith("ValueError: checkpoint ")
    return end.reason


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_that_is_not_this_units_is_refused(
    name: str, packs: dict[str, Pack], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    change, words = FORGERIES[name]
    unit = dataclasses.replace(small(tmp_path), resume=forged(checkpoint, change))
    assert words in refused(packs["bert, first"], unit)


@pytest.mark.parametrize(
    "other",
    [{"seed": 12}, {"settings": {"learning_rate": 5.1e-2}}, {"train": (1, 2, 3)}, {"validation": (0, 4)}],
    ids=lambda other: next(iter(other)),
)
def test_the_state_of_a_unit_is_of_no_use_to_another(
    other: dict[str, Any], packs: dict[str, Pack], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    unit = small(tmp_path)
    if "settings" in other:
        other = {"settings": dataclasses.replace(unit.settings, **other["settings"])}
    unit = dataclasses.replace(unit, resume=checkpoint, **other)
    assert "another unit" in refused(packs["bert, first"], unit)


def test_a_damaged_file_is_refused_and_the_pack_stays_clean(
    packs: dict[str, Pack], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    pack, unit = packs["bert, first"], small(tmp_path)
    clean = train(pack, unit).numbers
    content = Path(checkpoint.path).read_bytes()
    damages = [content[:-1], b"", content[:-1] + bytes([content[-1] ^ 1]), content + b"\0"]
    for damaged in damages:
        broken = dataclasses.replace(rewritten(checkpoint, damaged), sha256=checkpoint.sha256)
        assert "is damaged: sha256 must be" in refused(pack, dataclasses.replace(unit, resume=broken))
    for foreign in (b"", b"hello", content[:100], save({"more": torch.zeros(1)}), save({}, {"foldtune": "[]"})):
        resume = rewritten(checkpoint, foreign)
        assert "is no state of a unit" in refused(pack, dataclasses.replace(unit, resume=resume))
    gone = dataclasses.replace(checkpoint, path=str(tmp_path / "gone.safetensors"))
    assert "cannot be read: No such file" in refused(pack, dataclasses.replace(unit, resume=gone))
    assert train(pack, unit).numbers == clean
