"""The run's own Postgres, and what can be done to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy.engine import URL, make_url

from benchmarks.chaos import processes
from orchestrator.database import cluster, server
from orchestrator.database.home import Home, locate


class Postgres:
    """A server in a folder of its own, whose password is a canary that may appear nowhere else."""

    def __init__(self, folder: Path) -> None:
        """Start it. The folder's parents must let every user pass where root calls."""
        if os.geteuid() == 0:
            os.environ.setdefault("FOLDTUNE_SYSTEM_HOME", str(folder / "system"))
        self.home: Home = locate(folder / "server")
        self.canary = f"canary-{secrets.token_hex(12)}"
        self.home.create()
        self.home.save_password(self.canary)
        self.url: URL = make_url(server.ensure_running(self.home.client))
        self._connection: extensions.connection | None = None

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]] | None:
        """Rows; None while the server is away, or took back the connection."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg2.connect(
                    self.dsn(), connect_timeout=3, application_name="chaos", options="-c search_path=foldtune,public"
                )
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(query, values or None)
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.forget()
            return None

    def need(self, query: str, *values: object, seconds: float = 30) -> list[tuple[Any, ...]]:
        """Rows, waited for.

        Raises:
            TimeoutError: the server stayed away.
        """
        deadline = time.monotonic() + seconds
        while (rows := self.ask(query, *values)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("Postgres does not answer")
            time.sleep(0.2)
        return rows

    def forget(self) -> None:
        """Close our own connection."""
        if self._connection is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def dsn(self) -> str:
        """For libpq."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    # --- faults ---

    def crash(self) -> None:
        """Stop it as a power cut does, as far as processes go: nothing is told to anybody."""
        self.forget()
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again, on its old port.

        Raises:
            RuntimeError: another program took the port.
        """
        found = make_url(server.ensure_running(self.home.client))
        if found.port != self.url.port:
            raise RuntimeError(f"port {self.url.port} was taken while Postgres was down")

    def terminate_backends(self) -> int:
        """Break every connection of a worker; how many."""
        rows = self.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name <> 'chaos'"
        )
        return int(rows[0][0]) if rows else 0

    def backends(self) -> list[int]:
        """Process ids of the workers' backends."""
        rows = self.ask(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND application_name <> 'chaos' AND pid <> pg_backend_pid() ORDER BY pid"
        )
        return [int(pid) for (pid,) in rows or []]

    def close(self) -> None:
        """Stop it for good, frozen backends included."""
        self.forget()
        for process in processes.table().values():
            if process.state == "T" and process.command.startswith("postgres:") and self._is_ours(process.pid):
                processes.send(process.pid, signal.SIGCONT)
        server.stop(self.home.client)

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(self.home.data)
        return False

    def _control(self, action: str, *options: str) -> None:
        arguments: Sequence[str] = ("-D", self.home.data.name, "-w", "-t", "60", *options, action)
        cluster.open_cluster(self.home).run("pg_ctl", *arguments)
