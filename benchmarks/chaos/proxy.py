"""A TCP proxy in front of Postgres that can be told to misbehave. One thread, all connections alike."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from enum import StrEnum

COMMIT = b"COMMIT\x00"  # as psycopg2 sends it: a simple query


class Mode(StrEnum):
    """What happens to bytes."""

    PASS = "pass"
    DELAY = "delay"  # half a second late
    STALL = "stall"  # kept until the mode ends
    DROP_TO_SERVER = "drop to server"  # lost on their way; the connections are cut when the mode ends
    DROP_TO_CLIENT = "drop to client"
    SWALLOW = "swallow"  # the server's reply to the next COMMIT is lost, and its connection cut; then PASS again


DELAY_SECONDS = 0.5


class _Link:
    """One client's connection and its counterpart at the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.torn = False  # bytes of it were lost
        self.committing = False  # the reply to a COMMIT is to be lost

    def cut(self) -> None:
        for writer in (self.client, self.server):
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to `port`. Its methods may be called from any thread."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.mode = Mode.PASS
        self.swallowed = 0
        self.port = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        started.wait()

    def set(self, mode: Mode) -> None:
        """Behave so from now on."""
        self._loop.call_soon_threadsafe(self._set, mode)

    def cut(self) -> None:
        """Break every connection, once."""
        self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        """End it, connections included; once is enough."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _run(self, started: threading.Event) -> None:
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        self._cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _set(self, mode: Mode) -> None:
        for link in [link for link in self._links if link.torn]:
            link.cut()
        self.mode = mode
        if mode == Mode.STALL:
            self._flowing.clear()
        else:
            self._flowing.set()

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        link = _Link(writer, forth)
        self._links.add(link)
        pumps = [asyncio.ensure_future(self._pump(link, *ends)) for ends in ((reader, True), (back, False))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)
            link.cut()

    async def _pump(self, link: _Link, source: asyncio.StreamReader, to_server: bool) -> None:
        sink = link.server if to_server else link.client
        while data := await source.read(65536):
            await self._flowing.wait()
            if self.mode == Mode.DELAY:
                await asyncio.sleep(DELAY_SECONDS)
            if self.mode == (Mode.DROP_TO_SERVER if to_server else Mode.DROP_TO_CLIENT):
                link.torn = True
                continue
            if self.mode == Mode.SWALLOW and to_server and COMMIT in data:
                link.committing, self.mode = True, Mode.PASS
            elif link.committing and not to_server:
                self.swallowed += 1
                return
            sink.write(data)
            await sink.drain()
