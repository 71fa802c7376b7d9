"""No call waits for a silent server. psycopg2 asks `wait` whenever it would block, in every thread of the process."""

from __future__ import annotations

import select
from typing import Any

import psycopg2
from psycopg2 import extensions

SECONDS = 10.0  # of silence; while bytes move, a call may last longer

_EVENTS = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}


def wait(connection: Any) -> None:
    """Wait until the running call is done.

    A frozen server keeps its TCP connection alive, so that neither keepalives nor any of libpq's timeouts end the
    call (a backend under SIGSTOP: still blocked after 20 s). This does, and leaves the connection closed.

    Raises:
        psycopg2.OperationalError: the server was silent for too long.
    """
    while (state := connection.poll()) != extensions.POLL_OK:
        poller = select.poll()
        poller.register(connection.fileno(), _EVENTS[state])
        if not poller.poll(SECONDS * 1000):
            raise psycopg2.OperationalError(f"the server did not answer for {SECONDS:.0f} s")


def install() -> None:
    """Put every psycopg2 connection of this process under the deadline."""
    extensions.set_wait_callback(wait)
