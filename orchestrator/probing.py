"""`check --probe`: a trainer process loads the study's model and trains a few steps, without a database."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import augmentation, contract, devices, forecast, models, prepare, sizes, space
from orchestrator.contract import ModelPin, OpenStudy, Settings, TrainUnit
from orchestrator.dataset import Snapshot
from orchestrator.devices import Device
from orchestrator.errors import USAGE, FoldtuneError
from orchestrator.forecast import Forecast, Span
from orchestrator.spec import StudySpec
from orchestrator.study_file import LoadedStudy

PATIENCE = 600.0  # seconds for all of it
STEPS = 4  # that are timed, of the largest batch
LEAST = 64  # rows that are timed, if there are so many
SPREAD = (0.8, 1.6)  # of what was measured: smaller batches, busier cores, another day
SECRETS = ("OPTUNA_STORAGE", "FOLDTUNE_DB_PASSWORD_FILE", "PGPASSWORD", "PGPASSFILE")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured of one model; see docs/schemas/check.schema.json."""

    model: str
    device: str
    slots: int
    load_seconds: float
    step_rows: int
    lora_rank: int
    row_seconds: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For `check --json`."""
        return asdict(self)

    def __str__(self) -> str:
        step = self.row_seconds * self.step_rows
        memory = forecast.in_bytes(self.peak_bytes)
        slots = f"{self.slots} units at once" if self.slots > 1 else "one unit at a time"
        return (
            f"probe of {self.model} on {self.device}: loaded in {self.load_seconds:.1f} s, a step of {self.step_rows} "
            f"rows at rank {self.lora_rank} takes {step:.2g} s, peak memory {memory}, {slots}"
        )


def probe(loaded: LoadedStudy, snapshot: Snapshot) -> tuple[list[Probe], Forecast]:
    """Measure each of the study's models on this machine's first device, and forecast the study by that.

    Raises:
        FoldtuneError: a model cannot be trained as the study says; or it took too long.
    """
    spec, device = loaded.spec, devices.chosen_devices("auto")[0]
    pool = augmentation.pool(spec.data, loaded.folder)
    work = forecast.work(spec, prepare.given(snapshot, pool))
    probes, forecasts = [], []
    for source in spec.sources:
        measured, forward = _measured(spec, models.pin(source, loaded.folder), snapshot, device)
        expected = forecast.by_pace(
            spec,
            work,
            Span(low=forward * snapshot.rows, high=forward * snapshot.rows).times(*SPREAD),
            basis="probe",
            device=device.kind,
            workers=devices.default_workers("auto"),
            memory=measured.peak_bytes,
        )
        probes.append(measured)
        forecasts.append(expected)
    return probes, forecast.mean(forecasts)


def _measured(spec: StudySpec, pin: ModelPin, snapshot: Snapshot, device: Device) -> tuple[Probe, float]:
    """(what was measured of one model, device seconds of a forward pass of one row)."""
    settings = largest(spec, pin)
    warm, timed = units(spec, snapshot, settings)
    with tempfile.TemporaryDirectory(prefix="foldtune-probe-") as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.write_bytes(snapshot.content)
        study = _study(spec, pin, rows, snapshot)
        said = _ask("".join(contract.encode(each) + "\n" for each in (study, warm, timed)), pin, device)
    trained = forecast.row_passes(settings)
    forward = said["unit_seconds"] / (len(timed.train) * trained + len(timed.validation))
    measured = Probe(
        model=pin.path,
        device=said["device"],
        slots=said["slots"],
        load_seconds=said["load_seconds"],
        step_rows=min(settings.batch_size, len(timed.train)),
        lora_rank=settings.lora_rank,
        row_seconds=forward * trained,
        peak_bytes=said["peak_bytes"],
    )
    return measured, forward


def largest(spec: StudySpec, pin: ModelPin) -> Settings:
    """The default configuration with the largest batch and rank of the study, for one epoch, on its own rows alone."""
    params = dict(space.default_params(spec.space)[0])
    if "batch_size" in spec.space:
        params["batch_size"] = max(spec.extremes("batch_size"))
    if "lora_rank" in spec.space:
        params["lora_rank"] = sizes.most_rank(spec)
    settings = space.settings(spec.training, params, pooling=pin.pooling)
    alone = replace(settings, epochs=1, patience=0, paraphrases=0, synthetic=0, pseudo_rounds=0)
    return replace(alone, char_noise=0.0, word_noise=0.0, synonyms=0.0)


def units(spec: StudySpec, snapshot: Snapshot, settings: Settings) -> tuple[TrainUnit, TrainUnit]:
    """(the longest rows, which need the most memory; rows that stand for the others, to be timed)."""
    train, validation = prepare.planned(spec, snapshot).split(0, 0)
    lengths = [len(line) for line in snapshot.content.split(b"\n")]
    draw = random.Random(0)
    timed = sorted(draw.sample(train, min(len(train), max(LEAST, STEPS * settings.batch_size))))
    scored = sorted(draw.sample(validation, min(len(validation), max(1, len(timed) // 4))))
    longest = sorted(train, key=lambda row: -lengths[row])[: settings.batch_size]
    most = sorted(validation, key=lambda row: -lengths[row])[:8]
    return _unit(1, settings, longest, most), _unit(2, settings, timed, scored)


def _unit(number: int, settings: Settings, train: list[int], validation: list[int]) -> TrainUnit:
    return TrainUnit(
        study=0,
        unit=number,
        lease_epoch=0,
        trial=0,
        repeat=0,
        fold=0,
        seed=contract.derive_seed("probe", number),
        settings=settings,
        train=tuple(train),
        validation=tuple(validation),
    )


def _study(spec: StudySpec, pin: ModelPin, rows: Path, snapshot: Snapshot) -> OpenStudy:
    return OpenStudy(study=0, name=spec.study, task=spec.task, model=pin, data=str(rows), labels=snapshot.classes)


def _ask(messages: str, pin: ModelPin, device: Device) -> dict[str, Any]:
    """Start the trainer, hand it the work, and read its report."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    threads = max(1, devices.cores() // devices.default_workers("auto"))
    environment.setdefault("OMP_NUM_THREADS", str(threads))  # as a worker here would have it
    environment["CUDA_VISIBLE_DEVICES"] = device.id or ""
    command = [sys.executable, "-m", "trial_worker.probe"]
    try:
        done = subprocess.run(
            command, input=messages, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        help = "a smaller model, batch or max_length, or a faster device"
        raise _failed(pin, f"a few steps take longer than {PATIENCE:.0f} s here", help) from None
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
        help = "the kernel does that where memory runs out" if how == "SIGKILL" else ""
        raise _failed(pin, f"the trainer was killed by {how}", help)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise _failed(pin, "the trainer ended: " + "; ".join(done.stderr.strip().splitlines()[-1:]))
    report: dict[str, Any] = json.loads(lines[-1])
    if "refused" in report:
        raise _failed(pin, report["refused"])
    return report


def _failed(pin: ModelPin, reason: str, help: str = "") -> FoldtuneError:
    return FoldtuneError(f"model {pin.path!r} cannot be trained as this study says: {reason}", help=help, code=USAGE)
