"""What the network between workers and database does: lost bytes, delay, silence. The light engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from benchmarks.chaos.postgres import Postgres
from benchmarks.chaos.proxy import Mode, Proxy
from orchestrator import trials
from orchestrator.contract import Outcome
from orchestrator.database.engine import connect
from orchestrator.errors import UNAVAILABLE, FoldtuneError
from tests.acceptance.commands import wait_until
from tests.acceptance.light import count, launched, table, through, worker
from tests.conftest import _forget
from tests.database import studies
from tests.database.studies import rows

# With most of its epochs to come, and the next unit taken ahead: the next commit is of a report, and of no lease.
FRESH = (
    "unit u WHERE state = 'leased' AND (SELECT count(*) FROM result WHERE unit = u.id) BETWEEN 1 AND 2 "
    "AND (SELECT count(*) FROM unit WHERE state = 'leased') = 2"
)


def test_a_result_whose_acknowledgement_was_lost_is_sent_again_and_accepted_once(
    engine: Engine, storage: str, tmp_path: Path, proxy: Proxy
) -> None:
    """Each call's COMMIT arrives and its answer does not; the worker then does the call again, as here."""
    launched(engine, tmp_path, epochs=1)
    disturbed = connect(make_url(through(storage, proxy.port)))
    record, lease = trials.take(engine, studies.worker(engine), ["s"]) or pytest.fail("nothing to train")
    done, end = [studies.epoch_done(lease, epoch=1, seconds=2.0)], studies.end(lease)
    for call in (
        lambda: trials.report(disturbed, lease, done),
        lambda: trials.finish(disturbed, record.name, lease, end),
    ):
        proxy.set(Mode.SWALLOW)
        with pytest.raises(FoldtuneError, match="closed the connection") as raised:
            call()
        assert raised.value.code == UNAVAILABLE  # which is what workers try again after
        call()
    assert proxy.swallowed == 2
    assert rows(engine, "SELECT unit, epoch, lease_epoch FROM result") == [(lease.unit, 1, 1)]
    assert rows(engine, f"SELECT state::text, seconds, attempts FROM unit WHERE id = {lease.unit}") == [("done", 2, 1)]
    assert count(engine, "attempt WHERE cause = 'done'") == 1
    _forget(through(storage, proxy.port))


def test_a_unit_given_back_twice_because_the_answer_was_lost_is_free_once(
    engine: Engine, storage: str, tmp_path: Path, proxy: Proxy
) -> None:
    launched(engine, tmp_path)
    disturbed = connect(make_url(through(storage, proxy.port)))
    first, second = studies.worker(engine), studies.worker(engine)
    record, lease = trials.take(engine, first, ["s"]) or pytest.fail("nothing to train")
    back = studies.end(lease, Outcome.DROPPED, "left")
    proxy.set(Mode.SWALLOW)
    with pytest.raises(FoldtuneError, match="closed the connection"):
        trials.finish(disturbed, record.name, lease, back)
    _, again = trials.take(engine, second, ["s"]) or pytest.fail("it is not free")
    trials.finish(disturbed, record.name, lease, back)  # and takes it from nobody
    assert (again.unit, again.epoch) == (lease.unit, 2)
    assert rows(engine, f"SELECT state::text, worker FROM unit WHERE id = {lease.unit}") == [("leased", second)]
    _forget(through(storage, proxy.port))


def test_a_worker_whose_replies_to_commit_are_lost_goes_on_to_the_same_numbers(
    engine: Engine, storage: str, tmp_path: Path, proxy: Proxy
) -> None:
    expected = launched(engine, tmp_path, epochs=8)
    with worker(through(storage, proxy.port), FOLDTUNE_LIGHT_EPOCH_SECONDS="0.15") as running:
        for lost in range(4):
            seen = count(engine, "result")
            wait_until(lambda seen=seen: count(engine, "result") > seen and count(engine, FRESH) == 1)
            proxy.set(Mode.SWALLOW)
            wait_until(lambda lost=lost: proxy.swallowed > lost)
        assert running.end() == 0
    assert running.talk.count("the database answers again") >= 1
    assert rows(engine, "SELECT count(*), count(DISTINCT (unit, epoch)) FROM result") == [(80, 80)]
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected


