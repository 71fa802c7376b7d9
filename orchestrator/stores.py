"""Folders of files with flat names, on a disk or behind a URL. Knows no study and no database."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from orchestrator import durable

DATABASE = "database"
SMALL = 16 * 2**20  # bytes of a piece that a database still takes well
PROBE = b"foldtune"
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a folder."""

    name: str
    bytes: int
    age: float  # seconds since it was written


class Files(Protocol):
    """A folder of files. Every failure is an OSError, whatever the driver raises."""

    @property
    def far(self) -> bool:
        """Whether each look is a request over a network, which may cost money."""

    def make(self) -> None:
        """Create the folder, where folders are a thing of their own."""

    def there(self) -> bool:
        """Whether the folder can be seen from here: a missing file means something only if it can."""

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole. Its name must be new: what stays of a broken write has no other owner."""

    def read(self, name: str, size: int) -> bytes:
        """The bytes of a file. size: how many it should have; asking is a request of its own over a network."""

    def size(self, name: str) -> int:
        """How many bytes a file has."""

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone is no failure."""

    def entries(self) -> list[Entry]:
        """Every file; none where the folder is not there."""

    def discard(self) -> None:
        """Remove the folder itself, if it is empty."""


@dataclass(frozen=True)
class Folder:
    """A folder on a disk. A shared one is made at launch and by nobody else.

    Were a worker to make it, a machine that has not mounted the shared disk would fill its own with checkpoints that
    no other machine can read. A private one is this machine's own: made when needed, for its user alone.
    """

    root: Path
    private: bool = False
    far: bool = field(default=False, init=False)

    def make(self) -> None:
        """Create the folder; those above a shared one must be there."""
        if self.private:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700 if self.private else 0o777, exist_ok=True)

    def there(self) -> bool:
        return self.root.is_dir()

    def write(self, name: str, content: bytes) -> None:
        if self.private:
            self.make()
        durable.write(self.root / name, content)

    def read(self, name: str, size: int) -> bytes:
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        found = []
        now = time.time()
        try:
            for item in os.scandir(self.root):
                with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                    if item.is_file(follow_symlinks=False):
                        stat = item.stat(follow_symlinks=False)
                        found.append(Entry(name=item.name, bytes=stat.st_size, age=now - stat.st_mtime))
        except FileNotFoundError:
            return []
        return found

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # gone, or somebody put a file of their own there
            self.root.rmdir()


@dataclass(frozen=True)
class Remote:
    """A folder behind an fsspec URL.

    Files are written under their own names at once, without a temporary one: a name is new for each upload, and
    nobody reads it before a row of the database says that it is whole.
    """

    url: str
    far: bool = field(default=True, init=False)

    def make(self) -> None:
        pass  # it comes with its first file

    def there(self) -> bool:
        return True

    def write(self, name: str, content: bytes) -> None:
        with _open(self.url) as (drive, root):
            try:
                drive.makedirs(root, exist_ok=True)
                drive.pipe_file(f"{root}/{name}", content)
                drive.invalidate_cache()
                if drive.size(f"{root}/{name}") != len(content):
                    raise OSError(f"{shown(self.url)} kept only part of {name}")
            except BaseException:
                with contextlib.suppress(Exception):
                    drive.rm_file(f"{root}/{name}")
                raise

    def read(self, name: str, size: int) -> bytes:
        with _open(self.url) as (drive, root):
            return bytes(drive.cat_file(f"{root}/{name}"))

    def size(self, name: str) -> int:
        with _open(self.url) as (drive, root):
            drive.invalidate_cache()
            return int(drive.size(f"{root}/{name}"))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _open(self.url) as (drive, root):
            drive.rm_file(f"{root}/{name}")

    def entries(self) -> list[Entry]:
        with _open(self.url) as (drive, root):
            drive.invalidate_cache()
            try:
                found = drive.find(root, maxdepth=1, detail=True)
            except FileNotFoundError:
                return []
            return [
                Entry(name=path.rpartition("/")[2], bytes=int(about.get("size") or 0), age=_age(drive, path))
                for path, about in found.items()
            ]

    def discard(self) -> None:
        with contextlib.suppress(OSError), _open(self.url) as (drive, root):  # most object stores have no folders
            drive.rmdir(root)


def inside(store: str, folder: str) -> Folder | Remote:
    """The files of one study in a shared store."""
    if "://" in store and not store.startswith("file:///"):
        base = store if store.endswith("://") else store.rstrip("/")
        return Remote(f"{base}/{folder}" if folder else base)
    return Folder(Path(store.removeprefix("file://")) / folder)  # file:// as well: only a folder is flushed to the disk


def resolved(store: str, folder: Path) -> str:
    """The store as every machine must write it: a path beside the study file made absolute."""
    if store == DATABASE or "://" in store:
        return store
    return str((folder / os.path.expanduser(store)).resolve())


def problem(store: str) -> str | None:
    """What is wrong with a resolved store, as far as can be said without a network."""
    if store == DATABASE:
        return None
    if _PASSWORD.search(store):
        return "credentials do not belong in a study file; the driver reads them from each worker's environment"
    if "://" in store and not store.startswith("file:///"):
        try:
            _open_class(store)
        except Exception as error:  # whatever a driver's import raises
            return f"{shown(store)} cannot be used: {error}"
        return None
    path = Path(store.removeprefix("file://"))
    if not path.is_dir():
        return f"{path} is a file, expected a folder" if path.exists() else f"no such folder {path}"
    return None if os.access(path, os.R_OK | os.W_OK | os.X_OK) else f"{path} is not writable"


def probe(store: str) -> str | None:
    """What is wrong with a resolved store when it is used: writes a file, reads it and removes it."""
    wrong = problem(store)
    if wrong or store == DATABASE:
        return wrong
    files = inside(store, "")
    name = f"probe-{secrets.token_hex(8)}{durable.TEMPORARY}"
    try:
        files.write(name, PROBE)
        intact = files.read(name, len(PROBE)) == PROBE
        files.remove(name)
    except OSError as error:
        return f"{shown(store)} cannot be used: {error.strerror or error}"
    return None if intact else f"{shown(store)} does not return what was written to it"


def shown(store: str) -> str:
    """The store in a message, without the user and password that a URL may hold."""
    return re.sub(r"://[^/@]*@", "://", store)


@contextlib.contextmanager
def _open(url: str) -> Iterator[tuple[Any, str]]:
    """(file system, path in it). Drivers raise what their libraries raise; here it becomes an OSError."""
    try:
        from fsspec.core import url_to_fs  # takes a fifth of a second, and most studies need none of it

        drive, root = url_to_fs(url)
        yield drive, str(root).rstrip("/")
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _open_class(url: str) -> None:
    import fsspec

    fsspec.get_filesystem_class(url.partition("://")[0].rpartition("::")[2])


def _age(drive: Any, path: str) -> float:
    """Seconds; 0, which is never old enough to go, where the store does not say."""
    try:
        modified = drive.modified(path)
        if isinstance(modified, datetime):
            return (datetime.now(UTC) - (modified if modified.tzinfo else modified.replace(tzinfo=UTC))).total_seconds()
        return time.time() - float(modified)
    except Exception:
        return 0.0
