"""Frozen messages between orchestrator, supervisor and trainer.

Standard library only, so that every process can import it: the command line (which must start fast), the
supervisor (which must not load torch) and the trainer (which must not know the database).

A message travels as one line of JSON, `{"type": "EpochDone", ...}`; see `encode` and `decode`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How the training of one unit ended."""

    DONE = "done"
    DIVERGED = "diverged"  # a loss or gradient was not finite; nothing of that step was kept
    INFEASIBLE = "infeasible"  # does not fit into the device's memory even alone, at one row a time
    FAILED = "failed"  # raised an exception, hung or crashed; the evidence says which
    DROPPED = "dropped"  # the supervisor asked to stop: lease lost, study stopped, worker leaving
    OVER_BUDGET = "over_budget"  # the next epoch would not have ended within the study's hours


def hyperparameter(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    searchable: bool = True,
    added: bool = False,
) -> Any:
    """Declare one field of `Settings` with all that the study file needs to know about it.

    low, high: closed bounds. above: open lower bound. aliases: names that Hugging Face and PEFT users bring.
    added: since the first version; the default is what was done before, and no part of a configuration's digest.
    """
    metadata = {
        "doc": doc,
        "low": low,
        "above": above,
        "high": high,
        "choices": None if choices is None else tuple(choices),
        "aliases": tuple(aliases),
        "searchable": searchable,
        "added": added,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every hyperparameter of a trial, each resolved to one value.

    The one list of what a study file may fix under `training` or search under `search.space`. The defaults
    together are the *default configuration* that every study runs beside its trials.
    """

    learning_rate: float = hyperparameter(2e-4, "AdamW's peak learning rate", above=0, high=10, aliases=["lr"])
    batch_size: int = hyperparameter(
        8,
        "rows in one optimizer step (the effective batch)",
        low=1,
        high=4096,
        aliases=["per_device_train_batch_size", "train_batch_size", "micro_batch_size"],
    )
    epochs: int = hyperparameter(
        3, "passes over the training rows", low=1, high=1000, aliases=["num_train_epochs", "num_epochs"]
    )
    lora_rank: int = hyperparameter(16, "rank of the LoRA update", low=1, high=1024, aliases=["r", "lora_r"])
    lora_alpha: float | str = hyperparameter(
        "2r",
        "LoRA's alpha, the update is scaled by alpha / rank: a number, or a multiple of the rank such as 2r",
        above=0,
        high=65536,
    )
    lora_dropout: float = hyperparameter(0.0, "dropout before LoRA's A matrix", low=0, high=0.99)
    target_modules: str | tuple[str, ...] = hyperparameter(
        "all-linear",
        "which layers get LoRA: all-linear, auto (PEFT's choice for the architecture), or a list of names",
        aliases=["lora_target", "lora_target_modules"],
        searchable=False,
    )
    weight_decay: float = hyperparameter(0.01, "AdamW's decoupled weight decay", low=0, high=10)
    warmup_ratio: float = hyperparameter(
        0.05, "share of all steps in which the learning rate rises from 0", low=0, high=1
    )
    warmup_steps: int = hyperparameter(
        0,
        "steps in which the learning rate rises from 0; above 0 warmup_ratio has no effect",
        low=0,
        high=10**6,
        added=True,
    )
    lr_schedule: str = hyperparameter(
        "linear",
        "course of the learning rate after warm-up",
        choices=["constant", "linear", "cosine"],
        aliases=["lr_scheduler_type"],
    )
    max_grad_norm: float = hyperparameter(
        1.0, "gradients are scaled down to this norm; 0 switches it off", low=0, high=1e6
    )
    max_length: int = hyperparameter(
        128, "tokens kept of a row; longer rows are cut", low=4, high=1_000_000, searchable=False
    )
    pooling: str = hyperparameter(
        "auto",
        "how a classifier reads the encoder: first (the family's own head), mean, or auto (the model's "
        "pooling file where it has one, else first)",
        choices=["auto", "first", "mean"],
    )
    method: str = hyperparameter(
        "lora",
        "what is trained: lora (adapters, and the head of a classifier), dora (the same, and a magnitude for each "
        "output of an adapted layer), head (a classifier's head alone, on frozen features), or full (the model itself, "
        "one unit at a time)",
        choices=["lora", "dora", "head", "full"],
        added=True,
    )
    lora_scaling: str = hyperparameter(
        "standard",
        "what the update is scaled by: standard (alpha / rank), or rslora (alpha / square root of the rank)",
        choices=["standard", "rslora"],
        added=True,
    )
    top_layers: int = hyperparameter(
        0,
        "adapters in so many of the last layers only, or with method full only these are trained; 0: all",
        low=0,
        high=10_000,
        added=True,
    )
    dropout: float = hyperparameter(
        0.0,
        "dropout wherever the model's authors put one, but for attention",
        low=0,
        high=0.99,
        aliases=["hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout_rate"],
        added=True,
    )
    label_smoothing: float = hyperparameter(
        0.0,
        "share of each target's weight that is spread over all classes or tokens",
        low=0,
        high=0.99,
        aliases=["label_smoothing_factor"],
        added=True,
    )
    neftune_alpha: float = hyperparameter(
        0.0,
        "uniform noise on the embeddings, of this size / sqrt(tokens x features); 5 to 15 are common",
        low=0,
        high=1000,
        aliases=["neftune_noise_alpha"],
        added=True,
    )
    token_dropout: float = hyperparameter(
        0.0,
        "share of a training row's tokens that the model does not see at a step: the mask token, or the unknown one, "
        "stands in their place",
        low=0,
        high=0.9,
        added=True,
    )
    mixup_alpha: float = hyperparameter(
        0.0,
        "classes: each row's logits are mixed with another row's of the batch, by a share from Beta(alpha, alpha)",
        low=0,
        high=100,
        added=True,
    )
    r_drop_alpha: float = hyperparameter(
        0.0,
        "classes: each row is computed twice, with two dropout masks, and this much of the distance between both "
        "answers is added to the loss",
        low=0,
        high=100,
        added=True,
    )
    augment_copies: int = hyperparameter(
        1,
        "disturbed copies of each training row, where char_noise, word_noise or synonyms ask for any",
        low=1,
        high=8,
        added=True,
    )
    char_noise: float = hyperparameter(
        0.0, "share of a copy's letters that are mistyped: lost, doubled, swapped, another", low=0, high=0.5, added=True
    )
    word_noise: float = hyperparameter(
        0.0, "share of a copy's words that are lost or exchanged with another", low=0, high=0.5, added=True
    )
    synonyms: float = hyperparameter(
        0.0,
        "share of a copy's words that become a synonym, of those that have one in WordNet (English)",
        low=0,
        high=1,
        added=True,
    )

    paraphrases: int = hyperparameter(
        0,
        "times the study's paraphraser rewrites each training row; what is no paraphrase is left out",
        low=0,
        high=8,
        added=True,
    )
    synthetic: int = hyperparameter(
        0,
        "classes: rows that the study's generator writes of each class, after training rows; bad ones are left out",
        low=0,
        high=1000,
        added=True,
    )
    pseudo_rounds: int = hyperparameter(
        0, "classes: times that models of the training rows label the study's pool; 0: never", low=0, high=5, added=True
    )
    pseudo_threshold: float = hyperparameter(
        0.9, "how sure these must be of a pool's row before it is trained on, calibrated", low=0, high=1, added=True
    )

    class_weights: str = hyperparameter(
        "none",
        "classes: what a training row counts: none (all alike), or balanced (rows of rare classes more, by the unit's "
        "training rows)",
        choices=["none", "balanced"],
        aliases=["class_weight"],
        added=True,
    )

    patience: int = hyperparameter(
        0,
        "epochs in a row without a lower loss on the stopping part after which a fold ends; the epoch where that was "
        "lowest counts. 0: all epochs are trained, and the last counts",
        low=0,
        high=1000,
        aliases=["early_stopping_patience"],
        added=True,
    )
    stopping_share: float = hyperparameter(
        0.15,
        "share of a fold's training rows that is held out to stop by, with patience",
        low=0.02,
        high=0.5,
        added=True,
    )

    def identity(self) -> dict[str, Any]:
        """What two settings that train the same have in common, by whichever version they were written."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        named = dataclasses.asdict(self)
        return {n: v for n, v in named.items() if not fields[n].metadata["added"] or v != fields[n].default}

    def warmup(self, steps: int) -> int:
        """In how many of so many steps the learning rate rises."""
        return self.warmup_steps or math.ceil(steps * self.warmup_ratio)


@dataclass(frozen=True, kw_only=True)
class ModelPin:
    """Which weights exactly, and how they are held. What `launch` resolved and every worker must find again."""

    path: str  # as written: hub id, local path, or "package:NAME/PATH"
    origin: str  # "hub", "local" or "package"
    pin: str  # commit of a hub model; sha256 over the files of a local or packaged one
    pooling: str  # what `pooling: auto` means for this model: "first" or "mean"
    normalize: bool  # whether the model's own pooling files normalise a mean-pooled vector
    root: str | None = None  # folder a relative local path is resolved against
    precision: str = "auto"  # of the frozen weights: "auto", "float32" or "bfloat16"
    gradient_checkpointing: bool = False  # compute each layer anew in the backward pass
    quantization: str = "none"  # of the frozen layers: "none" or "nf4"

    def identity(self) -> dict[str, Any]:
        """What a unit's numbers depend on; its path differs by machine."""
        always = {"pin": self.pin, "pooling": self.pooling, "normalize": self.normalize}
        # named only where they are not the default, so that states written before there was a choice are still good
        precision = {"precision": self.precision} if self.precision != "auto" else {}
        return always | precision | ({"quantization": self.quantization} if self.quantization != "none" else {})


@dataclass(frozen=True, kw_only=True)
class WriterPin:
    """A model that writes training rows, and how it is asked."""

    model: ModelPin
    prompt: str  # with $text, or $label and $examples
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a unit's model writes for its validation rows, greedily, and how that is compared with theirs."""

    metrics: tuple[str, ...]  # of "chrf" and "exact_match"
    max_new_tokens: int
    every_epoch: bool = False  # else after the last one only


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file from which a unit goes on: safetensors, written whole, with what it is in its header.

    With kind "resume" it holds the trainable weights and AdamW's state at a step boundary, with kind "adapter" the
    weights alone, written after the last epoch: those of the epoch that counts. Everything else of a unit's course
    (data order, dropout, schedule) is a function of its seed and step.
    """

    path: str  # on this machine
    sha256: str  # over the whole file
    bytes: int
    kind: str  # "resume" or "adapter"
    epoch: int  # epochs finished
    step: int  # optimizer steps done, those of an unfinished epoch included


@dataclass(frozen=True, kw_only=True)
class OpenStudy:
    """To the trainer: load this study's model, tokenizer and data, and keep them."""

    study: int
    name: str
    task: str
    model: ModelPin
    data: str  # path of the snapshot's JSONL on this machine
    labels: tuple[str, ...]  # class names in logit order; empty of a task without classes
    shots: int = 4  # rows, or rows of each class, that the baseline few-shot shows
    template: str = "{text}\n{label}"  # of a row in a prompt for classification
    pool: str | None = None  # path of the unlabelled rows' JSONL
    writers: Mapping[str, WriterPin] = field(default_factory=dict)  # models that write training rows, by name
    cache: str | None = None  # folder for what augmentation wrote, shared by this machine's trainers
    generation: Generation | None = None  # None: nothing is written


@dataclass(frozen=True, kw_only=True)
class TrainUnit:
    """To the trainer: train one (trial, fold) and report every epoch."""

    study: int
    unit: int
    lease_epoch: int
    trial: int
    repeat: int
    fold: int
    seed: int  # of (study seed, configuration, fold, repeat): a repeated unit gives the same numbers
    settings: Settings
    train: tuple[int, ...]  # row numbers of the snapshot
    validation: tuple[int, ...]
    seconds_left: float | None = None  # device seconds this unit may still take; None: no limit
    scratch: str | None = None  # folder for checkpoints; None: write none
    resume: Checkpoint | None = None  # go on from here; None: begin
    all_logits: bool = False  # report logits at every epoch: any may be the one that counts
    model: str | None = None  # path of the model, of a study with several; None: its only one
    most_rows: int | None = None  # rows in one micro-step at most: more made the kernel kill a trainer; None: no limit

    def ended(
        self, outcome: Outcome, reason: str = "", evidence: str = "", checkpoint: Checkpoint | None = None
    ) -> UnitEnded:
        """The message that this is over."""
        return UnitEnded(
            unit=self.unit,
            lease_epoch=self.lease_epoch,
            outcome=outcome,
            reason=reason,
            evidence=evidence,
            checkpoint=checkpoint,
        )


@dataclass(frozen=True, kw_only=True)
class DropUnit:
    """To the trainer: stop this unit at the next step boundary."""

    unit: int
    reason: str
    keep: bool = False  # write a checkpoint of that boundary first; `UnitEnded` brings it


@dataclass(frozen=True, kw_only=True)
class Limit:
    """To the trainer: the running unit may take this many device seconds beyond the epochs it has reported."""

    unit: int
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """To the trainer: finish nothing more, exit."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """From the trainer: alive, with this device."""

    device: str
    torch: str
    transformers: str
    peft: str


@dataclass(frozen=True, kw_only=True)
class StudyOpened:
    """From the trainer: model and data of the study are loaded."""

    study: int
    seconds: float
    slots: int = 1  # units that can train at once


@dataclass(frozen=True, kw_only=True)
class StudyRefused:
    """From the trainer: model or data of the study cannot be used on this machine."""

    study: int
    reason: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """From the trainer, at most once a second: where the running unit is."""

    unit: int
    epoch: int
    step: int
    steps: int  # of the whole unit
    loss: float  # training loss of the last step, nats
    to_go: float  # seconds until the unit's end, at its pace so far


@dataclass(frozen=True, kw_only=True)
class Beat:
    """From the trainer, at most once a second: a step or an evaluation batch has just ended."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the unit's model said of each validation item, in the order of `TrainUnit.validation`.

    nats: float32, negative log-likelihood summed over the item's labels or supervised tokens; shape (items,).
    counts: float32, how many labels or tokens that sum covers; shape (items,).
    logits: float16, of tasks whose head reads the whole row, at the last epoch or with `TrainUnit.all_logits`; shape
        (items, outputs). A number is in standard deviations from the mean of the unit's training rows.
    All little-endian, base64.
    """

    nats: str
    counts: str
    logits: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """From the trainer: one epoch was trained and evaluated on the validation fold.

    tallies are additive: any metric of any set of folds is a function of their sum (see `objective`).
    """

    unit: int
    lease_epoch: int
    epoch: int  # 1-based
    train_loss: float
    seconds: float  # device seconds of this epoch, training and evaluation
    tallies: Mapping[str, Any]
    predictions: Predictions
    checkpoint: Checkpoint | None = None  # None: the unit has no scratch folder, or it could not be written
    chosen: int | None = None  # of a unit with patience, at its last epoch: the epoch that counts


@dataclass(frozen=True, kw_only=True)
class UnitEnded:
    """From the trainer: nothing more will come of this unit."""

    unit: int
    lease_epoch: int
    outcome: Outcome
    reason: str = ""
    evidence: str = ""  # traceback, for an exception
    checkpoint: Checkpoint | None = None  # of a unit that was dropped with `keep`
    cause: str = ""  # what kind of failure the supervisor found, see `lifecycle.Cause`


MESSAGES: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        OpenStudy,
        TrainUnit,
        DropUnit,
        Limit,
        Shutdown,
        Ready,
        StudyOpened,
        StudyRefused,
        Progress,
        Beat,
        EpochDone,
        UnitEnded,
    )
}

_NESTED: Mapping[str, type[Any]] = {
    "model": ModelPin,
    "generation": Generation,
    "settings": Settings,
    "predictions": Predictions,
    "resume": Checkpoint,
    "checkpoint": Checkpoint,
}


def encode(message: Any) -> str:
    """One line of JSON for a message of `MESSAGES`. Non-finite floats travel as Python's NaN and Infinity."""
    return json.dumps({"type": type(message).__name__, **dataclasses.asdict(message)})


def decode(line: str) -> Any:
    """The message of one line.

    Raises:
        ValueError: the line is no JSON object of a known type with exactly that type's fields.
    """
    try:
        values = json.loads(line)
        cls = MESSAGES[values.pop("type")]
        return build(cls, values)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a message: {line[:200]!r} ({error})") from error


def build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """A frozen value from plain JSON: nested values are built, lists become tuples."""
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if name in _NESTED and isinstance(value, Mapping):
            ready[name] = build(_NESTED[name], value)
        elif name == "writers":
            ready[name] = {writer: build(WriterPin, pin) for writer, pin in value.items()}
        elif name == "outcome":
            ready[name] = Outcome(value)
        else:
            ready[name] = tuple(value) if isinstance(value, list) else value
    return cls(**ready)


def pack_floats(values: Sequence[float], typecode: str = "f") -> str:
    """float32 (typecode "f"), little-endian, base64."""
    return base64.b64encode(array(typecode, values).tobytes()).decode("ascii")


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from its parts: equal parts give equal seeds on every machine and in every process."""
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 of `canonical(value)`, hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
