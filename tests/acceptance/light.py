"""Studies of the light engine and workers on them, for tests of faults.

The engine trains a small numpy model in real time, with real checkpoints: see `benchmarks.chaos.light`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from benchmarks.chaos import study as chaos_study
from orchestrator.launch import launch
from tests.acceptance.commands import ROOT, children
from tests.database import studies
from tests.database.studies import rows

STUDY = """
study: {name}
model: {{path: ./model}}
task: classification
data: {{path: rows.jsonl}}
cross_validation: {{folds: 2}}
baselines: []
training: {{epochs: {epochs}}}
search:
  sampler: grid
  space:
    learning_rate: [1e-3, 1e-2]
    batch_size: [4, 8]
{more}
racing: {{rule: none}}
"""
LIGHT = {"FOLDTUNE_ENGINE": "benchmarks.chaos.light", "FOLDTUNE_LIGHT_EPOCH_SECONDS": "0.1", "FOLDTUNE_DEBUG": "1"}
ROOT_ONLY = "needs root: it mounts a disk of its own, or makes a namespace"
UNITS = 10  # of a study: four grid points and the default configuration, two folds each


def write(folder: Path, *, name: str = "s", epochs: int = 4, texts: int = 12, more: str = "") -> Path:
    """A study file with its data and a model folder that has the right files and no content."""
    path = studies.write(folder, name=name, texts=texts)
    path.write_text(STUDY.format(name=name, epochs=epochs, more=more), encoding="utf-8")
    return path


def launched(
    engine: Engine, folder: Path, *, name: str = "s", epochs: int = 4, texts: int = 12, more: str = ""
) -> Mapping[str, float]:
    """Launch it; what it must come to."""
    path = write(folder, name=name, epochs=epochs, texts=texts, more=more)
    launch(engine, studies.prepared(path))
    return undisturbed(path)


def undisturbed(path: Path) -> Mapping[str, float]:
    """configuration -> value, as they are without any fault: the same engine and seeds, nothing of the program."""
    return chaos_study.expected(chaos_study.planned(path))


@dataclass(frozen=True)
class Running:
    """A worker process."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def talk(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def trainers(self) -> list[int]:
        return children(self.pid)

    def end(self, *, seconds: float = 120) -> int:
        """Its exit code, when it ends by itself; it may have shown no traceback."""
        code = self.process.wait(seconds)
        assert "Traceback" not in self.talk, self.talk
        return code


@contextlib.contextmanager
def worker(
    storage: str, *arguments: str, prefix: Sequence[str] = (), log: Path | None = None, **environment: str
) -> Iterator[Running]:
    """A worker process; killed at the end, whatever happened. prefix: a command that becomes it."""
    log = log or Path(tempfile.mkdtemp()) / "worker.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "trial_worker", "--device", "cpu", *(arguments or ("s",))],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **LIGHT, "OPTUNA_STORAGE": storage, **environment},
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        process.kill()
        process.wait()


def table(engine: Engine, name: str = "s") -> Mapping[str, float]:
    """configuration -> value, of every trial that has one."""
    query = "SELECT t.configuration, t.value FROM trial t JOIN study s ON s.id = t.study "
    return dict(rows(engine, query + f"WHERE s.name = '{name}' AND t.value IS NOT NULL"))


def count(engine: Engine, what: str) -> int:
    return int(rows(engine, f"SELECT count(*) FROM {what}")[0][0])


def charged(engine: Engine) -> int:
    """Failures that were counted against units."""
    return int(rows(engine, "SELECT sum(charges) FROM unit")[0][0])


def through(storage: str, port: int, host: str = "127.0.0.1") -> str:
    """The same database by another way."""
    return make_url(storage).set(host=host, port=port).render_as_string(hide_password=False)


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own at this folder. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "foldtune-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up a disk to its last byte; the file to delete for room."""
    ballast = folder / "ballast"
    for file in (ballast, *folder.glob("*.log")):  # a file's last block has room even then
        with file.open("ab", buffering=0) as handle:
            for size in (2**16, 2**12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        handle.write(b"." * size)
    return ballast
