"""The nine invariants. Each function says what in the evidence breaks it; nothing to say means that it holds (pure)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from benchmarks.chaos.evidence import Attempt, Evidence, Trial
from orchestrator.lifecycle import TERMINAL, TOLD

GRANT_SLACK = timedelta(seconds=10)  # a grant bears the time of its transaction's start, which may have waited
ENDED = frozenset({"done", "diverged", "infeasible", "failed"})  # of units, for good: what is cancelled may be revived


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    invariant: str
    text: str


def check(evidence: Evidence) -> list[Violation]:
    """Every violation of every invariant."""
    return [Violation(name, text) for name, rule in INVARIANTS.items() for text in rule(evidence)]


def one_terminal_state(evidence: Evidence) -> list[str]:
    """I1: every planned point ends in exactly one terminal state, and Optuna shows just that."""
    own = by_configuration(evidence)
    found = [
        f"point {lost[:12]} is {state_of(own.get(lost, []))}, not in a terminal state" for lost in lost_points(evidence)
    ]
    found += [f"trial {trial.id} is of no planned point" for trial in invented(evidence)]
    found += [f"point {point[:12]} has {len(trials)} trials" for point, trials in own.items() if len(trials) > 1]
    return found + list(_projection(evidence))


def _projection(evidence: Evidence) -> Iterator[str]:
    """How Optuna's trials differ from ours."""
    keyed = defaultdict(list)
    for shown in evidence.shown:
        keyed[shown.key].append(shown)
        if shown.state in ("RUNNING", "WAITING"):
            yield f"Optuna's trial {shown.number} is still {shown.state}"
    for trial in evidence.trials:
        mirrors = keyed.pop(f"{trial.id}.{trial.generation}", [])
        if not trial.in_space:
            if mirrors:
                yield f"trial {trial.id} is outside the space, but Optuna has it"
            continue
        if len(mirrors) != 1:
            yield f"trial {trial.id} has {len(mirrors)} trials in Optuna"
            continue
        [mirror] = mirrors
        if mirror.number != trial.number:
            yield f"trial {trial.id} says it is Optuna's {trial.number}, which is {mirror.number}"
        if trial.state in TERMINAL and (mirror.state, mirror.value) != (TOLD[trial.state], trial.value):
            yield f"trial {trial.id} is {trial.state} ({trial.value}), Optuna says {mirror.state} ({mirror.value})"
        if trial.state in TERMINAL and not trial.told:
            yield f"trial {trial.id} is {trial.state}, and not marked as told"
        if dict(mirror.params) != dict(trial.params):
            yield f"trial {trial.id} has other parameters in Optuna: {mirror.params}"
    for key, rest in keyed.items():
        yield f"{len(rest)} trials in Optuna stand for no trial (key {key})"


def accepted_once(evidence: Evidence) -> list[str]:
    """I2: no (unit, epoch) is accepted twice, no point and no unit completed twice."""
    pairs = Counter((result.unit, result.epoch) for result in evidence.results)
    found = [f"unit {unit} epoch {epoch} has {n} results" for (unit, epoch), n in pairs.items() if n > 1]
    for point, trials in by_configuration(evidence).items():
        complete = [trial.id for trial in trials if trial.state == "complete"]
        if len(complete) > 1:
            found.append(f"point {point[:12]} was completed by trials {complete}")
    told: Counter[tuple[str, int | None, int | None]] = Counter()
    for event in evidence.witnessed or ():
        if event.what == "accepted":
            told["unit", event.unit, event.epoch] += 1
        elif event.what == "unit" and event.state in ENDED:
            told["unit", event.unit, None] += 1
        elif event.what == "trial" and event.state in TERMINAL - {"cancelled"}:
            told["trial", event.trial, None] += 1
    for (what, number, epoch), n in told.items():
        if n > 1:
            found.append(f"{what} {number} " + ("ended" if epoch is None else f"epoch {epoch} was accepted") + f" {n}x")
    return found


def from_the_live_lease(evidence: Evidence) -> list[str]:
    """I3: every result came from the lease that was alive when it was accepted."""
    leases: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in sorted(evidence.attempts, key=lambda attempt: (attempt.unit, attempt.lease_epoch)):
        leases[attempt.unit].append(attempt)
    fenced = {(note.unit, note.lease_epoch): note.time for note in reversed(evidence.history) if note.event == "fenced"}
    found = []
    for result in evidence.results:
        name = f"unit {result.unit} epoch {result.epoch} from lease {result.lease_epoch}"
        mine = [attempt for attempt in leases[result.unit] if attempt.lease_epoch == result.lease_epoch]
        later = [attempt for attempt in leases[result.unit] if attempt.lease_epoch > result.lease_epoch]
        if not mine or mine[0].granted_at > result.reported_at:
            found.append(f"{name}: no such lease had been granted")
        if later and later[0].granted_at + GRANT_SLACK < result.reported_at:
            found.append(f"{name}: accepted after lease {later[0].lease_epoch} was granted")
        if result.reported_at.timestamp() > fenced.get((result.unit, result.lease_epoch), float("inf")):
            found.append(f"{name}: accepted after its worker had been fenced")
    ordered = sorted(evidence.results, key=lambda result: (result.unit, result.epoch))
    for first, second in pairwise(ordered):
        if first.unit == second.unit and first.lease_epoch > second.lease_epoch:
            found.append(f"unit {first.unit}: epoch {second.epoch} is of an older lease than epoch {first.epoch}")
    for event in evidence.witnessed or ():
        if event.what == "accepted" and (event.lease_epoch, "leased") != (event.live_epoch, event.state):
            found.append(
                f"unit {event.unit} epoch {event.epoch} from lease {event.lease_epoch}: accepted while the unit was "
                f"{event.state} with lease {event.live_epoch}"
            )
    return found


