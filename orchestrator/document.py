"""A YAML 1.2 file as plain values, with the line and column of every key.

Safe by construction: only maps, lists and scalars are built; a tag that names code is an error. YAML 1.2 makes
`1e-4` a number and `no` text, where YAML 1.1 (PyYAML) makes them text and false.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.errors import BadInput, Problem

MAX_BYTES = 32_768  # the pure-Python parser takes 40 microseconds a byte
MAX_ALIASES = 100
MAX_VALUES = 20_000  # after aliases were followed; a file of that size without aliases has fewer
MAX_DEPTH = 20
MAX_BRACKETS = 100  # open at once; the scanner takes quadratic time over them

Path_ = tuple[str | int, ...]

_EXAMPLE = "copy studies/glosses.yaml and change it"
_SECRET = "a password stands in the study file"
_SECRET_HELP = "move it to a PGPASSFILE; it is not repeated here"

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = frozenset({"null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge", "value"})
_VERSION = re.compile(r"^%YAML(?!\s+1\.2\s*$).*", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PASSWORD = re.compile(r"[a-z][a-z0-9+]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """What a file says, and where it says it."""

    file: str
    text: str
    values: dict[str, Any]
    places: Mapping[Path_, tuple[int, int]] = field(default_factory=dict)  # path -> (line, column), 1-based

    def place(self, path: Path_) -> tuple[int, int]:
        """Line and column of a path, or of its nearest parent that stands in the file."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))

    def problem(self, path: Path_, code: str, message: str, help: str = "") -> Problem:
        """A problem at that path."""
        line, column = self.place(path)
        return Problem(code=code, message=message, help=help, file=self.file, line=line, column=column)


def read(path: Path) -> Document:
    """Read one YAML file.

    Raises:
        BadInput: the file cannot be read, is not UTF-8, is no YAML 1.2 map, repeats a key, names a tag, expands
            too far, uses an unset environment variable, or holds a password.
    """
    return parse(_text(path), str(path))


