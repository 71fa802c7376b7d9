"""A store that never answers costs its caller a minute, not a night."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from orchestrator.bounded import Bounded
from orchestrator.stores import Folder


class Dead(Folder):
    """As a mount whose server is gone."""

    def write(self, name: str, content: bytes) -> None:
        threading.Event().wait()

    def read(self, name: str, size: int) -> bytes:
        threading.Event().wait()

    def size(self, name: str) -> int:
        raise TimeoutError("the driver's own")


def test_a_store_that_hangs_is_an_error_after_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match=r"the store did not answer for 0 s"):
        Bounded(Dead(tmp_path), seconds=0.2).write("a", b"")
    assert 0.2 <= time.monotonic() - began < 2


def test_larger_files_have_more_time(tmp_path: Path) -> None:
    files = Bounded(Dead(tmp_path), seconds=0.2)
    with pytest.raises(TimeoutError, match=r"for 1 s"):
        files.write("a", bytes(2**20))
    with pytest.raises(TimeoutError, match=r"for 1 s"):
        files.read("a", 2**20)


def test_what_the_folder_does_and_raises_comes_through(tmp_path: Path) -> None:
    files = Bounded(Folder(tmp_path / "new"))
    assert not files.there()
    files.make()
    files.write("a", b"abc")
    assert (files.there(), files.read("a", 3), files.size("a")) == (True, b"abc", 3)
    assert [entry.name for entry in files.entries()] == ["a"]
    files.remove("a")
    with pytest.raises(FileNotFoundError):
        files.read("a", 3)
    files.discard()
    assert not files.there()
    with pytest.raises(TimeoutError, match="the driver's own"):
        Bounded(Dead(tmp_path)).size("a")