def nothing_missing(evidence: Evidence) -> list[str]:
    """I4: what a worker was told is written is there."""
    results = {(result.unit, result.epoch): result for result in evidence.results}
    ended = {(a.unit, a.lease_epoch) for a in evidence.attempts if a.ended_at is not None}
    granted = {(a.unit, a.lease_epoch) for a in evidence.attempts}
    found = []
    for note in evidence.history:
        name = f"worker process {note.pid} was told that unit {note.unit} lease {note.lease_epoch}"
        if note.event == "accepted" and (note.unit, note.epoch or 0) not in results:
            found.append(f"{name} epoch {note.epoch} was accepted; there is no such result")
        elif note.event == "accepted" and results[note.unit, note.epoch or 0].lease_epoch > note.lease_epoch:
            found.append(f"{name} epoch {note.epoch} was accepted; a later lease's result stands there")
        elif note.event in ("ended", "released") and (note.unit, note.lease_epoch) not in ended:
            found.append(f"{name} {note.event}; the attempt is open")
        elif note.event == "leased" and (note.unit, note.lease_epoch) not in granted:
            found.append(f"{name} was granted; there is no such attempt")
    for event in evidence.witnessed or ():
        if event.what == "accepted" and (event.unit, event.epoch) not in results:
            found.append(f"unit {event.unit} epoch {event.epoch} was written at {event.at}; there is no such result")
    return found


def nothing_stuck(evidence: Evidence) -> list[str]:
    """I5: no trial runs without a unit that is leased or waits, no lease outlives its end by more than the bound."""
    working = {unit.trial for unit in evidence.units if unit.state in ("leased", "waiting")}
    idle = [trial for trial in evidence.trials if trial.state == "running" and trial.id not in working]
    return [*evidence.stuck, *(f"trial {trial.id} runs, and none of its units" for trial in idle)]


def artifacts_intact(evidence: Evidence) -> list[str]:
    """I6: stored bytes are those their row names; no file without a row; no resume state of a closed trial."""
    closed = {trial.id for trial in evidence.trials if trial.state in TERMINAL}
    owner = {unit.id: unit.trial for unit in evidence.units}
    found = [f"file {name} belongs to no row" for name in evidence.strays]
    for artifact in evidence.artifacts:
        name = f"{artifact.kind} of unit {artifact.unit} epoch {artifact.epoch} step {artifact.step}"
        if artifact.doomed:
            continue
        if artifact.found != artifact.sha256:
            found.append(f"{name} is {'missing' if artifact.found is None else 'damaged'}")
        if artifact.kind == "resume" and owner.get(artifact.unit) in closed:
            found.append(f"{name} is kept, and its trial has ended")
    return found


def same_table(evidence: Evidence) -> list[str]:
    """I7: params -> loss is, bit for bit, that of the undisturbed study."""
    found = []
    for point, trials in by_configuration(evidence).items():
        for trial in trials:
            wanted = evidence.expected.get(point)
            if trial.state in TERMINAL and wanted is not None and (trial.state, trial.value) != ("complete", wanted):
                found.append(f"trial {trial.id} is {trial.state} with {trial.value!r}, undisturbed {wanted!r}")
    return found


def no_secret(evidence: Evidence) -> list[str]:
    """I8: the database's password stands in no log, command line, table or file."""
    return list(evidence.secrets)


def no_orphan(evidence: Evidence) -> list[str]:
    """I9: no process outlives the one that it works for."""
    return list(evidence.orphans)


def orderly_exits(evidence: Evidence) -> list[str]:
    """Not one of the nine: no worker ends by a bug of its own."""
    return list(evidence.exits)


INVARIANTS: Mapping[str, Callable[[Evidence], list[str]]] = {
    "I1": one_terminal_state,
    "I2": accepted_once,
    "I3": from_the_live_lease,
    "I4": nothing_missing,
    "I5": nothing_stuck,
    "I6": artifacts_intact,
    "I7": same_table,
    "I8": no_secret,
    "I9": no_orphan,
    "exit": orderly_exits,
}


def by_configuration(evidence: Evidence) -> dict[str, list[Trial]]:
    """The trials of every configuration, repetitions that are told without training left out."""
    found: dict[str, list[Trial]] = defaultdict(list)
    for trial in evidence.trials:
        if trial.duplicate_of is None:
            found[trial.configuration].append(trial)
    return found


def lost_points(evidence: Evidence) -> list[str]:
    """Planned configurations without a trial in a terminal state."""
    closed = {trial.configuration for trial in evidence.trials if trial.state in TERMINAL}
    return [point for point in evidence.expected if point not in closed]


def invented(evidence: Evidence) -> list[Trial]:
    """Trials of configurations that nobody planned."""
    return [trial for trial in evidence.trials if trial.configuration not in evidence.expected]


def state_of(trials: list[Trial]) -> str:
    """For a message."""
    return " and ".join(trial.state for trial in trials) or "missing"
