"""A process may die anywhere: before and after every statement and commit, every write, fsync and rename."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres as servers
from tests.acceptance.commands import ROOT
from tests.conftest import _prepare

SHARES = 4  # of the places; `make crash-points` tries all of them, and longer lives
TRIED = (0, 2)  # tests that run beside each other


def visit(server: str, folder: Path, share: int, of: int) -> dict[str, object]:
    """Die at these places and see what is wrong afterwards."""
    template = servers.ensure_template(server, "ready", _prepare)
    done = subprocess.run(
        [sys.executable, "-m", "tests.database.crash_scenario", server, template, str(folder), str(share), str(of)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FOLDTUNE_HOME": str(folder / "home")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("share", TRIED)
def test_a_death_at_any_statement_commit_fsync_or_rename_heals(postgres: str, tmp_path: Path, share: int) -> None:
    found = visit(postgres, tmp_path, share, SHARES)
    assert found["problems"] == {}
    assert found["survived"] == []
    assert int(str(found["places"])) > 1000
