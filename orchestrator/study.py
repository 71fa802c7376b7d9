"""The only caller of Optuna: asks its samplers, and shows it what foldtune's tables say.

Samplers run on an in-memory study rebuilt from foldtune's own rows: a suggestion is a function of history and seed.
The Optuna study in Postgres is a projection for the dashboard and for people's own scripts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import event, text
from sqlalchemy.engine import URL

from orchestrator import lifecycle, space
from orchestrator.contract import derive_seed
from orchestrator.database.engine import CONNECT_ARGS, TIMEOUTS, connect, name_crash_points
from orchestrator.errors import UNAVAILABLE, USAGE, FoldtuneError

optuna.logging.set_verbosity(optuna.logging.WARNING)

KEY = "foldtune"  # user attribute that ties an Optuna trial to foldtune's row
MEMORY = "infeasible: memory"  # constraint of a configuration that fits no device
_LOCK = 0x6F707475
_PROJECTION = 0x70726F6A  # "proj"; the second half of that key is the study
GP_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a sampler may know of one trial."""

    params: Mapping[str, Any]
    state: str  # of foldtune's trial
    value: float | None = None
    reports: Sequence[float] = ()  # pooled running objective after 1, 2, ... finished folds


@dataclass(frozen=True, kw_only=True)
class Question:
    """All that a suggestion depends on."""

    sampler: str
    space: Mapping[str, Mapping[str, Any]]  # entries as JSON
    maximize: bool
    trials: int  # the study's budget
    seed: int
    past: Sequence[Past] = field(default_factory=tuple)


def suggest(question: Question) -> tuple[dict[str, Any], str]:
    """(params, origin): the next configuration, and whether the sampler's model or chance proposed it."""
    if question.sampler == "gp":  # needs torch, which must not live in this process
        return _suggest_in_child(question)
    return answer(question)


def answer(question: Question) -> tuple[dict[str, Any], str]:
    """`suggest`, in this process."""
    entries = {name: space.entry_from_json(name, raw) for name, raw in question.space.items()}
    startup = lifecycle.startup_trials(question.trials)
    past = () if question.sampler == "random" else question.past
    distributions = space.distributions(entries)
    with _remembering:
        params = _memory(question, distributions, past).ask(_sampler(question, startup, distributions))
    learnt = ("COMPLETE",) if question.sampler == "gp" else ("COMPLETE", "PRUNED")
    known = sum(lifecycle.TOLD.get(past.state) in learnt for past in question.past)
    by_model = question.sampler in ("tpe", "gp") and known >= startup
    return params, "model" if by_model else "random"


MEMORIES = 4  # studies whose history this process keeps as an Optuna study


class _Memory:
    """An Optuna study in memory that was told a history. What is new since is told, not all of it again."""

    def __init__(self, maximize: bool, distributions: Mapping[str, BaseDistribution]) -> None:
        self.maximize, self.distributions = maximize, dict(distributions)
        self._study = optuna.create_study(direction=_direction(maximize))
        self._told: list[Past] = []
        self._numbers: list[int] = []

    def tell(self, history: Sequence[Past]) -> bool:
        """Tell it the history; False, and nothing told: what it knows is no earlier state of this history."""
        changed = []
        for index, (old, new) in enumerate(zip(self._told, history, strict=False)):
            if old is not new and old != new:
                if old.state in lifecycle.TOLD or old.params != new.params:
                    return False
                changed.append(index)
        if len(history) < len(self._told):
            return False
        for index in changed:
            _tell(self._study, self._numbers[index], history[index])
        for past in history[len(self._told) :]:
            self._numbers.append(_add(self._study, past, self.distributions))
        self._told = list(history)
        return True

    def ask(self, sampler: BaseSampler) -> dict[str, Any]:
        """The sampler's next params. Its trial stays behind as a failed one: no sampler looks at these."""
        self._study.sampler = sampler
        trial = self._study.ask(self.distributions)
        self._study.tell(trial, state=TrialState.FAIL)
        return dict(trial.params)


