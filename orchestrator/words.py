"""What was tried and found, in words, for the dashboard's notes (pure)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import baselines, curves, objective
from orchestrator.curves import Epoch, FoldCurve
from orchestrator.records import FoldResult, StudyRecord, TrialRecord
from orchestrator.spec import StudySpec

SAMPLERS = {
    "tpe": "TPE (multivariate)",
    "gp": "a Gaussian process",
    "random": "random search",
    "grid": "a grid",
}


def number(value: float | None) -> str:
    """Four significant digits, zeros too, so that columns compare; a dash for nothing, rounding is no number."""
    return "–" if value is None or math.isnan(value) else f"{0.0 if abs(value) < 1e-12 else value:#.4g}"


def assignment(params: Mapping[str, Any]) -> str:
    """`learning_rate 0.0021, batch_size 8`, ready to be read."""
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in params.values())
    return ", ".join(f"{name} {value}" for name, value in zip(params, shown, strict=True))


def label(trial: TrialRecord, best: TrialRecord | None) -> str:
    """What a column or a line of a trial is called."""
    name = "default" if trial.is_default else f"trial {trial.number}"
    return f"{name} (best)" if best is not None and trial.id == best.id else name


def best_trial(record: StudyRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete fine-tune with the best value, the default configuration included; the earliest among equals."""
    done = [t for t in trials if t.value is not None and t.duplicate_of is None and not t.is_baseline]
    sign = -1 if record.spec.maximize else 1
    return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)


