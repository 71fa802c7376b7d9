"""The plain script: Optuna, transformers' Trainer, PEFT, scikit-learn's folds; nothing of foldtune trains here.

reload: the model from disk, an adapter and a Trainer for every fold, as most scripts do it.
kept: the model stays loaded; every fold gets a fresh adapter and head, and they are taken out afterwards.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.search_speed import account, scores
from benchmarks.search_speed.account import Run, Tokens, UnitResult
from benchmarks.search_speed.replay import Replay, Trial
from orchestrator.contract import ModelPin, Settings

EVAL_ROWS = 64
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "seq_classif_dropout",
)
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class MeanClassifier(nn.Module):
    """Mean pooling and a linear head on an encoder, as the model's own pooling files ask."""

    def __init__(self, encoder: nn.Module, hidden: int, classes: int, normalize: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalize = normalize
        self.classifier = nn.Linear(hidden, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, labels: Any = None) -> Any:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * real).sum(1) / real.sum(1)
        if self.normalize:
            pooled = nn.functional.normalize(pooled, dim=-1) * math.sqrt(pooled.shape[-1])
        logits = self.classifier(pooled)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@dataclass
class Script:
    """What the script has loaded."""

    replay: Replay
    place: str
    options: dict[str, Any]
    labels: tuple[str, ...]
    keep: bool
    own_dropout: bool
    meter: scores.Meter
    folder: str
    cuda: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.place, **self.options)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        rows = self.replay.rows()
        length = int(self.replay.fixed["max_length"])
        encoded = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=length)
        self.rows = [
            {**{name: encoded[name][i] for name in encoded}, "labels": self.labels.index(row["label"])}
            for i, row in enumerate(rows)
        ]
        self.resident = self._load() if self.keep else None

    @property
    def mean(self) -> bool:
        return bool(self.replay.fixed["pooling"] == "mean")

    def _load(self) -> Any:
        config = AutoConfig.from_pretrained(self.place, **self.options)
        config.pad_token_id = self.tokenizer.pad_token_id
        config.num_labels = len(self.labels)
        for name in () if self.own_dropout else DROPOUTS:
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, 0.0)
        kind = AutoModel if self.mean else AutoModelForSequenceClassification
        model = kind.from_pretrained(self.place, config=config, dtype=torch.float32, **self.options)
        self.meter.watch(model)
        return model

    @contextmanager
    def model(self, settings: Settings) -> Iterator[nn.Module]:
        """A fresh adapter and head."""
        base = self._load() if self.resident is None else self.resident
        heads = {} if self.mean else {n: getattr(base, n) for n in ("classifier", "score") if hasattr(base, n)}
        for name, head in heads.items():
            setattr(base, name, _renewed(copy.deepcopy(head)))
        targets = settings.target_modules
        config = peft.LoraConfig(
            task_type=peft.TaskType.FEATURE_EXTRACTION if self.mean else peft.TaskType.SEQ_CLS,
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=settings.lora_dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=r".*pooler.*" if self.mean else None,
        )
        adapted = peft.get_peft_model(base, config)
        if self.mean:
            hidden = int(base.config.hidden_size)
            yield MeanClassifier(adapted, hidden, len(self.labels), self.replay.model.normalize)
        else:
            yield adapted
        if self.resident is not None:
            adapted.unload()
            for name, head in heads.items():
                setattr(base, name, head)

    def train(self, trial: Trial, fold: int, evaluated: Sequence[int]) -> np.ndarray:
        """Logits of the evaluated rows after the last epoch."""
        settings, seed = self.replay.settings(trial), 42 + fold
        train, _ = self.replay.split(fold)
        transformers.set_seed(seed)
        said: list[np.ndarray] = []

        def metrics(prediction: Any) -> dict[str, float]:
            said[:] = [prediction.predictions]
            nats, hits = scores.nats_and_hits(prediction.predictions, prediction.label_ids.tolist())
            return {
                "log_loss": (math.nan if nats is None else nats) / len(evaluated),
                "accuracy": hits / len(evaluated),
            }

        with self.model(settings) as model:
            trainer = Trainer(
                model=model,
                args=self._arguments(settings, len(train), seed),
                train_dataset=[self.rows[row] for row in train],
                eval_dataset=[self.rows[row] for row in evaluated],
                data_collator=DataCollatorWithPadding(self.tokenizer),
                compute_metrics=metrics,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return said[0]

    def _arguments(self, settings: Settings, rows: int, seed: int) -> TrainingArguments:
        steps = math.ceil(rows / settings.batch_size) * settings.epochs
        return TrainingArguments(
            output_dir=self.folder,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=EVAL_ROWS,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            lr_scheduler_type=SCHEDULES[settings.lr_schedule],
            warmup_steps=settings.warmup(steps),
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=not self.cuda,
            dataloader_pin_memory=self.cuda,
            label_names=["labels"],
        )


def _renewed(head: nn.Module) -> nn.Module:
    for part in head.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return head


def run(replay: Replay, form: str, *, keep: bool, own_dropout: bool = False) -> Run:
    """The whole search, then the winner on the test part, which is not timed."""
    _quieten()
    meter = scores.Meter()
    place, options = _locate(replay.model)
    labels = tuple(sorted({row["label"] for row in replay.rows()}))
    with tempfile.TemporaryDirectory() as folder:
        script = Script(replay, place, options, labels, keep, own_dropout, meter, folder)
        started = account.now()
        meter.tokens = tokens = Tokens()
        units = _search(script)
        searched = account.now() - started
        meter.tokens = None
        lengths = [len(row["input_ids"]) for row in script.rows]
        for one in units:
            tokens.worked(lengths, *replay.split(one.fold), replay.settings(replay.trial(one.trial)).epochs)
        number, loss = account.best(units, {})
        trial = replay.trial(number)
        truth = [script.rows[row]["labels"] for row in replay.test]
        logits = [script.train(trial, fold, replay.test) for fold in trial.folds]
    return Run(
        form=form,
        device="cuda" if script.cuda else "cpu",
        start=started,
        search=searched,
        units=units,
        tokens=tokens,
        winner=scores.winner(number, loss, logits, truth),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        notes={"optuna": _has_optuna()},
    )


def _search(script: Script) -> list[UnitResult]:
    """Every trial with full cross-validation; the list of trials is enqueued, so that Optuna has nothing to choose."""
    replay, results = script.replay, []

    def cross_validate(trial: Trial) -> float:
        for fold in trial.folds:
            before = account.now()
            _, validation = replay.split(fold)
            logits = script.train(trial, fold, validation)
            nats, hits = scores.nats_and_hits(logits, [script.rows[row]["labels"] for row in validation])
            cpu = (account.now() - before).cpu
            results.append(
                UnitResult(trial=trial.number, fold=fold, nats=nats, items=len(validation), correct=hits, cpu=cpu)
            )
        loss = account.cv_losses(results)[trial.number]
        return math.nan if loss is None else loss

    if not _has_optuna():
        for trial in replay.trials:
            cross_validate(trial)
        return results
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=replay.seed))
    for trial in replay.trials:
        study.enqueue_trial(dict(trial.params))

    def objective(asked: optuna.Trial) -> float:
        trial = replay.trials[asked.number]
        params = {name: _suggested(asked, name, entry) for name, entry in replay.space.items()}
        if params != trial.params:
            raise RuntimeError(f"Optuna gave {params} instead of {trial.params}")
        return cross_validate(trial)

    study.optimize(objective, n_trials=len(replay.trials))
    return results


def _suggested(asked: Any, name: str, entry: Any) -> Any:
    if "choices" in entry:
        return asked.suggest_categorical(name, entry["choices"])
    log = entry.get("log", False)
    if isinstance(entry["low"], int) and isinstance(entry["high"], int):
        return asked.suggest_int(name, entry["low"], entry["high"], log=log, step=entry.get("step") or 1)
    return asked.suggest_float(name, entry["low"], entry["high"], log=log, step=entry.get("step"))


def _has_optuna() -> bool:
    return importlib.util.find_spec("optuna") is not None


def _locate(pin: ModelPin) -> tuple[str, dict[str, Any]]:
    """A folder, or a hub id with its commit."""
    from trial_worker.engine.base import locate

    return locate(pin)


def _quieten() -> None:
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore")