_memories: list[_Memory] = []  # the latest last
_remembering = threading.Lock()


def _memory(question: Question, distributions: Mapping[str, BaseDistribution], past: Sequence[Past]) -> _Memory:
    """One that knows just this history, made of an earlier one where that is possible."""
    for index, memory in enumerate(_memories):
        if (memory.maximize, memory.distributions) == (question.maximize, distributions) and memory.tell(past):
            _memories.append(_memories.pop(index))
            return memory
    memory = _Memory(question.maximize, distributions)
    memory.tell(past)
    _memories.append(memory)
    del _memories[:-MEMORIES]
    return memory


class _FixedSpaceTPESampler(TPESampler):
    """TPE that is told the space. Left to itself it intersects those of all trials, more than half of its seconds."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._fixed = {name: each for name, each in sorted(distributions.items()) if not each.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._fixed)


def _sampler(question: Question, startup: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
    seed = question.seed % 2**32
    if question.sampler == "tpe":
        options = {"seed": seed, "n_startup_trials": startup, "multivariate": True, "constant_liar": True}
        return _FixedSpaceTPESampler(distributions, **options)
    if question.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False)
    return RandomSampler(seed=seed)


def _suggest_in_child(question: Question) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "orchestrator.suggest_child"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(question)),
            capture_output=True,
            text=True,
            timeout=GP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _at_random(question, f"it did not answer within {GP_SECONDS} s")
    if done.returncode != 0:
        return _at_random(question, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    params, origin = json.loads(done.stdout)
    return params, origin


def _at_random(question: Question, why: str) -> tuple[dict[str, Any], str]:
    """One sampler that fails once must not end a worker of many studies."""
    print(f"the GP sampler failed ({why}); this suggestion is drawn at random", file=sys.stderr, flush=True)
    return answer(replace(question, sampler="random"))


def question_from_json(raw: Mapping[str, Any]) -> Question:
    """The question a parent process sent."""
    return Question(**{**raw, "past": tuple(Past(**past) for past in raw["past"])})


def suggestion_seed(study_seed: int, suggestion: int, redraw: int) -> int:
    """The sampler's seed: one shared seed would give every worker the same trials."""
    return derive_seed(study_seed, "suggestion", suggestion, redraw)


# --- the projection in Postgres ---------------------------------------------------------------------------------


@cache
def _storage(url: URL) -> RDBStorage:
    # A role named foldtune would otherwise find, and make, Optuna's tables in foldtune's schema.
    arguments = {**CONNECT_ARGS, "options": f"-c search_path=public {TIMEOUTS}"}
    place = url.render_as_string(hide_password=False)
    with connect(url).begin() as connection:  # two processes that create Optuna's tables at once: one would fail
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        # looking at versions it wants two connections at once
        RDBStorage(place, engine_kwargs={"connect_args": arguments}).engine.dispose()
    storage = RDBStorage(
        place,
        skip_compatibility_check=True,
        skip_table_creation=True,
        # one connection and no other: `alone` holds its lock on it
        engine_kwargs={"pool_pre_ping": True, "pool_size": 1, "max_overflow": 0, "connect_args": arguments},
    )
    name_crash_points(storage.engine, "optuna: ")
    event.listen(storage.engine, "connect", lambda *_: _refuse_to_reconnect(url))
    return storage


_inside: dict[URL, threading.RLock] = {}  # held by the thread that is `alone`
_exclusive: set[URL] = set()


def _refuse_to_reconnect(url: URL) -> None:
    if url in _exclusive:
        raise FoldtuneError("the connection that kept others from the same study was lost", code=UNAVAILABLE)


