"""What a study will cost, before anything is spent: device time of its trials, and memory of a worker (pure).

Work is counted in *forward passes* of all rows: a row that is trained on costs one forward, and for LoRA one pass
backward to the activations, which is as much again (the frozen weights have no gradients); full fine-tuning two; a
head on frozen features none. A validation row costs one forward. One pass takes 2 x parameters x tokens operations.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from orchestrator import baselines, conditions, forms, space
from orchestrator.contract import Settings
from orchestrator.sizes import ModelSize, most_rank
from orchestrator.space import Choices, Entry
from orchestrator.spec import StudySpec
from orchestrator.tokens import Tokens

# Operations a second of one worker with one thread, from a loaded to a quiet 2-core Xeon with AVX-512 (docs/log.md).
CPU_SPEED = (2.0e10, 6.0e10)
# Seconds that a layer takes in an optimizer step beside its arithmetic: most of a tiny model's time.
STEP = (0.001, 0.012)
PADDED = 3  # parts that a step has where rows are padded, those of like length together
DRAWN = 200  # configurations of a space, whose mean stands for its trials
RACED = {"grid": 0.35, "tpe": 0.5, "random": 0.5}  # share of the folds that racing has left, measured (docs/log.md)
START = (3.0, 15.0)  # seconds until a worker has loaded torch and the model
FROM_HISTORY = (0.7, 1.5)  # of what the same model took before, here: other ranks, batches, neighbours
BASELINE_PASSES = 4  # forward passes of all rows that a study's baselines take, about
BACKWARD = {"head": 0.0, "full": 2.0}  # passes of a row that is trained on, beside the forward one; else 1

TORCH_BYTES = 450 * 2**20  # of a process with torch and transformers, before any model
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # in one micro-step, see the engine's capacity
# Floats that a layer keeps of a token for the backward pass, for each feature: V. Korthikanti et al., "Reducing
# Activation Recomputation in Large Transformer Models", arXiv 2205.05198, without its dropout masks.
KEPT = 16


@dataclass(frozen=True, kw_only=True)
class Span:
    """From low to high."""

    low: float
    high: float

    def times(self, low: float, high: float | None = None) -> Span:
        """Both ends multiplied."""
        return Span(low=self.low * low, high=self.high * (low if high is None else high))

    def to_json(self) -> dict[str, float]:
        """Plain."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class Given:
    """How many there are. pool: rows without labels."""

    rows: int
    classes: int = 0
    pool: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """In forward passes of all rows: of one searched trial on all folds, and of the whole study."""

    trial: float
    study: Span


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """basis: "formula", "history" or "probe". seconds: of the study on so many workers here. None: not known."""

    basis: str
    device: str
    workers: int
    seconds: Span | None
    trial_seconds: Span | None
    memory: int | None

    def to_json(self) -> dict[str, Any]:
        """For `check --json`."""
        return {
            "basis": self.basis,
            "device": self.device,
            "workers": self.workers,
            "seconds": self.seconds and self.seconds.to_json(),
            "trial_seconds": self.trial_seconds and self.trial_seconds.to_json(),
            "memory_bytes": self.memory,
        }

    def __str__(self) -> str:
        here = f"{self.workers} {'CPU' if self.device == 'cpu' else 'GPU'} worker" + "s" * (self.workers != 1)
        memory = "" if self.memory is None else f", about {in_bytes(self.memory)} of memory each"
        if self.seconds is None:
            return f"how long it takes on {here} is not known here, `foldtune check --probe` measures it{memory}"
        known = {"formula": "by rule of thumb", "history": "as this model took before", "probe": "as measured just now"}
        return f"forecast: {_duration(self.seconds)} on {here} of this machine ({known[self.basis]}){memory}"


