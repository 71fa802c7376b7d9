"""A study for people: tables, the live view, the result."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator import baselines, learnt, objective, reading, words
from orchestrator.console import short
from orchestrator.errors import printable
from orchestrator.reading import View
from orchestrator.records import TrialRecord

STYLES = {
    "complete": "green",
    "running": "cyan",
    "waiting": "dim",
    "stopped": "yellow",
    "cancelled": "dim",
    "diverged": "red",
    "infeasible": "red",
    "failed": "bold red",
}
SHOWN_TRIALS = 15
SHOWN_REASONS = 5


def live(seen: View) -> RenderableType:
    """Everything about a study that is under way, on one screen."""
    return Group(_headline(seen), _progress(seen), Text(), _trials_table(seen), *_stopped(seen), *_running(seen))


def _headline(seen: View) -> Text:
    best = seen.best
    line = Text(f"{seen.record.name} ", style="bold")
    line.append(seen.record.state, style="green" if seen.record.state == "complete" else "cyan")
    if best is not None:
        line.append(f"   best {seen.record.spec.objective} ")
        line.append(words.number(best.value), style="bold green")
        line.append(f" (trial {best.name})" if not best.is_default else " (default)")
    line.append(f"   {_duration(seen.elapsed)}", style="dim")
    left = reading.seconds_to_go(seen)
    if left is not None:
        line.append(f", about {_duration(left)} to go", style="dim")
    return line


def _progress(seen: View) -> Table:
    each = len(seen.record.plan.units)
    planned = seen.record.trials_total + sum(not trial.searched for trial in seen.trials)
    done = sum(counts.get("done", 0) for counts in seen.units.values())
    grid = Table.grid(padding=(0, 1))
    saved = reading.folds_saved(seen)
    said = f"{done} of {planned * each} folds" + (f", {saved} saved by racing" if saved else "")
    grid.add_row(ProgressBar(total=planned * each, completed=done + saved, width=40), said)
    return grid


def _trials_table(seen: View) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("trial", "state", "folds", "epochs"):
        table.add_column(heading)
    table.add_column(seen.record.spec.objective, justify="right")
    for name in seen.record.spec.searched:
        table.add_column(name, justify="right")
    shown = _most_telling(seen)
    best = seen.best
    for trial in shown:
        table.add_row(*_trial_row(seen, trial), style="bold" if best is not None and trial.id == best.id else "")
    hidden = len(seen.trials) - len(shown)
    if hidden > 0:
        table.caption = f"and {hidden} more"
    return table


def _most_telling(seen: View) -> list[TrialRecord]:
    """Open trials, then the best, then the rest."""
    sign = -1 if seen.record.spec.maximize else 1

    def rank(trial: TrialRecord) -> tuple[int, float]:
        if trial.state == "running":
            return 0, float(trial.id)
        if trial.value is not None:
            return 1, sign * trial.value
        return 2 if trial.state != "waiting" else 3, float(trial.id)

    return sorted(seen.trials, key=rank)[:SHOWN_TRIALS]


def _trial_row(seen: View, trial: TrialRecord) -> list[RenderableType]:
    units = seen.units.get(trial.trained, {})
    done, leased, total = units.get("done", 0), units.get("leased", 0), sum(units.values())
    dots = "●" * done + "◐" * leased + "○" * (total - done - leased)
    epochs = sum(result.epoch for result in seen.trial_results(trial))
    value = words.number(trial.value) if trial.value is not None else _so_far(seen, trial)
    label = trial.name if trial.is_default or trial.is_baseline or trial.number is not None else "–"
    cells: list[RenderableType] = [label, Text(trial.state, style=STYLES[trial.state]), dots, str(epochs), value]
    shown = {} if trial.is_baseline else trial.shown
    return cells + [escape(short(shown[name])) if name in shown else "" for name in seen.record.spec.searched]


def _so_far(seen: View, trial: TrialRecord) -> str:
    results = seen.trial_results(trial)
    if not results:
        return ""
    pooled = objective.metrics(objective.add(result.tallies for result in results))
    return f"~{words.number(pooled[seen.record.spec.objective])}"


def _stopped(seen: View) -> list[Text]:
    """Why racing stopped what it stopped last."""
    stopped = [trial for trial in seen.trials if trial.state == "stopped"]
    return [Text(f"  trial {trial.name} stopped: {trial.reason}", style="dim") for trial in stopped[-SHOWN_REASONS:]]


def _running(seen: View) -> list[Text]:
    lines = []
    for unit in seen.running:
        trial = next(trial for trial in seen.trials if trial.id == unit["trial"])
        repeat = f" repeat {unit['repeat']}" if len(seen.record.plan.assignment) > 1 else ""
        text = f"  {unit['worker']} ({unit['device']}): trial {trial.name}{repeat} fold {unit['fold'] + 1}"
        if unit["epoch"]:
            loss = objective.validation_loss(unit["tallies"])
            text += f", epoch {unit['epoch']} of {trial.settings.epochs}, validation loss {words.number(loss)}"
        lines.append(Text(text, style="dim"))
    return lines


def curves(seen: View) -> RenderableType:
    """`status --curves`."""
    fine_tunes = [(each, seen.curve(each), seen.reported(each)) for each in seen.trials if not each.is_baseline]
    return learnt.table([(trial, curve, end) for trial, curve, end in fine_tunes if curve])


def result(seen: View) -> RenderableType:
    """Baselines and fine-tunes side by side, then the winner with the default configuration beside it."""
    best, default = seen.best, seen.default
    if best is None:
        return Text(f"{seen.record.name}: no trial is complete", style="red")
    beside = [trial for trial in (best, default) if trial is not None and trial.value is not None]
    beside = list({trial.id: trial for trial in beside}.values())
    table = Table()
    table.add_column("")
    for trial in beside:
        table.add_column(words.label(trial, best), justify="right", style="green" if trial is best else "")
    described = [reading.describe(seen, trial) for trial in beside]
    for label, cells in _result_rows(seen, described):
        table.add_row(label, *cells)
    return Group(
        _measured(seen, beside, [each["metrics"] for each in described]),
        table,
        *[Text(line) for line in conclusions(seen)],
    )


def _measured(seen: View, beside: Sequence[TrialRecord], described: Sequence[Mapping[str, Any]]) -> Table:
    """Baselines first, then the fine-tunes, on the same folds. described: the metrics of each of these."""
    title = f"{escape(seen.record.name)}: the best of {_judged(seen)[0]} configurations"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("on the same folds")
    for name in described[0]:
        table.add_column(name, justify="right")
    for each in reading.baselines(seen):
        label = baselines.meaning(seen.record.spec.task, each["name"])
        if each["metrics"] is None:
            table.add_row(f"{label}: {escape(each['reason'] or each['state'])}", style="dim")
        else:
            table.add_row(label, *[words.number(each["metrics"].get(name)) for name in described[0]])
    for trial, metrics in reversed(list(zip(beside, described, strict=True))):
        label, style = words.label(trial, beside[0]), "green" if trial is beside[0] else ""
        table.add_row(label, *[words.number(metrics[name]) for name in described[0]], style=style)
    return table


def _judged(seen: View) -> tuple[int, int]:
    """How many configurations were judged, and how many of these racing stopped."""
    tuned = [trial for trial in seen.trials if not trial.is_baseline]
    judged = [t.state for t in tuned if t.state in ("complete", "stopped") and t.duplicate_of is None]
    return len(judged), judged.count("stopped")


def _result_rows(seen: View, described: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """described: as `reading.describe`."""
    rows = []
    for index, fold in enumerate(described[0]["folds"]):
        repeat = f" (repeat {fold['repeat'] + 1})" if len(seen.record.plan.assignment) > 1 else ""
        losses = [words.number(item["folds"][index]["loss"]) for item in described]
        rows.append((f"loss of fold {fold['fold'] + 1}{repeat}, {fold['n']} items", losses))
    for key in seen.record.spec.searched:
        values = [
            item["settings"].get(key, item["params"][key]) if key in item["params"] else None for item in described
        ]
        rows.append((escape(key), [escape(short(value)) for value in values]))
    return rows


def conclusions(seen: View) -> list[str]:
    """What the table means, in words."""
    best, default, record = seen.best, seen.default, seen.record
    assert best is not None
    assert best.value is not None
    lines = []
    if best.is_default:
        lines.append("No searched trial beat the default configuration.")
    elif default is not None and default.value is not None:
        pairs = zip(seen.trial_results(best), seen.trial_results(default), strict=True)
        losses = [
            objective.validation_loss(mine.tallies) < objective.validation_loss(theirs.tallies)
            for mine, theirs in pairs
        ]
        share = f"{sum(losses)} of {len(losses)} folds"
        lines.append(f"Trial {best.name} has a lower loss than the default configuration on {share}.")
    lines += [said] if (said := words.course(seen.curve(best), seen.reported(best))) else []
    if (named := words.best_baseline(record, seen.trials)) is not None:
        lines.append(words.against_baseline(record, best, named))
    elif record.floor:
        accuracy = words.number(record.floor["accuracy"])
        loss = words.number(record.floor["validation_loss"])
        lines.append(f"Class frequencies alone reach loss {loss} and accuracy {accuracy} on the same folds.")
    judged, stopped = _judged(seen)
    if stopped:
        lines.append(f"{stopped} of the {judged} were behind after a few folds and stopped there.")
    if len(seen.trials) > 1:
        lines.append("The best of many looks better than it is: expect somewhat less on new data.")
    return lines


def list_table(rows: Sequence[dict[str, Any]]) -> Table:
    """`foldtune list`."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("study", "state", "trials", "device hours", "best"):
        table.add_column(heading)
    for row in rows:
        trials, hours = row["budget"]["trials"], row["budget"]["hours"]
        total = "" if hours["total"] is None else f" of {hours['total']:g}"
        best = row["best"] and words.number(row["best"]["value"])
        cells = [row["study"], row["state"], f"{trials['used']} of {trials['total']}", f"{hours['used']:.2f}{total}"]
        table.add_row(*[escape(cell) for cell in cells], best or "–")
    return table