def best_baseline(record: StudyRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete baseline with the best value."""
    sign = -1 if record.spec.maximize else 1
    done = [trial for trial in trials if trial.is_baseline and trial.value is not None]
    return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)


def against_baseline(record: StudyRecord, best: TrialRecord, baseline: TrialRecord) -> str:
    """Whether fine-tuning was worth it, plainly."""
    assert best.value is not None
    assert baseline.value is not None
    sign = -1 if record.spec.maximize else 1
    what = f"{baselines.meaning(record.spec.task, baseline.name)} ({number(baseline.value)})"
    if sign * best.value < sign * baseline.value:
        return f"The best baseline is {what}; trial {best.name} beats it."
    return f"No fine-tune beats the best baseline: {what}."


def study_note(record: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    """The study's note, Markdown."""
    counts = Counter(trial.state for trial in trials if trial.searched)
    default = next((trial for trial in trials if trial.is_default), None)
    return study_note_of(record, counts, best_trial(record, trials), default, best_baseline(record, trials))


def study_note_of(
    record: StudyRecord,
    counts: Mapping[str, int],
    best: TrialRecord | None,
    default: TrialRecord | None,
    baseline: TrialRecord | None,
    learnt: str = "",
) -> str:
    """The same.

    counts: state -> searched trials in it; best: of `best_trial`; default: the default configuration; learnt: the best
    trial's `course`.
    """
    spec = record.spec
    validation = spec.cross_validation
    repeats = f", {validation.repeats} times" if validation.repeats > 1 else ""
    lines = [
        f"**Question.** Which {', '.join(spec.searched)} fine-tune {_models(spec)} best "
        f"on {len(record.plan.assignment[0])} rows of `{spec.data.path}` ({spec.task})?",
        "",
        f"**How.** {SAMPLERS[spec.search.sampler]} proposes, {validation.folds}-fold cross-validation{repeats} "
        f"judges: {spec.objective}, pooled over all validation items. Every trial sees the same folds"
        + (f"; racing ({spec.racing.rule}) stops those that fall behind." if spec.racing.on else ".")
        + (f" One run of {spec.most_epochs} epochs answers for all fewer ones." if spec.share_epochs else ""),
        "",
        "**So far.** "
        + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        + f" of {spec.budget.trials} trials.",
    ]
    return "\n".join([*lines, *_findings(record, best, default, baseline, learnt)])


def _models(spec: StudySpec) -> str:
    paths = [f"`{source.path}`" for source in spec.sources]
    return paths[0] if len(paths) == 1 else f"one of {', '.join(paths)}"


def _findings(
    record: StudyRecord,
    best: TrialRecord | None,
    default: TrialRecord | None,
    baseline: TrialRecord | None,
    learnt: str,
) -> list[str]:
    if best is None or best.value is None:
        return []
    lines = ["", f"**Best.** Trial {best.name}: {number(best.value)} with {assignment(best.shown)}."]
    lines += [learnt] if learnt else []
    if default is not None and default.value is not None:
        lines.append(f"The default configuration reaches {number(default.value)}.")
    if baseline is not None:
        lines.append(against_baseline(record, best, baseline))
    elif record.floor and record.spec.objective in record.floor:
        lines.append(f"Class frequencies alone reach {number(record.floor[record.spec.objective])}.")
    return lines


def course(curve: Sequence[Epoch], end: Epoch | None) -> str:
    """How a trial learnt, in a sentence or two: the gap at its end, and where it overfits; nothing without a gap.

    curve: pooled. end: as `curves.reported`.
    """
    if end is None or end.gap is None:
        return ""
    side = "below" if end.gap >= 0 else "above"
    said = (
        f"Its training loss is {number(end.train_loss)}, {number(abs(end.gap))} {side} its validation loss of "
        f"{number(end.validation_loss)}."
    )
    if (found := curves.overfitting(curve)) is None:
        return said
    return (
        f"{said} It overfits after epoch {found.onset}: by epoch {found.end} the validation loss has risen by "
        f"{number(found.rise)}, while the training loss has fallen by {number(found.fall)}."
    )


def trial_note(
    record: StudyRecord,
    trial: TrialRecord,
    folds: Sequence[FoldResult],
    evidence: str = "",
    learnt: Sequence[FoldCurve] = (),
) -> str:
    """A trial's note, Markdown.

    evidence: of a failure: where it happened, traceback, the trainer's last words. learnt: curves of finished folds.
    """
    origin = {"default": "The default configuration", "grid": "A point of the grid", "random": "Drawn at random"}
    opening = origin.get(trial.origin, "Proposed by the sampler's model")
    lines = [f"{opening}: {assignment(trial.shown)}."]
    if trial.duplicate_of is not None:
        lines.append("The same configuration had been trained before; its result was taken.")
    if trial.epoch is not None:
        run = f"One run of {record.spec.most_epochs} epochs answered for all fewer ones"
        lines.append(f"{run}; of this trial epoch {trial.epoch} counts, for every fold.")
    if trial.value is not None:
        lines.append(f"**{record.spec.objective} {number(trial.value)}** over {len(folds)} folds.")
    else:
        lines.append(f"**{trial.state}**" + (f": {trial.reason}" if trial.reason else "") + ".")
    curve = curves.pooled(learnt, record.plan)
    lines += [said] if (said := course(curve, curves.reported(folds, learnt, record.plan))) else []
    if folds:
        by_fold = {(each.repeat, each.fold): each for each in learnt}
        lines += [
            "",
            f"| repeat | fold | epochs | items | validation loss | {_beside(folds[0])} | lowest | training loss |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_fold_line(fold, by_fold.get((fold.repeat, fold.fold))) for fold in folds]
    lines += _curve_table(curve)
    if evidence:  # indented, so that nothing in it is read as Markdown
        lines += ["", "Evidence:", "", *("    " + line for line in evidence.splitlines()[:1])]
        lines += ["    " + line for line in evidence.splitlines()[1:][-30:]]
    return "\n".join(lines)


def _beside(fold: FoldResult) -> str:
    """The metric that stands beside the loss: the first one of the task."""
    return next(name for name in objective.metrics(fold.tallies) if name != "validation_loss")


def _fold_line(fold: FoldResult, learnt: FoldCurve | None) -> str:
    values = objective.metrics(fold.tallies)
    cells: list[object] = [fold.repeat, fold.fold, fold.epoch, int(fold.tallies["items"])]
    cells += [number(values["validation_loss"]), number(values[_beside(fold)])]
    found = None if learnt is None else curves.lowest(learnt)
    trained = None if learnt is None or fold.epoch not in learnt.epochs else learnt.epochs[fold.epoch][0]
    cells += ["–" if found is None else f"{number(found[1])} at epoch {found[0]}", number(trained)]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _curve_table(curve: Sequence[Epoch]) -> list[str]:
    """Pooled losses by epoch, of a long run some; nothing of a single epoch."""
    if len(curve) < 2:
        return []
    found = curves.overfitting(curve)
    shown = curves.thinned(curve, () if found is None else (found.onset,))
    lines = ["", "| epoch | training loss | validation loss | gap |", "|---|---|---|---|"]
    return lines + [
        f"| {each.epoch} | {number(each.train_loss)} | {number(each.validation_loss)} | {number(each.gap)} |"
        for each in shown
    ]