def mean(each: Sequence[Forecast]) -> Forecast:
    """Of a study that has each of these forecasts under one of its models, which its trials have in like parts."""
    first, *others = each
    if not others:
        return first
    seconds = [one.seconds for one in each if one.seconds is not None]
    of_trials = [one.trial_seconds for one in each if one.trial_seconds is not None]
    memory = [one.memory for one in each if one.memory is not None]
    return replace(
        first,
        seconds=_mean_span(seconds) if len(seconds) == len(each) else None,
        trial_seconds=_mean_span(of_trials) if len(of_trials) == len(each) else None,
        memory=max(memory) if len(memory) == len(each) else None,
    )


def _mean_span(spans: Sequence[Span]) -> Span:
    return Span(low=fmean(each.low for each in spans), high=fmean(each.high for each in spans))


def work(spec: StudySpec, given: Given) -> Work:
    """Of a study on so many rows."""
    folds, repeats = spec.cross_validation.folds, spec.cross_validation.repeats
    each = [passes(settings, folds, given) for settings in _settings(spec)]
    units = folds * repeats
    trial = units * fmean(each)
    default = units * passes(_resolved(spec, space.default_params(spec.space)[0]), folds, given)
    extra = default + repeats * BASELINE_PASSES * bool(baselines.wanted(spec.task, spec.baselines.run))
    trials = _runs(spec)
    raced = RACED.get(spec.search.sampler, 1.0) if spec.racing.on else 1.0
    return Work(trial=trial, study=Span(low=raced * trials * trial + extra, high=trials * trial + extra))


def passes(settings: Settings, folds: int, given: Given) -> float:
    """Forward passes of all rows that one unit takes; those of the models that write rows are not among them."""
    copies = 1.0 + settings.paraphrases
    if settings.char_noise or settings.word_noise or settings.synonyms:
        copies += settings.augment_copies
    trained = copies * (folds - 1) / folds + settings.synthetic * given.classes / given.rows
    each, inner = row_passes(settings), 0.0
    if settings.pseudo_rounds:  # three models of two thirds of the fold, and one more for each further round
        inner = (3 * 2 / 3 + settings.pseudo_rounds - 1) * each * trained
        trained += given.pool / given.rows
    return settings.epochs * (each * trained + 1 / folds + inner)


def row_passes(settings: Settings) -> float:
    """Forward passes that a row costs each time it is trained on."""
    return (1 + BACKWARD.get(settings.method, 1.0)) * (2 if settings.r_drop_alpha else 1)


def by_pace(
    spec: StudySpec, found: Work, pace: Span, *, basis: str, device: str, workers: int, memory: int | None
) -> Forecast:
    """pace: device seconds of one forward pass of all rows."""
    seconds = Span(
        low=START[0] + found.study.low * pace.low / workers, high=START[1] + found.study.high * pace.high / workers
    )
    if spec.budget.hours is not None:
        most = 3600 * spec.budget.hours / workers + START[1]
        seconds = Span(low=min(seconds.low, most), high=min(seconds.high, most))
    trial = pace.times(found.trial)
    return Forecast(basis=basis, device=device, workers=workers, seconds=seconds, trial_seconds=trial, memory=memory)


def by_formula(
    spec: StudySpec, given: Given, tokens: Tokens, size: ModelSize | None, device: str, workers: int
) -> Forecast:
    """From sizes alone. On a GPU no time is known without a measurement."""
    memory = None if size is None else memory_of(spec, tokens, size, device)
    if size is None or device != "cpu":
        return Forecast(
            basis="formula", device=device, workers=workers, seconds=None, trial_seconds=None, memory=memory
        )
    operations = pass_operations(spec, given.rows, tokens, size) * (1 + spec.model.gradient_checkpointing / 2)
    steps = _steps(spec, given.rows) * size.count * (PADDED if spec.task == "seq2seq" else 1) / 2
    pace = Span(low=operations / CPU_SPEED[1] + steps * STEP[0], high=operations / CPU_SPEED[0] + steps * STEP[1])
    return by_pace(spec, work(spec, given), pace, basis="formula", device=device, workers=workers, memory=memory)


