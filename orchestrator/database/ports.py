"""A port on loopback that stays the same over restarts."""

from __future__ import annotations

import errno
import itertools
import random
import socket
from collections.abc import Iterator

# Below the ports that systems hand out to outgoing connections, which could take ours while the server is down.
_RANGE = range(15_000, 30_000)


def candidates(remembered: int | None) -> Iterator[int]:
    """The port of the last start first, so that URLs stay valid; then a few free ones."""
    if remembered is not None and is_free(remembered):
        yield remembered
    shuffled = random.SystemRandom().sample(_RANGE, len(_RANGE))
    yield from itertools.islice(filter(is_free, shuffled), 5)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does: closed connections linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            return False
    return True
