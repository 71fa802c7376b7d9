"""The only caller of Optuna: asks its samplers, and shows it what foldtune's tables say.

Samplers run on an in-memory study rebuilt from foldtune's own rows: a suggestion is a function of history and seed.
The Optuna study in Postgres is a projection for the dashboard and for people's own scripts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL

from orchestrator import conditions, lifecycle, optuna_tables, space
from orchestrator.contract import derive_seed
from orchestrator.database.engine import CONNECT_ARGS, TIMEOUTS, connect, name_crash_points
from orchestrator.errors import UNAVAILABLE, USAGE, FoldtuneError
from orchestrator.optuna_tables import KEY, End

optuna.logging.set_verbosity(optuna.logging.WARNING)

MEMORY = "infeasible: memory"  # constraint of a configuration that fits no device
_LONG_AGO = datetime(2000, 1, 1)
_LOCK = 0x6F707475
_LOOK_SECONDS = 0.2  # at tables that another process makes
_PROJECTION = 0x70726F6A  # "proj"; the second half of that key is the study
GP_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a sampler may know of one trial."""

    params: Mapping[str, Any]
    state: str  # of foldtune's trial
    value: float | None = None
    reports: Sequence[float] = ()  # pooled running objective after 1, 2, ... finished folds


def end_of(past: Past) -> End | None:
    """How samplers, Optuna's tables and the dashboard see a trial's end; None: it is open."""
    if past.state not in lifecycle.TOLD:
        return None
    state = lifecycle.TOLD[past.state]
    silent = past.state in ("diverged", "failed", "cancelled")
    reports = {} if silent else {step: float(value) for step, value in enumerate(past.reports, start=1)}
    last = reports.get(len(reports))
    value = past.value if state == "COMPLETE" else last if state == "PRUNED" else None
    return End(
        state=state,
        value=None if value is None or math.isnan(value) else float(value),
        reports=reports,
        marks={f"constraints:{MEMORY}": 1.0} if past.state == "infeasible" else {},
    )


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
    chosen: dict[str, Any] = {}
    for at, names in enumerate(conditions.groups(entries)):
        group = {name: entries[name] for name in names}
        if conditions.holds(entries[names[0]].when, chosen):
            chosen |= _of_group(question, group, at)
    startup = lifecycle.startup_trials(question.trials)
    learnt = ("COMPLETE",) if question.sampler == "gp" else ("COMPLETE", "PRUNED")
    known = sum(lifecycle.TOLD.get(past.state) in learnt for past in question.past)
    by_model = question.sampler in ("tpe", "gp") and known >= startup
    return {name: chosen[name] for name in entries if name in chosen}, "model" if by_model else "random"


def _of_group(question: Question, group: space.Space, at: int) -> dict[str, Any]:
    """Values for names that are active together, learnt from the trials that have them."""
    startup = lifecycle.startup_trials(question.trials)
    past = (
        () if question.sampler == "random" else [each for each in question.past if group.keys() <= each.params.keys()]
    )
    if at:  # groups with one seed would draw the same numbers
        question = replace(question, seed=derive_seed(question.seed, "group", at))
    distributions = space.distributions(group)
    memory = _Memory([_trial(number, each, distributions) for number, each in enumerate(past, start=1)])
    asked = optuna.create_study(
        storage=memory, sampler=_sampler(question, startup, distributions), direction=_direction(question.maximize)
    )
    return dict(asked.ask(distributions).params)