@pytest.mark.parametrize("direction", [Mode.DROP_TO_CLIENT, pytest.param(Mode.DROP_TO_SERVER, marks=pytest.mark.slow)])
def test_bytes_lost_in_one_direction_are_noticed_and_cost_nothing(
    engine: Engine, storage: str, tmp_path: Path, proxy: Proxy, direction: Mode
) -> None:
    expected = launched(engine, tmp_path)
    with worker(through(storage, proxy.port), FOLDTUNE_LIGHT_EPOCH_SECONDS="0.3") as running:
        wait_until(lambda: count(engine, "result") > 2)
        proxy.set(direction)
        cut = time.monotonic()
        wait_until(lambda: "did not answer for 10 s; training goes on" in running.talk, seconds=30)
        assert time.monotonic() - cut < 20 + 5  # ten for the connection that was, ten for a new one
        proxy.set(Mode.PASS)
        assert running.end() == 0
    assert "the database answers again after" in running.talk
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected


@pytest.mark.slow  # it waits for a lease's life
def test_half_a_second_of_delay_fences_nobody(engine: Engine, storage: str, tmp_path: Path, proxy: Proxy) -> None:
    expected = launched(engine, tmp_path)
    expiry = "SELECT max(expires_at) FROM unit WHERE state = 'leased'"
    with worker(through(storage, proxy.port), FOLDTUNE_LIGHT_EPOCH_SECONDS="1.5") as running:
        wait_until(lambda: count(engine, "result") > 0)
        proxy.set(Mode.DELAY)
        for _ in range(3):
            [before] = rows(engine, expiry)
            wait_until(lambda before=before: rows(engine, expiry)[0] != before, seconds=25)
        proxy.set(Mode.PASS)
        running.process.send_signal(signal.SIGTERM)
        running.end()
    assert "was lost" not in running.talk
    with worker(storage, FOLDTUNE_LIGHT_EPOCH_SECONDS="0") as second:
        assert second.end() == 0
    assert count(engine, "attempt WHERE cause NOT IN ('done', 'released')") == 0
    assert table(engine) == expected


@dataclass(frozen=True)
class Wire:
    """A network namespace and its only link."""

    namespace: str
    link: str
    host: str  # the server's address on it

    def set(self, state: str) -> None:
        subprocess.run(["ip", "link", "set", self.link, state], check=True)


@pytest.fixture
def wire(private: Postgres) -> Iterator[Wire]:
    """A namespace from which the private server can be reached over one link."""
    number = os.getpid() % 250
    made = Wire(f"ft{os.getpid()}", f"fth{number}", f"10.213.{number}.1")
    inside = ["ip", "netns", "exec", made.namespace, "ip"]
    commands = (
        ["ip", "netns", "add", made.namespace],
        ["ip", "link", "add", made.link, "type", "veth", "peer", "name", "eth", "netns", made.namespace],
        ["ip", "addr", "add", f"{made.host}/30", "dev", made.link],
        ["ip", "link", "set", made.link, "up"],
        [*inside, "addr", "add", f"10.213.{number}.2/30", "dev", "eth"],
        [*inside, "link", "set", "eth", "up"],
        [*inside, "link", "set", "lo", "up"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespace: {' '.join(command)}: {done.stderr.strip()}")
        with (private.home.data / "pg_hba.conf").open("a", encoding="utf-8") as file:
            file.write(f"host all all {made.host}/30 scram-sha-256\n")
        private.need(f"ALTER SYSTEM SET listen_addresses = '127.0.0.1,{made.host}'")
        private.crash()
        private.start()
        yield made
        private.need("ALTER SYSTEM SET listen_addresses = '127.0.0.1'")
    finally:
        subprocess.run(["ip", "netns", "del", made.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", made.link], capture_output=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and `ip`, for a namespace")
def test_a_network_that_drops_everything_is_noticed_and_costs_nothing(
    private: Postgres, wire: Wire, away: str, tmp_path: Path
) -> None:
    engine = connect(make_url(away))
    expected = launched(engine, tmp_path)
    far = through(away, private.url.port or 0, wire.host)
    inside = ("ip", "netns", "exec", wire.namespace)
    with worker(far, prefix=inside, FOLDTUNE_LIGHT_EPOCH_SECONDS="0.4") as running:
        wait_until(lambda: count(engine, "result") > 2)
        wire.set("down")
        cut = time.monotonic()
        wait_until(lambda: "training goes on, results wait on this machine" in running.talk, seconds=30)
        assert time.monotonic() - cut < 20 + 5
        wire.set("up")
        assert running.end() == 0
    assert "the database answers again after" in running.talk
    assert rows(engine, "SELECT max(attempts) FROM unit") == [(1,)]
    assert table(engine) == expected