def parse(text: str, file: str) -> Document:
    """The document of a YAML text; `file` is only for messages. Raises BadInput like `read`."""
    if not text.strip():
        raise BadInput([_at(file, 0, 0, "empty", "the file is empty", _EXAMPLE)])
    problems = _before_parsing(text, file)
    if problems:
        raise BadInput(problems)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2.2, 3.2.2.2: the latest anchor counts
            node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise BadInput([_at(file, line, column, "yaml", f"not valid YAML: {error.problem}")]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInput([_at(file, *_after(text, error), "yaml", f"not valid YAML: {what}")]) from None
    builder = _Builder(file)
    values = builder.build(node, ())
    if values is None and not builder.problems:
        builder.problems.append(_at(file, 0, 0, "empty", "the file says nothing", _EXAMPLE))
    elif not builder.problems and not isinstance(values, dict):
        builder.problems.append(_at(file, 1, 1, "shape", f"a study file must be a map of keys, got {_kind(values)}"))
    if builder.problems:
        raise BadInput(builder.problems)
    return Document(file, text, values, builder.places)


def _before_parsing(text: str, file: str) -> list[Problem]:
    """What must not reach the parser, or be missed by it: passwords in comments, other YAMLs, towers of brackets."""

    def at(position: int, code: str, message: str, help: str = "") -> Problem:
        return _at(file, *_position(text, position), code, message, help)

    problems = [at(found.start(), "secret", _SECRET, _SECRET_HELP) for found in _PASSWORD.finditer(text)]
    version = _VERSION.search(text)
    if version:
        problems.append(at(version.start(), "yaml", f"a study file is YAML 1.2 — got {version.group()[:40]!r}"))
    depth = 0
    for found in re.finditer(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if found.group() in "[{" else -1))
        if depth > MAX_BRACKETS:
            problems.append(at(found.start(), "yaml", f"more than {MAX_BRACKETS} brackets are open: refused"))
            break
    return problems


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column of a character, 1-based."""
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _after(text: str, error: Exception) -> tuple[int, int]:
    """Where the YAML reader stopped, if it says so."""
    index = getattr(error, "position", None)
    return _position(text, index) if isinstance(index, int) else (0, 0)


def _text(path: Path) -> str:
    name = str(path)
    try:
        if path.is_dir():
            raise BadInput([_at(name, 0, 0, "file", "is a directory, expected a study file")])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise BadInput([_at(name, 0, 0, "file", f"larger than {MAX_BYTES // 1024} KiB: refused")])
    except FileNotFoundError:
        looked = path.parent.resolve()
        raise BadInput([_at(name, 0, 0, "file", f"no such file (looked in {looked})")]) from None
    except PermissionError:
        mode = oct(path.stat().st_mode & 0o777) if os.access(path.parent, os.X_OK) else "unknown"
        raise BadInput([_at(name, 0, 0, "file", f"permission denied (mode {mode})")]) from None
    except (OSError, ValueError) as error:
        raise BadInput([_at(name, 0, 0, "file", f"cannot be read: {error}")]) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"not UTF-8 at byte {error.start} (0x{raw[error.start]:02X})"
        raise BadInput([_at(name, 0, 0, "encoding", got, "save the file as UTF-8")]) from None


def _at(file: str, line: int, column: int, code: str, message: str, help: str = "") -> Problem:
    return Problem(code=code, message=message, help=help, file=file, line=line, column=column)


def _kind(value: Any) -> str:
    return {dict: "a map", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}.get(
        type(value), f"the number {value!r}"
    )


class _Builder:
    """Walks the node tree once; collects values, places and every problem."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.places: dict[Path_, tuple[int, int]] = {}
        self.seen: dict[int, int] = {}
        self.built = 0

    def report(self, node: Node, code: str, message: str, help: str = "") -> None:
        mark = node.start_mark
        self.problems.append(_at(self.file, mark.line + 1, mark.column + 1, code, message, help))

    def build(self, node: Node | None, path: Path_) -> Any:
        if node is None:
            return None
        self.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        visits = self.seen[id(node)] = self.seen.get(id(node), 0) + 1
        self.built += 1
        if (
            visits > MAX_ALIASES or self.built > MAX_VALUES or len(path) > MAX_DEPTH
        ):  # an alias bomb, or an alias to its own parent
            if not any(problem.code == "alias" for problem in self.problems):
                self.report(node, "alias", f"more than {MAX_ALIASES} aliases or {MAX_DEPTH} levels: refused")
            return None
        tag = str(node.tag)
        if tag.removeprefix(_PREFIX) not in _PLAIN:
            self.report(node, "tag", f"tag {tag.replace(_PREFIX, '!!')!r} is not allowed", "write plain values")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, tag.removeprefix(_PREFIX))

    def _mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.build(key_node, (*path, "?"))
            if not isinstance(key, str):
                self.report(key_node, "key", f"a key must be text, got {_kind(key)}")
                continue
            line = key_node.start_mark.line + 1
            if key in values:
                self.report(key_node, "duplicate-key", f"'{key}' given twice (lines {lines[key]} and {line})")
                continue
            lines[key] = line
            self.places[(*path, key)] = (line, key_node.start_mark.column + 1)
            values[key] = self.build(value_node, (*path, key))
        return values

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        text = str(node.value)
        if kind == "null":
            return None
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _float(text)
        except KeyError:
            self.report(node, "number", f"{text[:40]!r} is neither true nor false")
            return None
        except (ValueError, OverflowError):
            self.report(node, "number", f"{text[:40]!r} is not a number")
            return None
        return self._words(node, text)

    def _words(self, node: ScalarNode, text: str) -> str:
        if _PASSWORD.search(text):
            self.report(node, "secret", _SECRET, _SECRET_HELP)
        if _NO_TEXT.search(text):
            self.report(node, "text", "holds U+0000 or half a surrogate pair, which is no text")
            return ""
        for name in _VARIABLE.findall(text):
            if name not in os.environ:
                self.report(node, "variable", f"environment variable {name} is not set")
        return _VARIABLE.sub(lambda match: os.environ.get(match.group(1), ""), text)


def _integer(text: str) -> int:
    plain = text.replace("_", "")
    if len(plain) > 40:
        raise ValueError(text)
    sign, body = (-1, plain[1:]) if plain[:1] == "-" else (1, plain.lstrip("+"))
    if body.lower().startswith(("0x", "0o", "0b")):
        return sign * int(body, 0)
    return sign * int(body)


def _float(text: str) -> float:
    plain = text.replace("_", "").lower()
    special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    return special[plain] if plain in special else float(plain)