@contextmanager
def alone(url: URL, study_id: int, *, wait: bool) -> Iterator[bool]:
    """Nobody else writes this study's Optuna study inside. False: somebody does now, and `wait` is off.

    The lock lives on the connection that Optuna writes through, and that is not replaced inside: were it another one,
    losing it would let a second process start the same Optuna trial while this one goes on.

    Raises:
        FoldtuneError: the lock was not free for several seconds, or the connection was lost.
    """
    key = {"kind": _PROJECTION, "study": study_id}
    with _inside.setdefault(url, threading.RLock()):
        engine = _storage(url).engine
        with engine.begin() as connection:
            if wait:
                connection.execute(text("SELECT pg_advisory_lock(:kind, CAST(:study AS integer))"), key)
            else:
                free = text("SELECT pg_try_advisory_lock(:kind, CAST(:study AS integer))")
                if not connection.execute(free, key).scalar():
                    yield False
                    return
        _exclusive.add(url)
        try:
            yield True
        finally:
            _exclusive.discard(url)
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_unlock(:kind, CAST(:study AS integer))"), key)


def storage(url: URL) -> RDBStorage:
    """Optuna's storage on the study database."""
    return _storage(url)


def exists(url: URL, name: str) -> bool:
    """Whether Optuna has a study of that name."""
    return name in optuna.get_all_study_names(_storage(url))


def open_projection(
    url: URL, name: str, objective: str, *, maximize: bool, attributes: Mapping[str, Any]
) -> optuna.Study:
    """The Optuna study that shows a foldtune study; created if it is not there. Idempotent.

    Raises:
        FoldtuneError: a study of that name, made by somebody else, optimises in the other direction.
    """
    direction = _direction(maximize)
    try:
        shown = optuna.load_study(storage=_storage(url), study_name=name)
    except KeyError:
        shown = optuna.create_study(storage=_storage(url), study_name=name, direction=direction, load_if_exists=True)
    if shown.direction != direction:
        raise FoldtuneError(f"Optuna has another study named {name!r}", help="choose another name", code=USAGE)
    known = shown.user_attrs
    if not attributes.keys() <= known.keys():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shown.set_metric_names([objective])
    for key, value in attributes.items():
        if known.get(key) != value:
            shown.set_user_attr(key, value)
    return shown


def show_start(
    shown: optuna.Study, key: str, params: Mapping[str, Any], entries: space.Space, attributes: Mapping[str, Any]
) -> int:
    """The number of a new Optuna trial for `key`, RUNNING."""
    return _start(shown, params, space.distributions(entries), {KEY: key, **attributes})


def show_end(shown: optuna.Study, number: int, past: Past, attributes: Mapping[str, Any], note: str) -> None:
    """Tell Optuna how a trial ended, unless it knows already."""
    frozen = _frozen(shown, number)
    if frozen.state.is_finished():
        return
    trial = Trial(shown, frozen._trial_id)
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    save_note(shown, number, note)
    _tell(shown, number, past)


def save_note(shown: optuna.Study, number: int | None, note: str) -> None:
    """The words the dashboard shows beside a trial, or beside the study (number None)."""
    target = shown if number is None else Trial(shown, _frozen(shown, number)._trial_id)
    _notes().save_note(target, note)


@cache
def _notes() -> Any:
    """optuna-dashboard's module for notes, without its package: that brings scikit-learn and a web server, seconds."""
    package = importlib.util.find_spec("optuna_dashboard")
    folders = (package.submodule_search_locations if package else None) or []
    for file in (Path(folder) / "_note.py" for folder in folders):
        spec = importlib.util.spec_from_file_location("_foldtune_dashboard_note", file)
        if file.exists() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return importlib.import_module("optuna_dashboard")  # a version that has it elsewhere


