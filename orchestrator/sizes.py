"""How large a unit's checkpoint will be, from the headers of the model's files. Reads no weights, needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator import forms, models
from orchestrator.contract import Settings
from orchestrator.space import Choices
from orchestrator.spec import StudySpec

MOST_HEADER = 100 * 2**20  # bytes; what safetensors itself allows
EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")  # all-linear leaves them alone
PARTS = 3  # each weight, and AdamW's two moments
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
    return PARTS * FLOAT32 * (parameters(layers, most_rank(spec)) + _head(spec, shapes)) if layers else None


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
    entry = spec.space.get("lora_rank")
    if entry is None:
        return int(spec.training["lora_rank"])
    return max(
        Settings().lora_rank, *(int(rank) for rank in (entry.choices if isinstance(entry, Choices) else (entry.high,)))
    )


def _head(spec: StudySpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A classifier's own layers: at most one as wide as the model; a row for each class is little beside that."""
    if spec.task not in forms.POOLED:
        return 0
    widths = [shape[1] for name, shape in shapes.items() if len(shape) == 2 and ("embed" in name or "wte" in name)]
    return max(widths, default=0) ** 2
