"""A YAML 1.2 file as plain values, with the line and column of every key.

Safe by construction: only maps, lists and scalars are built; a tag that names code is an error. YAML 1.2 makes
`1e-4` a number and `no` text, where YAML 1.1 (PyYAML) makes them text and false.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.errors import BadInput, Problem

MAX_BYTES = 1_000_000
MAX_ALIASES = 100
MAX_DEPTH = 20

Path_ = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PASSWORD = re.compile(r"[a-z][a-z0-9+]*://[^/\s:@]+:[^/\s@]+@", re.IGNORECASE)


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
        BadInput: the file cannot be read, is not UTF-8, is no YAML map, repeats a key, names a tag, expands
            too far, uses an unset environment variable, or holds a password.
    """
    return parse(_text(path), str(path))


def parse(text: str, file: str) -> Document:
    """The document of a YAML text; `file` is only for messages. Raises BadInput like `read`."""
    if not text.strip():
        raise BadInput([_at(file, 0, 0, "empty", "the file is empty", "copy studies/glosses.yaml and change it")])
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise BadInput([_at(file, line, column, "yaml", f"not valid YAML: {error.problem}")]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise BadInput([_at(file, 0, 0, "yaml", f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    builder = _Builder(file)
    values = builder.build(node, ())
    if not builder.problems and not isinstance(values, dict):
        builder.problems.append(_at(file, 1, 1, "shape", f"a study file must be a map of keys, got {_kind(values)}"))
    if builder.problems:
        raise BadInput(builder.problems)
    return Document(file, text, values, builder.places)


def _text(path: Path) -> str:
    name = str(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BadInput([_at(name, 0, 0, "file", "is a directory, expected a study file")])
        if size > MAX_BYTES:
            raise BadInput([_at(name, 0, 0, "file", f"larger than 1 MB, got {size} bytes")])
        raw = path.read_bytes()
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

    def report(self, node: Node, code: str, message: str, help: str = "") -> None:
        mark = node.start_mark
        self.problems.append(_at(self.file, mark.line + 1, mark.column + 1, code, message, help))

    def build(self, node: Node | None, path: Path_) -> Any:
        if node is None:
            return None
        self.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        visits = self.seen[id(node)] = self.seen.get(id(node), 0) + 1
        if visits > MAX_ALIASES or len(path) > MAX_DEPTH:  # an alias bomb, or an alias to its own parent
            if not any(problem.code == "alias" for problem in self.problems):
                self.report(node, "alias", f"more than {MAX_ALIASES} aliases or {MAX_DEPTH} levels: refused")
            return None
        tag = str(node.tag)
        if not tag.startswith(_PREFIX) or "python" in tag:
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
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _float(text)
        except (ValueError, OverflowError):
            self.report(node, "number", f"{text[:40]!r} is not a number")
            return None
        return self._words(node, text)

    def _words(self, node: ScalarNode, text: str) -> str:
        if _PASSWORD.search(text):
            self.report(
                node,
                "secret",
                "a password stands in the study file",
                "move it to a PGPASSFILE; it is not repeated here",
            )
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
