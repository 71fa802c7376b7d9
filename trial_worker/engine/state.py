"""A unit's state as a file: what its seed and settings do not tell, at a step boundary.

Data order, dropout and learning rate are functions of seed and step, so that trainable weights, AdamW's two moments
and a `Position` are all there is to keep. A file is safetensors, never pickle; its metadata has one entry, `foldtune`,
a JSON object (see `_header`). Tensors are named PART/PARAMETER, with PEFT's names of parameters: weight, exp_avg and
exp_avg_sq in the parameter's own shape and type, and of a unit with patience best, the weights of its best epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from orchestrator import durable
from orchestrator.contract import Checkpoint, ModelPin, TrainUnit, canonical, digest
from trial_worker.engine.memory import Memory
from trial_worker.engine.process import versions
from trial_worker.engine.stopping import Best

FORMAT = 2


@dataclass
class Position:
    """Where a unit stands.

    epoch: epochs finished, their evaluation included.
    step: optimizer steps done, those of the unfinished epoch included.
    nats, weight: training nats of the unfinished epoch, each row under the weights before its own step, and how many
        labels or supervised tokens they cover.
    seconds: device seconds that the unfinished epoch had taken when the unit was last broken off.
    """

    epoch: int = 0
    step: int = 0
    nats: float = 0.0
    weight: int = 0
    seconds: float = 0.0

    @property
    def train_loss(self) -> float:
        return self.nats / max(self.weight, 1)


@dataclass(frozen=True)
class Saved:
    """What a file says, not yet compared with the network it is for; path: for messages."""

    path: str
    kind: str
    position: Position
    tensors: dict[str, Tensor]
    best: Best | None = None  # of a unit with patience, after its first epoch


def identity(unit: TrainUnit, pin: ModelPin) -> str:
    """sha256 of all that a unit's numbers depend on, whichever machine or lease trains it."""
    return digest(
        {
            "seed": unit.seed,
            "settings": unit.settings.identity(),
            "train": unit.train,
            "validation": unit.validation,
            "model": pin.identity(),
        }
    )


def write(
    path: Path, kind: str, unit: str, position: Position, memory: Memory, slot: int, best: Best | None = None
) -> Checkpoint:
    """Write a slot's state whole or not at all; equal states give equal files.

    kind: "resume", or "adapter" for the weights alone. unit: its `identity`. best: its best epoch so far, if it has
    patience.

    Raises:
        OSError: no room, or no such folder.
    """
    tensors = _named(memory, slot, moments=kind == "resume")
    if best is not None and kind == "resume":
        tensors |= {f"best/{name}": value for name, value in best.weights.items()}
    header = canonical(_header(kind, unit, position, best))
    content = safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}, {"foldtune": header})
    sha256 = durable.write(path, content)
    return Checkpoint(
        path=str(path), sha256=sha256, bytes=len(content), kind=kind, epoch=position.epoch, step=position.step
    )


def _named(memory: Memory, slot: int, *, moments: bool) -> dict[str, Tensor]:
    """PART/PARAMETER -> view of the slot's memory."""
    parts = {"weight": memory.named(slot), **(memory.moments(slot) if moments else {})}
    return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def _header(kind: str, unit: str, position: Position, best: Best | None) -> dict[str, Any]:
    chosen = {} if best is None else {"best": {"epoch": best.epoch, "loss": best.loss.hex()}}
    return {
        **chosen,
        "format": FORMAT,
        "kind": kind,
        "unit": unit,
        **asdict(position),
        "nats": position.nats.hex(),  # exact: the mean of the epoch is to be the same to the last bit
        "versions": versions(),
    }


def read(checkpoint: Checkpoint, unit: str) -> Saved:
    """The state of a file; nothing of the message but path and sha256 is believed, the header says the rest.

    unit: `identity` of the unit that goes on.

    Raises:
        ValueError: the file is not there, damaged, of another format or of another unit; one line.
    """
    path = checkpoint.path
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    # what is checked is what is used: the file is not opened again
    if (found := durable.sha256(content)) != checkpoint.sha256:
        raise ValueError(f"checkpoint {path} is damaged: sha256 must be {checkpoint.sha256}, got {found}")
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(_metadata(content)["foldtune"])
        version = header["format"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is no state of a unit ({type(error).__name__})") from error
    if version != FORMAT:
        raise ValueError(f"checkpoint {path}: format must be {FORMAT}, got {version!r}")
    if header.get("unit") != unit:
        raise ValueError(f"checkpoint {path} belongs to another unit: seed, settings, rows or model differ")
    position = _position(header, path)
    kept = {name.removeprefix("best/"): tensors.pop(name) for name in list(tensors) if name.startswith("best/")}
    return Saved(path, str(header.get("kind")), position, tensors, _best(header, position, kept, path))


def _metadata(content: bytes) -> dict[str, str]:
    """safetensors has a reader of metadata for files only; the format is 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


def _position(header: Mapping[str, Any], path: str) -> Position:
    try:
        position = Position(
            epoch=int(header["epoch"]),
            step=int(header["step"]),
            nats=float.fromhex(header["nats"]),
            weight=int(header["weight"]),
            seconds=float(header["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: its header does not say where the unit stands") from error
    if not (math.isfinite(position.nats) and position.weight >= 0 and 0 <= position.seconds < math.inf):
        raise ValueError(f"checkpoint {path}: {position} is no place of a unit")
    return position


def _best(header: Mapping[str, Any], position: Position, weights: Mapping[str, Tensor], path: str) -> Best | None:
    if "best" not in header and not weights:
        return None
    try:
        best = Best(int(header["best"]["epoch"]), float.fromhex(header["best"]["loss"]), weights)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: its header does not say which epoch was the best") from error
    if not (1 <= best.epoch <= position.epoch and math.isfinite(best.loss)):
        raise ValueError(f"checkpoint {path}: epoch {best.epoch} with loss {best.loss} is no best epoch of a unit")
    return best


def restore(saved: Saved, memory: Memory, slot: int) -> None:
    """Give an open slot's weights and AdamW their saved bits.

    Raises:
        ValueError: weights alone, or tensors that are not this network's; nothing is changed then.
    """
    if saved.kind != "resume":
        raise ValueError(f"checkpoint {saved.path}: kind must be resume to go on from it, got {saved.kind!r}")
    views = _named(memory, slot, moments=True)
    _refuse_unless_fitting(saved.path, saved.tensors, views)
    if saved.best is not None:
        _refuse_unless_fitting(saved.path, saved.best.weights, memory.named(slot))
    for name, view in views.items():
        view.copy_(saved.tensors[name])
    memory.steps[slot].fill_(saved.position.step)


def _refuse_unless_fitting(path: str, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
    """copy_ would broadcast a smaller tensor, and round one of another type, without any error."""
    if odd := sorted(views.keys() ^ tensors.keys()):
        raise ValueError(f"checkpoint {path}: it and the model do not share {len(odd)} tensors, as {odd[0]}")
    for name, view in views.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (view.shape, view.dtype):
            must, got = (f"{tuple(one.shape)} {one.dtype}" for one in (view, tensor))
            raise ValueError(f"checkpoint {path}: {name} must be {must}, got {got}")
