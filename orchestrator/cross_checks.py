"""What no single key of a study file can be blamed for: keys that contradict each other, or have no effect here.

Works on the raw values, so that its findings stand beside those about single keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import baselines, conditions, forms, hyperparameters, models, objective, readers, space
from orchestrator.contract import Settings
from orchestrator.document import Document, Path_
from orchestrator.epochs import shareable
from orchestrator.errors import Problem
from orchestrator.spec import default_rule

MOST_POINTS = 10_000
ADAPTING = ("lora", "dora")  # methods with adapters
ADAPTERS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_scaling", "target_modules", "top_layers")
KINDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # tasks with several forms of rows -> the columns of each
    "causal_lm": {"prompt": ("prompt", "completion"), "messages": ("messages",), "text": ("text",)},
    "token_classification": {"tokens": ("tokens", "tags"), "text": ("text", "spans")},
}
KINDS_IN_WORDS = {
    "causal_lm": "text, prompt with completion, or messages",
    "token_classification": "tokens with tags, or text with spans",
}
COMPARED = ("mixup_alpha", "r_drop_alpha")


def check(
    doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str], folder: Path
) -> list[Problem]:
    """Contradictions between keys. written: the name that each searched hyperparameter has in the file."""
    problems = [*_grid(doc, raw, entries, written), *_sources(doc, raw, folder), *_racing(doc, raw)]
    problems += [*_warmup(doc, entries, written), *_shared_epochs(doc, raw, entries, written)]
    problems += [*_method(doc, raw, entries, written), *_compared(doc, raw, entries, written)]
    problems += [*_baselines(doc, raw), *_stopping(doc, raw, entries, written)]
    task = raw.get("task")
    if task in forms.TASKS:
        problems += _columns(doc, raw, task)
        wanted = raw.get("objective", "validation_loss")
        only = objective.OF_TASK.get(wanted, (task,)) if isinstance(wanted, str) else (task,)
        if task not in only:
            message = f"'{wanted}' needs task {' or '.join(only)} — got {task}"
            problems.append(doc.problem(("objective",), "objective", message))
        if task not in forms.POOLED:
            problems += _unpooled(doc, raw, written)
    return problems


def section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A map of the file; empty where there is none."""
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _grid(doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]) -> Iterator[Problem]:
    if section(raw, "search").get("sampler") != "grid" or not entries:
        return
    wrong = space.grid_problems(entries)
    for name, text in wrong.items():
        yield doc.problem(("search", "space", written[name]), "grid", text)
    if wrong or set(entries) != set(written):  # its size cannot be told
        return
    size, trials = space.grid_size(entries), section(raw, "budget").get("trials")
    if size > MOST_POINTS:
        message = f"a grid may have at most {MOST_POINTS} points — got {size}"
        yield doc.problem(("search", "space"), "grid", message)
    elif isinstance(trials, int) and trials != size:
        message = f"a grid of {size} points runs all of them — got budget.trials {trials}"
        yield doc.problem(("budget", "trials"), "budget", message, "leave budget.trials out")


