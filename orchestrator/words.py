"""What was tried and found, in words, for the dashboard's notes (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import objective
from orchestrator.records import FoldResult, StudyRecord, TrialRecord

SAMPLERS = {
    "tpe": "TPE (multivariate)",
    "gp": "a Gaussian process",
    "random": "random search",
    "grid": "a grid",
}


def number(value: float | None) -> str:
    """Four significant digits, zeros too, so that columns compare; a dash for nothing."""
    return "–" if value is None else f"{value:#.4g}"


def assignment(params: Mapping[str, Any]) -> str:
    """`learning_rate 0.0021, batch_size 8`, ready to be read."""
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in params.values())
    return ", ".join(f"{name} {value}" for name, value in zip(params, shown, strict=True))


def best_trial(record: StudyRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the best value, the default configuration included; the earliest among equals."""
    done = [trial for trial in trials if trial.value is not None and trial.duplicate_of is None]
    sign = -1 if record.spec.maximize else 1
    return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)


def study_note(record: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    """The study's note, Markdown."""
    counts = Counter(trial.state for trial in trials if trial.searched)
    default = next((trial for trial in trials if trial.is_default), None)
    return study_note_of(record, counts, best_trial(record, trials), default)


def study_note_of(
    record: StudyRecord, counts: Mapping[str, int], best: TrialRecord | None, default: TrialRecord | None
) -> str:
    """The same. counts: state -> searched trials in it; best: of `best_trial`; default: the default configuration."""
    spec = record.spec
    validation = spec.cross_validation
    repeats = f", {validation.repeats} times" if validation.repeats > 1 else ""
    lines = [
        f"**Question.** Which {', '.join(spec.search.space)} fine-tune `{spec.model.path}` best "
        f"on {len(record.plan.assignment[0])} rows of `{spec.data.path}` ({spec.task})?",
        "",
        f"**How.** {SAMPLERS[spec.search.sampler]} proposes, {validation.folds}-fold cross-validation{repeats} "
        f"judges: {spec.objective}, pooled over all validation items. Every trial sees the same folds"
        + (f"; racing ({spec.racing.rule}) stops those that fall behind." if spec.racing.on else "."),
        "",
        "**So far.** "
        + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        + f" of {spec.budget.trials} trials.",
    ]
    return "\n".join([*lines, *_findings(record, best, default)])


def _findings(record: StudyRecord, best: TrialRecord | None, default: TrialRecord | None) -> list[str]:
    if best is None or best.value is None:
        return []
    lines = ["", f"**Best.** Trial {best.name}: {number(best.value)} with {assignment(best.shown)}."]
    if default is not None and default.value is not None:
        lines.append(f"The default configuration reaches {number(default.value)}.")
    if record.floor and record.spec.objective in record.floor:
        lines.append(f"Class frequencies alone reach {number(record.floor[record.spec.objective])}.")
    return lines


def trial_note(record: StudyRecord, trial: TrialRecord, folds: Sequence[FoldResult], evidence: str = "") -> str:
    """A trial's note, Markdown.

    evidence: of a failure: where it happened, traceback, the trainer's last words.
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
    if folds:
        lines += [
            "",
            f"| repeat | fold | epochs | items | validation loss | {_beside(folds[0])} |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_fold_line(fold) for fold in folds]
    if evidence:  # indented, so that nothing in it is read as Markdown
        lines += ["", "Evidence:", "", *("    " + line for line in evidence.splitlines()[:1])]
        lines += ["    " + line for line in evidence.splitlines()[1:][-30:]]
    return "\n".join(lines)


def _beside(fold: FoldResult) -> str:
    """The metric that stands beside the loss: the first one of the task."""
    return next(name for name in objective.metrics(fold.tallies) if name != "validation_loss")


def _fold_line(fold: FoldResult) -> str:
    values = objective.metrics(fold.tallies)
    cells: list[object] = [fold.repeat, fold.fold, fold.epoch, int(fold.tallies["items"])]
    cells += [number(values["validation_loss"]), number(values[_beside(fold)])]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