def compared(found: Mapping[str, Any]) -> RenderableType:
    """`foldtune compare`."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("", "nats per item", "95 % interval", ""):
        table.add_column(heading, justify="right" if heading.startswith("nats") else "left")
    for trial in found["trials"]:
        shown = escape(words.assignment(trial["params"]))
        table.add_row(escape(trial["name"]), words.number(trial["loss"]["value"]), _interval(trial["loss"]), shown)
    gap = found["difference"]
    table.add_row("difference", f"{gap['value']:+.4g}", _interval(gap), "")
    lower = sum(each["difference"] < 0 for each in found["folds"])
    lines = [f"{found['verdict']} {lower} of {len(found['folds'])} folds have the lower loss with the first."]
    if (test := found["corrected_t"]) is not None:
        lines.append(
            f"Corrected resampled t-test over the folds: t {test['t']:.2f}, {test['freedom']} degrees of freedom, "
            f"p {test['p']:.2g}."
        )
    many, kin = found["rows"], found["rows"] - found["clusters"]
    together = f", {kin} of which belong to others," if kin else ""
    lines.append(f"Intervals hold the chance of the {many} rows{together} and not that of a run's seed.")
    if (best := found["best"]) is not None:
        chosen = f"The best of {best['of']} was chosen by these very rows, and looks better than it is"
        more = ""
        if (loss := best["loss"]) is not None:
            more = f": expect {words.number(loss['value'])} nats per item on others, {_interval(loss)}"
        lines.append(f"{chosen}{more}.")
    return Group(table, Text(), *(Text(line) for line in lines))


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{words.number(estimate['low'])} to {words.number(estimate['high'])}"


def suspects_table(found: Mapping[str, Any]) -> Table:
    """`foldtune suspects`."""
    by = f"by trials {', '.join(found['trials'])}, none of which was trained on the row"
    title = f"{escape(found['study'])}: {found['count']} of {found['rows']} rows are suspect, {by}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2), header_style="dim")
    classes = found["judged_by"] == "classes"
    for heading in ("row", "loss", "label", *(["models say"] if classes else []), "text"):
        table.add_column(heading, justify="right" if heading in ("row", "loss") else "left")
    for each in found["suspects"]:
        cells = [str(each["row"]), words.number(each["loss"]), _likely(each["label"], each["probability"])]
        cells += [_likely(each["models_say"], each["models_probability"])] if classes else []
        table.add_row(*cells, escape(printable(each["text"][:80])))
    return table


def _likely(label: str | None, probability: float | None) -> str:
    named = escape(short(label)[:40])
    return named if probability is None else f"{named} {probability:.0%}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:")
