"""What a supervisor makes of a trainer's last words. No process, no database."""

from __future__ import annotations

import io
import queue
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from orchestrator import models
from orchestrator.contract import DropUnit, Outcome, Settings, UnitEnded, encode
from orchestrator.database.engine import readable_errors
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from orchestrator.leases import Fenced
from orchestrator.records import Lease
from trial_worker import supervisor
from trial_worker.child import Trainer
from trial_worker.supervisor import Supervisor

LEASE = Lease(
    study=1,
    trial=1,
    unit=7,
    epoch=1,
    token="",
    repeat=0,
    fold=0,
    attempt=1,
    settings=Settings(),
    configuration="",
    seconds_left=None,
)
ENDED = UnitEnded(unit=7, lease_epoch=1, outcome=Outcome.DONE)


def trainer(*messages: Any) -> Trainer:
    """A trainer without a process, which has said these messages."""
    bare = Trainer.__new__(Trainer)
    bare.log = deque()
    bare._events = queue.Queue()
    for message in messages:
        bare._events.put(message)
    return bare


def test_half_a_line_of_a_killed_trainer_ends_its_messages() -> None:
    """Else the supervisor would wait for ever, renew its lease and keep the unit from everybody."""
    killed = trainer()
    killed._read(io.StringIO(encode(ENDED) + "\n" + encode(ENDED)[:30]))
    assert killed.receive(0) == ENDED
    assert killed.receive(0) is None
    assert "not a message" in killed.log[0]


@pytest.mark.parametrize("last", [None, ENDED])
def test_a_trainer_that_dies_while_its_unit_is_dropped_is_not_used_again(
    last: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = Supervisor.__new__(Supervisor)
    dropping.trainer = trainer(last)
    sent: list[Any] = []
    monkeypatch.setattr(Trainer, "send", lambda _, message: sent.append(message))
    monkeypatch.setattr(Trainer, "kill", lambda _: None)
    dropping.drop(LEASE)
    assert (dropping.trainer is None) == (last is None)
    assert isinstance(sent[0], DropUnit)


def test_a_lost_database_is_known_behind_whatever_optuna_makes_of_it() -> None:
    def optuna() -> None:
        try:
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))
        except OperationalError:
            raise UnboundLocalError("updated_state")  # noqa: B904

    with pytest.raises(FoldtuneError, match="server closed the connection") as error, readable_errors():
        optuna()
    assert error.value.code == UNAVAILABLE
    with pytest.raises(UnboundLocalError), readable_errors():
        raise UnboundLocalError("a bug of our own")


def test_a_lease_that_is_lost_while_weights_are_verified_is_no_fault_of_the_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> None:
        raise Fenced(LEASE, 2)

    opening = Supervisor.__new__(Supervisor)
    opening.trainer, opening.opened = trainer(), set()
    monkeypatch.setattr(Supervisor, "beat", lost)
    monkeypatch.setattr(models, "verify", lambda _: time.sleep(0.2))
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)
    record: Any = SimpleNamespace(id=1, model=None)
    with pytest.raises(Fenced, match="epoch 1 < 2"):
        opening.ready(record, LEASE)
