"""Who draws a study's next suggestion: one worker at a time, for what others draw meanwhile is thrown away.

It saves work and decides nothing: a suggestion counts only while its number is still the next.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator.database.engine import readable_errors

PATIENCE_SECONDS = 4.0  # most that a worker waits for its turn, so that it can do something else in between
_TURN = 0x7475726E  # "turn"; the second half of that key is the study
_LOCK_NOT_AVAILABLE = "55P03"


@contextmanager
def turn(engine: Engine, study: int) -> Iterator[bool]:
    """Whether it is the caller's turn to draw for this study; False: others were at it all the time.

    The lock is a transaction's, which the server ends after 15 s without a word: a process that is frozen inside holds
    up the others so long and no longer. Who draws for longer, as a Gaussian process may, loses its turn and goes on.

    Raises:
        FoldtuneError: the database is away.
    """
    with readable_errors(engine.url), engine.connect() as connection:
        mine = True
        wait = f"{1000 * random.uniform(PATIENCE_SECONDS / 2, PATIENCE_SECONDS):.0f}ms"  # not all return at once
        try:
            connection.execute(
                text("SELECT set_config('lock_timeout', :wait, true)"),
                {"wait": wait},
            )
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:kind, CAST(:study AS integer))"), {"kind": _TURN, "study": study}
            )
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
                raise
            mine = False
        try:
            yield mine
        finally:
            try:
                connection.rollback()
            except DBAPIError:  # the server ended it
                connection.invalidate()