def _sources(doc: Document, raw: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    data = section(raw, "data")
    path, split = data.get("path"), data.get("split")
    if isinstance(path, str) and split is not None and not readers.is_hub(path, data.get("format"), folder):
        yield doc.problem(("data", "split"), "no-effect", "'data.split' has a meaning only for a dataset of the hub")
    several = raw.get("models")
    for at, model in enumerate(several if isinstance(several, list) else [raw.get("model")]):
        place = ("model", "revision") if several is None else ("model", at, "revision")
        path, revision = (model.get("path"), model.get("revision")) if isinstance(model, dict) else (None, None)
        if isinstance(path, str) and revision is not None and models.origin(path, folder) != "hub":
            yield doc.problem(place, "no-effect", "'model.revision' has a meaning only for a hub model")


def _racing(doc: Document, raw: Mapping[str, Any]) -> Iterator[Problem]:
    racing = section(raw, "racing")
    sampler = section(raw, "search").get("sampler")
    rule, first = racing.get("rule", default_rule(sampler)), racing.get("first_folds", 1)
    only_paired = {"confidence"} if rule == "forgiving" else set()
    for key in racing.keys() & ({"first_folds", "confidence", "hopeless"} if rule == "none" else only_paired):
        yield doc.problem(("racing", key), "no-effect", f"'racing.{key}' has no effect with rule {rule}")
    if rule not in ("forgiving", "paired"):
        return
    if sampler == "gp":
        message = "sampler gp learns from complete trials alone, and racing would hide from it what is bad — got racing"
        help = "use sampler tpe, or racing: {rule: none}"
        yield doc.problem(("racing", "rule"), "racing", f"{message} {rule}", help)
    plan = section(raw, "cross_validation")
    numbers = (plan.get("folds", 5), plan.get("repeats", 1), first)
    if racing and all(isinstance(each, int) and each > 0 for each in numbers) and first >= numbers[0] * numbers[1]:
        where: Path_ = ("racing", "first_folds" if "first_folds" in racing else "rule")
        total = numbers[0] * numbers[1]
        message = f"racing saves the folds after the first {first}, and the plan has {total}: nothing is left to save"
        yield doc.problem(where, "racing", message, "use fewer racing.first_folds, more folds, or racing: {rule: none}")


def _warmup(doc: Document, entries: space.Space, written: Mapping[str, str]) -> Iterator[Problem]:
    given = {**dict.fromkeys(section(doc.values, "training"), "training"), **dict.fromkeys(written, "search.space")}
    both = {"warmup_ratio", "warmup_steps"}
    if entries.keys() == written.keys():
        steps_wait = "warmup_steps" in entries and bool(entries["warmup_steps"].when)
        if _apart(entries, *both) or (steps_wait and "warmup_ratio" not in entries):
            return
    if both <= given.keys():
        path = (*given["warmup_ratio"].split("."), "warmup_ratio")
        yield doc.problem(
            path, "no-effect", "'warmup_ratio' has no effect beside warmup_steps", "leave one of them out"
        )


def _apart(entries: space.Space, one: str, other: str) -> bool:
    """Whether no configuration has a value of both."""
    return {one, other} <= entries.keys() and conditions.exclude(entries, one, other)


def _shared_epochs(
    doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]
) -> Iterator[Problem]:
    if raw.get("share_epochs") is not True or set(entries) != set(written):
        return
    if "epochs" not in entries:
        message = "'share_epochs' needs epochs in search.space: it is what the runs share"
        yield doc.problem(("share_epochs",), "no-effect", message, "search epochs, or leave share_epochs out")
    for name, entry in entries.items():
        if "epochs" in entry.when or (name == "epochs" and entry.when):
            message = "with 'share_epochs' every trial has epochs, and no other hyperparameter may depend on them"
            yield doc.problem(("search", "space", written[name], "when"), "share-epochs", message)
    schedules, steps, ratios = (extremes(raw, entries, f) for f in ("lr_schedule", "warmup_steps", "warmup_ratio"))
    wrong = [f"lr_schedule {each}" for each in schedules if not shareable(Settings(lr_schedule=each, warmup_ratio=0.0))]
    shared = Settings(lr_schedule="constant", warmup_steps=min(steps))
    wrong += [f"warmup_ratio {each:g}" for each in ratios if not shareable(replace(shared, warmup_ratio=each))][:1]
    if wrong:
        rule = "'share_epochs' needs a learning rate that does not depend on the number of epochs"
        help = "write training: {lr_schedule: constant, warmup_ratio: 0}, or warmup_steps instead of warmup_ratio"
        yield doc.problem(("share_epochs",), "share-epochs", f"{rule} — got {', '.join(wrong)}", help)


def _baselines(doc: Document, raw: Mapping[str, Any]) -> Iterator[Problem]:
    given, task = raw.get("baselines"), raw.get("task")
    place: Path_ = ("baselines", "run") if isinstance(given, dict) else ("baselines",)
    names = given.get("run") if isinstance(given, dict) else given
    known = baselines.OF_TASK.get(task, {}) if isinstance(task, str) else {}
    if not isinstance(names, list) or not known:
        return
    for index, name in enumerate(names):
        if name not in known:
            message = f"no baseline of task {task}: {hyperparameters.show(name)}"
            help = hyperparameters.did_you_mean(str(name), known)
            yield doc.problem((*place, index), "baselines", message, help)
    if len({str(name) for name in names}) < len(names):
        yield doc.problem(place, "baselines", "a baseline is named twice")


def _method(
    doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]
) -> Iterator[Problem]:
    """What adapters are asked for and nothing has any."""
    methods = extremes(raw, entries, "method") if set(entries) == set(written) else ("lora",)
    if set(ADAPTING) & set(methods):
        waiting = {name: entries[name].when for name in ADAPTERS if name in entries}
        yield from _without_adapters(
            doc, {name: when["method"] for name, when in waiting.items() if "method" in when}, written
        )
        return
    if methods == ("head",) and raw.get("task") in forms.HEADLESS:
        message = f"method head trains a classifier's head, and a language model has none — got task {raw['task']}"
        yield doc.problem(place(doc, "method", written), "method", message, "use method lora")
    yield from _without_adapters(doc, dict.fromkeys(sorted(ADAPTERS), methods), written)


def _without_adapters(
    doc: Document, methods: Mapping[str, tuple[Any, ...]], written: Mapping[str, str]
) -> Iterator[Problem]:
    """methods: of each hyperparameter of adapters, under which it counts."""
    for name, those in methods.items():
        without = not set(ADAPTING) & set(those) and ("full" not in those or name != "top_layers")
        if without and (where := place(doc, name, written)) in doc.places:
            message = f"'{name}' has no effect with method {' or '.join(those)}, which has no adapters"
            yield doc.problem(where, "no-effect", message)