class _Memory(InMemoryStorage):
    """A storage whose past is given as it is. Told one by one, as Optuna would have it, ten thousand take seconds."""

    def __init__(self, past: list[FrozenTrial]) -> None:
        super().__init__()
        self._past = past

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The past, then what was asked here."""
        every = [*self._past, *super().get_all_trials(study_id, deepcopy, None)]
        return [trial for trial in every if states is None or trial.state in states]


def _trial(number: int, past: Past, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """What a sampler reads of one trial. Samplers weigh trials by their order; number 0 is the one that is asked."""
    end = end_of(past)
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.RUNNING if end is None else TrialState[end.state],
        value=None if end is None else end.value,
        datetime_start=_LONG_AGO,
        datetime_complete=None if end is None else _LONG_AGO,
        params={name: past.params[name] for name in distributions},
        distributions=dict(distributions),
        user_attrs={},
        system_attrs={} if end is None else dict(end.marks),
        intermediate_values={} if end is None else dict(end.reports),
    )


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
    while not _made(url, place, arguments):
        time.sleep(_LOOK_SECONDS)
    # looking at versions it wants two connections at once
    RDBStorage(place, skip_table_creation=True, engine_kwargs={"connect_args": arguments}).engine.dispose()
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


def _made(url: URL, place: str, arguments: Mapping[str, Any]) -> bool:
    """Whether Optuna's tables are there; makes them, unless another process is at it: of two at once one would fail."""
    with connect(url).begin() as connection:
        if optuna_tables.complete(connection):
            return True
        free = connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar()
        if free and not optuna_tables.complete(connection):
            RDBStorage(place, engine_kwargs={"connect_args": dict(arguments)}).engine.dispose()
        return bool(free)


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
    values = space.internal(entries, params)
    with tables(shown) as connection:
        return optuna_tables.start_trial(connection, shown._study_id, values, {KEY: key, **attributes})


def show_end(
    shown: optuna.Study,
    number: int,
    past: Past,
    attributes: Mapping[str, Any],
    note: str,
    *,
    chosen: Mapping[str, tuple[float, str]],
) -> None:
    """Tell Optuna how a trial ended, all at once, unless it knows already. chosen: as of `space.internal`."""
    end = end_of(past)
    if end is not None:
        with tables(shown) as connection:
            optuna_tables.end_trial(connection, shown._study_id, number, end, chosen, attributes, note)


def save_note(shown: optuna.Study, note: str) -> None:
    """The words the dashboard shows beside the study."""
    with tables(shown) as connection:
        optuna_tables.write_note(connection, shown._study_id, None, note)


def plotted(shown: optuna.Study, name: str) -> str | None:
    """See `optuna_tables.plotted`."""
    with tables(shown) as connection:
        return optuna_tables.plotted(connection, shown._study_id, name)


def save_plot(shown: optuna.Study, name: str, figure: Mapping[str, Any], shows: str) -> None:
    """A figure that the dashboard shows with the study, see `optuna_tables.write_plot`."""
    with tables(shown) as connection:
        optuna_tables.write_plot(connection, shown._study_id, name, figure, shows)


def is_whole(shown: optuna.Study, ends: Mapping[int, str]) -> bool:
    """See `optuna_tables.is_whole`."""
    with tables(shown) as connection:
        return optuna_tables.is_whole(connection, shown._study_id, ends)


def numbers(shown: optuna.Study) -> dict[str, int]:
    """Of all Optuna trials that foldtune made here: key -> number."""
    with tables(shown) as connection:
        return optuna_tables.numbers(connection, shown._study_id)


def running(shown: optuna.Study) -> dict[int, str | None]:
    """Of the Optuna trials that run: number -> key. None: somebody else's."""
    with tables(shown) as connection:
        return optuna_tables.running(connection, shown._study_id)


@contextmanager
def tables(shown: optuna.Study) -> Iterator[Connection]:
    """A transaction on Optuna's tables, on the connection that Optuna uses."""
    with shown._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]
        yield connection


def drop_orphan(shown: optuna.Study, number: int) -> None:
    """End an Optuna trial that no row of foldtune stands behind."""
    shown.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def delete(url: URL, name: str) -> None:
    """Remove the Optuna study, if it is there."""
    if exists(url, name):
        optuna.delete_study(study_name=name, storage=_storage(url))


def _direction(maximize: bool) -> StudyDirection:
    return StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
