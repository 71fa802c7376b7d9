"""How large a unit's checkpoint will be, from the headers of the model's files. Reads no weights, needs no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import forms, models
from orchestrator.contract import Settings
from orchestrator.spec import StudySpec

MOST_HEADER = 100 * 2**20  # bytes; what safetensors itself allows
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "shared")  # all-linear leaves them alone
PARTS = 3  # each weight, and AdamW's two moments; with patience that of the best epoch too
FLOAT32 = 4


def resume_state(spec: StudySpec, folder: Path) -> int | None:
    """About how many bytes the largest state to go on from has; None where that cannot be told without a network."""
    sizes = [_of_model(spec, source.path, folder) for source in spec.sources]
    return max((size for size in sizes if size is not None), default=None)


def _of_model(spec: StudySpec, path: str, folder: Path) -> int | None:
    if models.origin(path, folder) == "hub":
        return None
    try:
        where = models.local_folder(path, folder)
        shapes = {name: shape for file in sorted(where.glob("*.safetensors")) for name, shape in header(file).items()}
    except (OSError, ValueError, RecursionError):
        return None
    layers = adapted(shapes, spec.training["target_modules"])
    parts = PARTS + (max(spec.extremes("patience")) > 0)
    return parts * FLOAT32 * (parameters(layers, most_rank(spec)) + _head(spec, shapes)) if layers else None


@dataclass(frozen=True)
class ModelSize:
    """layers: parameters of all that is multiplied for each token. embeddings: of the tables of tokens and positions.

    bytes: of the files. count: of layers. hidden: features of a token between them.
    """

    layers: int
    embeddings: int
    bytes: int
    count: int
    hidden: int


def model_size(where: Path) -> ModelSize | None:
    """Of a model's files; None where they are not there, or no safetensors."""
    files = sorted(where.glob("*.safetensors"))
    try:
        shapes = {name: shape for file in files for name, shape in header(file).items()}
        total = sum(file.stat().st_size for file in files)
    except (OSError, ValueError, RecursionError):
        return None
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    tables = [shape for name, shape in matrices.items() if any(part in name for part in EMBEDDINGS)]
    if not matrices or not tables:
        return None
    inner = sum(math.prod(shape) for name, shape in matrices.items() if not any(part in name for part in EMBEDDINGS))
    layers = len({found.group() for name in shapes if (found := re.match(r".*?\.\d+\.", name))})
    return ModelSize(inner, sum(math.prod(shape) for shape in tables), total, max(1, layers), max(t[1] for t in tables))


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        values = json.loads(stream.read(length))
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no safetensors file")
    return dict(_shapes(values))


def _shapes(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, about in values.items():
        shape = about.get("shape") if isinstance(about, dict) else None
        if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
            yield name, tuple(shape)


def adapted(shapes: Mapping[str, tuple[int, ...]], target: Any) -> list[tuple[int, ...]]:
    """Shapes of the layers that get LoRA; none if PEFT chooses them, which only PEFT knows."""
    if target == "auto":
        return []
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and not any(part in name for part in EMBEDDINGS)
    }
    if target == "all-linear":
        return list(layers.values())
    return [shape for name, shape in layers.items() if any(f".{name}".endswith(f".{wanted}") for wanted in target)]


def parameters(layers: list[tuple[int, ...]], rank: int) -> int:
    """Parameters of LoRA: two matrices for each layer."""
    return sum(rank * sum(shape) for shape in layers)


def most_rank(spec: StudySpec) -> int:
    """The largest LoRA rank that a trial of the study can have; the default configuration's counts too."""
    ranks = [int(rank) for rank in spec.extremes("lora_rank")]
    return max(Settings().lora_rank, *ranks) if "lora_rank" in spec.space else ranks[0]


def _head(spec: StudySpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A classifier's own layers: at most one as wide as the model; a row for each class is little beside that."""
    if spec.task not in forms.POOLED:
        return 0
    widths = [shape[1] for name, shape in shapes.items() if len(shape) == 2 and ("embed" in name or "wte" in name)]
    return max(widths, default=0) ** 2
