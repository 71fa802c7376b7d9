"""Where the artifacts of one study lie, as this machine sees it, and what a row may say about that."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.bounded import Bounded
from orchestrator.contract import Checkpoint
from orchestrator.database import home
from orchestrator.durable import TEMPORARY
from orchestrator.errors import CANNOT_WRITE, FoldtuneError
from orchestrator.records import StudyRecord
from orchestrator.spec import NAME
from orchestrator.stores import DATABASE, SMALL, Files, Folder, inside

SUFFIX = ".safetensors"
OURS = re.compile(rf"(resume|adapter)-e\d+-s\d+-[0-9a-f]{{16}}-[0-9a-f]{{16}}{re.escape(SUFFIX)}")
OURS_UNFINISHED = re.compile(rf"{OURS.pattern}\.\d+{re.escape(TEMPORARY)}")


class OutsideStore(FoldtuneError):
    """A row names a place that no artifact of its study can have. Nothing there is read or deleted."""

    def __init__(self, place: str) -> None:
        super().__init__(f"the database names a place outside the study's store: {place!r}", code=CANNOT_WRITE)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where the bytes of one checkpoint are: exactly one of content and place."""

    content: bytes | None = field(default=None, repr=False)
    place: str | None = None  # relative to the shared store; absolute if it is on `host` alone
    host: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One row of the table `artifact`, without its content."""

    id: int
    unit: int
    kind: str
    epoch: int
    step: int
    sha256: str
    bytes: int
    embedded: bool  # the bytes are in the row
    place: str | None
    host: str | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Piece:
        """Of a row with `content IS NOT NULL AS embedded`."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def age(self) -> tuple[int, int]:
        """How far the unit had come."""
        return self.epoch, self.step


@dataclass(frozen=True, kw_only=True)
class Store:
    """The store of one study."""

    folder: str  # the study's own, in the shared store and on every machine
    shared: Files | None  # None: the database, and larger pieces on the machine that made them
    local: Folder
    host: str

    @property
    def files(self) -> Iterator[Files]:
        """Every folder of the study that this machine may tidy."""
        yield self.local
        if self.shared is not None:
            yield self.shared

    def put(self, checkpoint: Checkpoint, content: bytes) -> Stored:
        """Write a piece under a name that no other upload has. Raises OSError; nothing of it stays then."""
        if self.shared is None and len(content) <= SMALL:
            return Stored(content=content)
        # Without chance in the name, a file that `collect` is about to delete could be written anew meanwhile.
        name = f"{_stem(checkpoint)}-{secrets.token_hex(8)}{SUFFIX}"
        if self.shared is not None:
            self.shared.write(name, content)
            return Stored(place=f"{self.folder}/{name}")
        self.local.write(name, content)
        return Stored(place=str(self.local.root / name), host=self.host)

    def find(self, piece: Piece) -> tuple[Files, str] | None:
        """The folder and name of a piece's file; None: it is on another machine, or under another FOLDTUNE_HOME.

        Raises:
            OutsideStore: the row's place is none that `put` gives.
        """
        place = piece.place or ""
        folder, _, name = place.rpartition("/")
        if piece.host is not None:
            if piece.host != self.host or folder != str(self.local.root):
                return None
            files: Files = self.local
        elif self.shared is None or folder != self.folder:
            raise OutsideStore(place)
        else:
            files = self.shared
        if not OURS.fullmatch(name) or not name.startswith(f"{_stem(piece)}-"):
            raise OutsideStore(place)
        return files, name


def store(record: StudyRecord) -> Store:
    """The store of a study."""
    return at(str(record.artifacts["store"]), own_folder(record))


def at(where: str, folder: str) -> Store:
    """The store behind what `study.artifacts` or `leftover` say.

    Raises:
        OutsideStore: the folder's name leads elsewhere.
    """
    if not re.fullmatch(rf"{NAME.pattern}-[0-9a-f]+", folder):
        raise OutsideStore(folder)
    return Store(
        folder=folder,
        shared=None if where == DATABASE else Bounded(inside(where, folder)),
        local=Folder(home.locate().client / "artifacts" / folder, private=True),
        host=socket.gethostname(),
    )


def own_folder(record: StudyRecord) -> str:
    """The name of the study's folder. Studies launched before there were artifacts have it from their id."""
    return str(record.artifacts.get("folder") or f"{record.name}-{record.id:08x}")


def new_folder(name: str) -> str:
    """A folder for a new study: two databases may hold a study of one name, and share a store."""
    return f"{name}-{secrets.token_hex(4)}"


def _stem(piece: Piece | Checkpoint) -> str:
    return f"{piece.kind}-e{piece.epoch}-s{piece.step}-{piece.sha256[:16]}"