def _compared(
    doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]
) -> Iterator[Problem]:
    """mixup, R-Drop and class weights need rows of classes; R-Drop compares what dropout made different."""
    if set(entries) != set(written):
        return
    task = raw.get("task")
    known = ("lora_dropout", "dropout", "label_smoothing")
    highest = {name: max(extremes(raw, entries, name)) for name in (*COMPARED, *known)}
    if task == "regression" and highest["label_smoothing"]:
        message = "'label_smoothing' has no meaning for task regression: a number has no classes to spread over"
        yield doc.problem(place(doc, "label_smoothing", written), "no-effect", message)
    for name in COMPARED:
        if highest[name] and task in forms.TASKS and task not in forms.ONE_CLASS:
            message = f"'{name}' compares logits of classes, of which each row has one — got task {task}"
            yield doc.problem(place(doc, name, written), "no-effect", message)
    if task in forms.TASKS and task not in forms.ONE_CLASS and extremes(raw, entries, "class_weights") != ("none",):
        message = f"'class_weights' weighs rows by their class — got task {task}"
        yield doc.problem(place(doc, "class_weights", written), "no-effect", message)
    if highest["r_drop_alpha"] and not highest["lora_dropout"] and not highest["dropout"]:
        message = "'r_drop_alpha' compares what two dropout masks make of a row, and there is no dropout"
        help = "set or search lora_dropout or dropout"
        yield doc.problem(place(doc, "r_drop_alpha", written), "no-effect", message, help)


def _stopping(
    doc: Document, raw: Mapping[str, Any], entries: space.Space, written: Mapping[str, str]
) -> Iterator[Problem]:
    """Early stopping: what it excludes, and what has no effect without it."""
    if set(entries) != set(written):
        return
    if not max(extremes(raw, entries, "patience")):
        if (where := place(doc, "stopping_share", written)) in doc.places:
            message = "'stopping_share' has no effect without patience"
            yield doc.problem(where, "no-effect", message, "set or search patience")
        return
    where, leave = place(doc, "patience", written), "leave one of them out"
    if raw.get("share_epochs") is True:
        message = "with 'share_epochs' one epoch counts for all folds of a trial, and with patience each has its own"
        yield doc.problem(where, "share-epochs", message, leave)
    if max(extremes(raw, entries, "pseudo_rounds")) and not _apart(entries, "patience", "pseudo_rounds"):
        message = "'pseudo_rounds' trains inner models on parts of a fold, which have nothing left to stop by"
        yield doc.problem(where, "patience", message, leave)
    if max(extremes(raw, entries, "epochs")) == 1:
        message = "'patience' chooses among epochs, and there is one"
        yield doc.problem(where, "no-effect", message, "allow more epochs: they are the most that a fold may train")


def place(doc: Document, name: str, written: Mapping[str, str]) -> Path_:
    """Where the file gives a hyperparameter, by whichever name."""
    if name in written:
        return ("search", "space", written[name])
    given = {hyperparameters.canonical_name(key): key for key in section(doc.values, "training")}
    return ("training", given.get(name, name))


def extremes(raw: Mapping[str, Any], entries: space.Space, name: str) -> tuple[Any, ...]:
    """As `space.extremes`."""
    return space.extremes(entries, name, section(raw, "training"))


def _columns(doc: Document, raw: Mapping[str, Any], task: str) -> Iterator[Problem]:
    data = section(raw, "data")
    known = sorted({column for columns in forms.KEYS.values() for column in columns})
    for column in known:
        if column not in forms.KEYS[task] and data.get(column) is not None:
            yield doc.problem(("data", column), "no-effect", f"'data.{column}' has no meaning for task {task}")
    if task in KINDS:
        pairs = KINDS[task]
        kinds = {kind: key for kind, keys in pairs.items() for key in keys if data.get(key) is not None}
        if len(kinds) > 1:
            message = f"rows are {KINDS_IN_WORDS[task]} — got {' and '.join(kinds)}"
            yield doc.problem(("data", list(kinds.values())[1]), "columns", message)


def _unpooled(doc: Document, raw: Mapping[str, Any], written: Mapping[str, str]) -> Iterator[Problem]:
    """What only tasks have that say one thing of a whole row."""
    where: Path_ = ("search", "space", "pooling") if "pooling" in written else ("training", "pooling")
    if where in doc.places:
        yield doc.problem(where, "no-effect", f"'pooling' has no meaning for task {raw['task']}")
    if section(raw, "cross_validation").get("stratify") is True and raw["task"] not in forms.STRATIFIED:
        path = ("cross_validation", "stratify")
        message = f"'stratify: true' needs classes: task {' or '.join(forms.STRATIFIED)}"
        yield doc.problem(path, "no-effect", message)