def is_whole(shown: optuna.Study, ends: Mapping[int, str]) -> bool:
    """Whether Optuna has all trials that it ever had: none is missing between its first and last number.

    ends: our lowest and our highest number, and the keys that stand there.
    """
    [(count, highest)] = _ask(shown, "SELECT count(*), coalesce(max(number), -1) FROM trials WHERE study_id = :study")
    if count <= highest or highest < max(ends, default=-1):
        return False
    rows = _ask(
        shown,
        "SELECT t.number, a.value_json FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
        "WHERE t.study_id = :study AND a.key = :key AND t.number = ANY(:numbers)",
        numbers=list(ends),
    )
    return {number: json.loads(key) for number, key in rows} == ends


def numbers(shown: optuna.Study) -> dict[str, int]:
    """Of all Optuna trials that foldtune made here: key -> number."""
    rows = _ask(
        shown,
        "SELECT a.value_json, t.number FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
        "WHERE t.study_id = :study AND a.key = :key",
    )
    return {json.loads(key): number for key, number in rows}


def running(shown: optuna.Study) -> dict[int, str | None]:
    """Of the Optuna trials that run: number -> key. None: somebody else's."""
    rows = _ask(
        shown,
        "SELECT t.number, a.value_json FROM trials t "
        "LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = :key "
        "WHERE t.study_id = :study AND t.state = 'RUNNING' ORDER BY t.number",
    )
    return {number: None if key is None else json.loads(key) for number, key in rows}


def _ask(shown: optuna.Study, query: str, **values: Any) -> list[tuple[Any, Any]]:
    """From Optuna's tables. Its own way to a few columns is to read every trial with all that belongs to it."""
    engine = shown._storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        rows = connection.execute(text(query), {"study": shown._study_id, "key": KEY, **values})
        return [(left, right) for left, right in rows]


def drop_orphan(shown: optuna.Study, number: int) -> None:
    """End an Optuna trial that no row of foldtune stands behind."""
    shown.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def delete(url: URL, name: str) -> None:
    """Remove the Optuna study, if it is there."""
    if exists(url, name):
        optuna.delete_study(study_name=name, storage=_storage(url))


def _direction(maximize: bool) -> StudyDirection:
    return StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE


def _frozen(shown: optuna.Study, number: int) -> FrozenTrial:
    """One trial. `get_trials` would read all of them, again for every opened study: its cache is the study's."""
    storage = shown._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(shown._study_id, number))


def _start(
    shown: optuna.Study, params: Mapping[str, Any], distributions: Mapping[str, Any], attributes: Mapping[str, Any]
) -> int:
    trial = create_trial(
        state=TrialState.RUNNING, params=dict(params), distributions=dict(distributions), user_attrs=dict(attributes)
    )
    storage = shown._storage  # `add_trial` does this and does not say which trial it made
    return storage.get_trial(storage.create_new_trial(shown._study_id, template_trial=trial)).number


def _tell(shown: optuna.Study, number: int, past: Past) -> None:
    if past.state not in lifecycle.TOLD:
        return
    trial = Trial(shown, _frozen(shown, number)._trial_id)
    if past.state not in ("diverged", "failed", "cancelled"):
        for step, value in enumerate(past.reports, start=1):
            trial.report(value, step)
    if past.state == "infeasible":
        trial.set_constraint(MEMORY, 1.0)
    state = TrialState[lifecycle.TOLD[past.state]]
    shown.tell(number, past.value if state == TrialState.COMPLETE else None, state=state)


def _add(shown: optuna.Study, past: Past, distributions: Mapping[str, Any]) -> int:
    """`_start` and `_tell` in one step, for a study in memory."""
    if past.state not in ("complete", "stopped"):
        number = _start(shown, past.params, distributions, {})
        _tell(shown, number, past)
        return number
    complete = past.state == "complete"
    trial = create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=past.value if complete else next((v for v in past.reports[-1:] if not math.isnan(v)), None),
        params=dict(past.params),
        distributions=dict(distributions),
        intermediate_values=dict(enumerate(past.reports, start=1)),
    )
    storage = shown._storage
    return storage.get_trial(storage.create_new_trial(shown._study_id, template_trial=trial)).number