def pass_operations(spec: StudySpec, rows: int, tokens: Tokens, size: ModelSize) -> float:
    """Floating-point operations of one forward pass of all rows: 2 for each parameter and token, and attention's."""
    length = _mean_length(spec, tokens)
    layers = size.layers * (1 + length / (6 * size.hidden))
    if spec.task.startswith("seq2seq"):  # source tokens pass through one half, target tokens through the other
        layers /= 2
    written = size.embeddings if spec.task in forms.HEADLESS else 0  # the product with every token of the vocabulary
    return 2 * rows * length * (layers + written)


def memory_of(spec: StudySpec, tokens: Tokens, size: ModelSize, device: str) -> int:
    """About how many bytes a worker takes with one unit: process, frozen weights, what trains, activations."""
    wide = 4 if device == "cpu" or spec.model.precision == "float32" else 2
    base = (size.layers + size.embeddings) * (0.6 if spec.model.quantization == "nf4" else wide)
    method = spec.extremes("method")
    trained = size.layers if "full" in method else 2 * most_rank(spec) * size.layers / max(size.hidden, 1)
    batch = max(int(value) for value in spec.extremes("batch_size"))
    longest = min(max(spec.extremes("max_length")), max(max(tokens.whole, default=1), max(tokens.target, default=0)))
    at_once = max(longest, min(TOKENS_AT_ONCE[device], batch * _mean_length(spec, tokens)))
    kept_layers = 1 if spec.model.gradient_checkpointing else size.count
    activations = at_once * KEPT * size.hidden * kept_layers * 4
    if spec.task in forms.HEADLESS:
        activations += min(at_once * size.embeddings / size.hidden, 2**26) * 4 * 2  # logits and their gradient
    return int(TORCH_BYTES * (device == "cpu") + base + 4 * 4 * trained + activations)


def _steps(spec: StudySpec, rows: int) -> float:
    """Optimizer steps of one epoch of all rows."""
    return fmean(rows / settings.batch_size for settings in _settings(spec))


def _mean_length(spec: StudySpec, tokens: Tokens) -> float:
    most = max(spec.extremes("max_length"))
    lengths = [min(a, most) + min(b, most) for a, b in zip(tokens.whole, tokens.target, strict=True)]
    return fmean(lengths) if lengths else 1.0


def _runs(spec: StudySpec) -> int:
    """Trials that train: under shared epochs one for all points of a grid that differ in epochs alone."""
    trials = spec.budget.trials or 1
    if spec.share_epochs and spec.search.sampler == "grid":
        return max(1, trials // len(spec.space["epochs"]))
    return trials


def _settings(spec: StudySpec) -> list[Settings]:
    """Configurations that stand for the space's."""
    draw = random.Random(0)
    entries = spec.space
    found = []
    for _ in range(DRAWN):
        chosen = conditions.defaults(entries, {name: _drawn(entry, draw) for name, entry in entries.items()})
        if spec.share_epochs:
            chosen["epochs"] = spec.most_epochs
        found.append(_resolved(spec, chosen))
    return found


def _drawn(entry: Entry, draw: random.Random) -> Any:
    if isinstance(entry, Choices):
        return draw.choice(entry.choices)
    value = entry.low * (entry.high / entry.low) ** draw.random() if entry.log else draw.uniform(entry.low, entry.high)
    return min(max(round(value), int(entry.low)), int(entry.high)) if entry.whole else value


def _resolved(spec: StudySpec, params: Mapping[str, Any]) -> Settings:
    return space.settings(spec.training, params)


def _duration(seconds: Span) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    size, name = next(((size, name) for size, name in units if seconds.high >= 1.5 * size), (1, "seconds"))
    low, high = (_round(value / size) for value in (seconds.low, seconds.high))
    return f"about {high} {name}" if low == high else f"about {low} to {high} {name}"


def _round(value: float) -> str:
    """Two significant digits, or one decimal below ten."""
    return f"{value:.0f}" if value >= 9.5 else f"{value:.1g}" if value < 1 else f"{value:.1f}".removesuffix(".0")


def in_bytes(size: int) -> str:
    """`1.2 GiB`, `583 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
