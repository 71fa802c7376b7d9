"""The proxy forwards, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.chaos.proxy import COMMIT, Mode, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that says back what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        found = Proxy(server.getsockname()[1])
        yield found
        found.close()
        server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(4096):
            connection.sendall(data)


@contextlib.contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.4) as client:
        yield client


def say(client: socket.socket, words: bytes = b"hello") -> bytes:
    """What comes back within the timeout; b"" for a cut connection, b"?" for silence."""
    try:
        client.sendall(words)
        return client.recv(4096)
    except TimeoutError:
        return b"?"
    except OSError:
        return b""


def put(proxy: Proxy, mode: Mode) -> None:
    proxy.set(mode)
    time.sleep(0.05)


def test_it_passes_bytes_on(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert say(client) == b"hello"


def test_a_stall_keeps_bytes_until_it_ends(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert say(client) == b"hello"
        put(proxy, Mode.STALL)
        assert say(client, b"late") == b"?"
        put(proxy, Mode.PASS)
        assert client.recv(4096) == b"late"


@pytest.mark.parametrize("mode", [Mode.DROP_TO_SERVER, Mode.DROP_TO_CLIENT])
def test_what_was_lost_cuts_the_connection_when_the_network_is_back(proxy: Proxy, mode: Mode) -> None:
    with connected(proxy) as client:
        assert say(client) == b"hello"
        put(proxy, mode)
        assert say(client, b"lost") == b"?"
        put(proxy, Mode.PASS)
        assert say(client) == b""
    with connected(proxy) as client:
        assert say(client) == b"hello"


def test_one_reply_to_commit_is_lost(proxy: Proxy) -> None:
    put(proxy, Mode.SWALLOW)
    with connected(proxy) as client:
        assert say(client) == b"hello"
        assert say(client, b"Q" + COMMIT) == b""
    assert (proxy.swallowed, proxy.mode) == (1, Mode.PASS)
    with connected(proxy) as client:
        assert say(client, b"Q" + COMMIT) == b"Q" + COMMIT


def test_a_cut_ends_every_connection_once(proxy: Proxy) -> None:
    with connected(proxy) as first, connected(proxy) as second:
        assert say(first) == say(second) == b"hello"
        proxy.cut()
        time.sleep(0.05)
        assert say(first) == say(second) == b""
    with connected(proxy) as client:
        assert say(client) == b"hello"
