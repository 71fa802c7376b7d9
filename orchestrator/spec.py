"""StudySpec: one search, frozen and complete, with a digest and a JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from orchestrator import baselines, hyperparameters, objective, space
from orchestrator.contract import canonical, digest

AUTO = "auto"  # as data.group
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSource(_Section):
    """The pretrained model whose weights stay frozen."""

    path: str = Field(min_length=1, description="hub id, local folder, or package:NAME/FOLDER")
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a hub model; launch pins the commit"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the frozen weights and of what is computed with them; auto: bfloat16 on a GPU that has it in "
        "hardware, else float32. What is trained is float32",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer anew in the backward pass: less memory, more time, equal numbers"
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="of the frozen linear layers; nf4: 4 bits, as QLoRA (needs foldtune[quantized])"
    )

    @property
    def holding(self) -> dict[str, Any]:
        """How the weights are held, by the names that `ModelPin` has for it."""
        return self.model_dump(include={"precision", "gradient_checkpointing", "quantization"})


class DataSource(_Section):
    """The rows to learn from, and which columns mean what."""

    path: str = Field(min_length=1, description="file beside the study file, or a dataset id of the hub")
    format: Literal["jsonl", "csv", "parquet", "hub"] | None = Field(None, description="default: by the file's suffix")
    split: str | None = Field(None, min_length=1, description="split of a hub dataset; default train")
    text: str | None = Field(None, min_length=1, description="column of the text; default text")
    text_pair: str | None = Field(None, min_length=1, description="column of a pair's second text; default none")
    label: str | None = Field(
        None, min_length=1, description="column of the class, list of classes, or number; default label"
    )
    prompt: str | None = Field(None, min_length=1, description="column of the prompt; default prompt")
    completion: str | None = Field(None, min_length=1, description="column of the completion; default completion")
    messages: str | None = Field(None, min_length=1, description="column of chat messages; default messages")
    source: str | None = Field(None, min_length=1, description="column of the text to start from; default source")
    target: str | None = Field(None, min_length=1, description="column of the text to write; default target")
    tokens: str | None = Field(None, min_length=1, description="column of a row's words; default tokens")
    tags: str | None = Field(None, min_length=1, description="column of a tag for each word; default tags")
    spans: str | None = Field(
        None, min_length=1, description="column of {start, end, label} by characters of the text; default spans"
    )
    context: str | None = Field(None, min_length=1, description="column of the text with the answer; default context")
    question: str | None = Field(None, min_length=1, description="column of the question; default question")
    answer: str | None = Field(None, min_length=1, description="column of the answer's text; default answer")
    answer_start: str | None = Field(
        None, min_length=1, description="column of the answer's first character, from 0; default answer_start"
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="column: rows with the same value never stand on both sides of a fold; or auto: rows that are "
        "nearly equal never do",
    )
    limit: int | None = Field(None, ge=4, description="use at most this many rows, drawn by the study's seed")
    pool: str | None = Field(
        None, min_length=1, description="file of rows without labels, in the same text column, for pseudo_rounds"
    )


class WriterSource(_Section):
    """A model that writes training rows, sampled once for each text."""

    path: str = Field(min_length=1, description="hub id, local folder, or package:NAME/FOLDER")
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a hub model; launch pins the commit"
    )
    prompt: str | None = Field(None, min_length=1, description="what it is asked; default: an English request")
    temperature: float = Field(0.8, gt=0, le=5, description="of its sampling")
    top_p: float = Field(0.95, gt=0, le=1, description="sample from the likeliest tokens of this total share")
    max_new_tokens: int = Field(64, ge=1, le=4096, description="at most, for each text")

    @property
    def model(self) -> ModelSource:
        """The model alone."""
        return ModelSource(path=self.path, revision=self.revision)


class Augmentation(_Section):
    """Models that write training rows, inside each training fold; `paraphrases` and `synthetic` say how many."""

    paraphraser: WriterSource | None = Field(
        None, description="a causal or an encoder-decoder model; its prompt has $text in it"
    )
    back_translator: WriterSource | None = Field(
        None,
        description="brings back what the paraphraser wrote: then that one translates into another language, and this "
        "one from it; its prompt has $text in it",
    )
    generator: WriterSource | None = Field(
        None, description="a causal model; its prompt has $label and $examples in it"
    )

    @property
    def writers(self) -> dict[str, WriterSource]:
        """Those that are given, by name."""
        given = {
            "paraphraser": self.paraphraser,
            "back_translator": self.back_translator,
            "generator": self.generator,
        }
        return {name: writer for name, writer in given.items() if writer is not None}


class CrossValidation(_Section):
    """How rows are split into training and validation parts, the same for every trial."""

    folds: int = Field(5, ge=2, le=100, description="parts; each is the validation part once")
    repeats: int = Field(1, ge=1, le=100, description="times the whole split is drawn anew")
    stratify: bool = Field(True, description="keep the share of each class, or range of numbers, in every fold")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="decides the split")


class Search(_Section):
    """What is tried, and who proposes it."""

    sampler: Literal["tpe", "grid", "random", "gp"] = Field("tpe", description="tpe, grid, random or gp")
    space: dict[str, Any] = Field(
        description="hyperparameter -> list of choices, or map with low and high; either with when"
    )


class Racing(_Section):
    """Which trials earn more folds. The default configuration always gets all, and so has the best trial."""

    rule: Literal["none", "forgiving", "paired"] = Field(
        "forgiving",
        description="none (default of sampler gp): every trial gets all folds. forgiving (default of the others): a "
        "trial stops when its running objective is worse than the worst fold of the best complete trial. paired: when "
        "it is worse than that trial on the same folds by more than chance explains",
    )
    first_folds: int = Field(
        1,
        ge=1,
        le=10_000,
        description="folds that every trial gets, before any gets more and before its folds can stop it",
    )
    confidence: float = Field(
        0.975, ge=0.5, lt=1, description="of rule paired, one-sided: how sure it is that a stopped trial is worse"
    )
    hopeless: bool = Field(
        True,
        description="stop a trial in the middle of a fold, too: after an epoch that is no better than those before, "
        "where the last two are worse than the best complete trial was on any fold by then",
    )

    @property
    def on(self) -> bool:
        """Whether trials are raced at all."""
        return self.rule != "none"


def default_rule(sampler: Any) -> str:
    """Of racing. A Gaussian process learns from complete trials alone, so racing would hide from it what is bad."""
    return "none" if sampler == "gp" else "forgiving"


class Budget(_Section):
    """Totals over all workers and restarts. Not part of the digest: `resume` may raise them."""

    trials: int | None = Field(None, ge=1, le=100_000, description="searched trials; default 20, or the whole grid")
    hours: float | None = Field(None, gt=0, le=1e6, description="device hours; default no limit")


class Artifacts(_Section):
    """Where trained weights go, and which stay. Not part of the digest: no result depends on it."""

    store: str = Field(
        "database",
        min_length=1,
        description="database (pieces up to 16 MiB; larger ones stay on the machine that made them), a folder that "
        "every worker sees, or an fsspec URL",
    )
    keep: int = Field(3, ge=0, description="trials, the best ones, whose adapters stay; the default's always do")


class Baselines(_Section):
    """What the fine-tunes are measured against, on the same folds; each is an entry beside the trials."""

    run: list[str] | None = Field(
        None,
        description="majority, tfidf, features, zero-shot, few-shot for classification; the first four for "
        "seq2seq_classification; unigram, zero-shot, few-shot for causal_lm; default: all of the task",
    )
    shots: int = Field(4, ge=1, le=64, description="rows of each class (classification), or rows, that few-shot shows")
    template: str = Field(
        "{text}\nCategory: {label}",
        min_length=1,
        description="of a row in a prompt for classification by a language model; names {text} and {label}",
    )

    @model_validator(mode="after")
    def _template(self) -> Baselines:
        for name in baselines.FIELDS:
            if self.template.count(name) != 1:
                raise ValueError(f"template must have the field {name} once — got {self.template!r}")
        if not self.template.endswith("{label}"):
            raise ValueError(f"template must end with {{label}}, which is what is scored — got {self.template!r}")
        return self


class Generation(_Section):
    """What fine-tuned models write for their validation rows, compared with what these have."""

    metrics: list[Literal["chrf", "exact_match"]] = Field(
        default_factory=list,
        description="chrf (character n-grams, 0 to 100) and exact_match (share of rows); default none: nothing is "
        "written, and nothing costs anything",
    )
    max_new_tokens: int = Field(64, ge=1, le=4096, description="at most, for each row")


class StudySpec(_Section):
    """One search, complete: everything not searched has its value here."""

    study: str = Field(description="name; letters, digits, dot, dash, underscore")
    model: ModelSource = Field(description="the one to fine-tune; in a file also a list, of which the search chooses")
    models: list[ModelSource] | None = Field(None, min_length=2, description="of a list: all of it; model is the first")
    task: Literal[
        "classification",
        "seq2seq_classification",
        "multi_label",
        "regression",
        "token_classification",
        "question_answering",
        "causal_lm",
        "seq2seq",
    ] = Field(
        description="classification (one class a row), seq2seq_classification (the same by an encoder-decoder model, "
        "which is asked for the classes' names), multi_label (any number), regression (a number), "
        "token_classification (a tag for each word), question_answering (where the answer stands), "
        "causal_lm or seq2seq (a target for each source)"
    )
    data: DataSource
    augmentation: Augmentation = Augmentation()
    cross_validation: CrossValidation = CrossValidation()
    objective: Literal[
        "validation_loss",
        "accuracy",
        "f1",
        "weighted_f1",
        "micro_f1",
        "entity_f1",
        "calibration_error",
        "mse",
        "mae",
        "r2",
        "exact_match",
        "answer_f1",
        "chrf",
        "perplexity",
    ] = Field("validation_loss", description="the one number to optimise; its direction is part of its meaning")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="decides suggestions, initial weights, data order, dropout")
    training: dict[str, Any] = Field(default_factory=dict, description="every hyperparameter that is not searched")
    search: Search
    share_epochs: bool = Field(
        False,
        description="train every trial for the most epochs of search.space once and read all fewer ones off that run; "
        "needs lr_schedule constant and a warm-up counted in steps",
    )
    racing: Racing = Racing()
    baselines: Baselines = Baselines()
    generation: Generation = Generation()
    budget: Budget = Budget()
    artifacts: Artifacts = Artifacts()

    @field_validator("study")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"name must match {NAME.pattern}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("model"), str):
            raw = {**raw, "model": {"path": raw["model"]}}
        if isinstance(raw, dict) and isinstance(raw.get("baselines"), list):
            raw = {**raw, "baselines": {"run": raw["baselines"]}}
        return raw

    @model_validator(mode="before")
    @classmethod
    def _default_rule(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("search"), dict):
            return raw
        racing = raw.get("racing", {})
        if not isinstance(racing, dict) or "rule" in racing:
            return raw
        return {**raw, "racing": {**racing, "rule": default_rule(raw["search"].get("sampler"))}}

    @property
    def sources(self) -> list[ModelSource]:
        """All models."""
        return self.models or [self.model]

    @property
    def searched(self) -> Mapping[str, Any]:
        """All that is searched, as JSON: the model first, where there are several."""
        if self.models is None:
            return self.search.space
        return {hyperparameters.MODEL: {"choices": [each.path for each in self.models]}, **self.search.space}

    @property
    def space(self) -> dict[str, space.Entry]:
        """The same, parsed."""
        return {name: space.entry_from_json(name, raw) for name, raw in self.searched.items()}

    def extremes(self, name: str) -> tuple[Any, ...]:
        """As `space.extremes`."""
        return space.extremes(self.space, name, self.training)

    @property
    def most_epochs(self) -> int:
        """Of a study that shares epochs: what its runs train."""
        return int(max(self.space["epochs"].points()))

    @property
    def proposed(self) -> Mapping[str, Any]:
        """The space that the sampler is asked about, as JSON: shared epochs are nothing that it could choose."""
        if not self.share_epochs:
            return self.searched
        return {**self.searched, "epochs": {"choices": [self.most_epochs]}}

    @property
    def maximize(self) -> bool:
        """Whether a larger objective is better."""
        return objective.MAXIMIZE[self.objective]

    @property
    def compared_by_text(self) -> bool:
        """Whether the objective is of texts that the models write."""
        return self.objective in self.generation.metrics

    def identity(self) -> dict[str, Any]:
        """What makes this study this study: all but the budget, which may be raised later, and the artifacts."""
        # what a study does not use is left out, so that studies of before there was any keep their digests
        unused = {"generation"} if not self.generation.metrics else set()
        unused |= {"models"} if self.models is None else set()
        return self.model_dump(mode="json", exclude={"budget", "artifacts"} | unused)

    def digest(self) -> str:
        """sha256 over `identity`."""
        return digest(self.identity())


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every dotted key in which two identities differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {canonical(before)} -> {canonical(after)}")
    return lines


def json_schema() -> dict[str, Any]:
    """JSON Schema of a study file."""
    schema = StudySpec.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "foldtune study file"}
    schema["properties"]["study"]["pattern"] = f"^{NAME.pattern}$"
    short = {"type": "string", "minLength": 1, "description": "short for {path: ...}"}
    one = [{"$ref": "#/$defs/ModelSource"}, short]
    several = {"type": "array", "minItems": 2, "items": {"anyOf": one}, "description": "the search chooses one of them"}
    schema["properties"]["model"] = {"anyOf": [*one, several]}
    del schema["properties"]["models"]
    names = schema["$defs"]["Baselines"]["properties"]["run"]["anyOf"][0]
    names["items"] = {"enum": list(baselines.KNOWN)}
    schema["properties"]["baselines"] = {"anyOf": [{"$ref": "#/$defs/Baselines"}, names]}
    fields = {name: hyperparameters.json_schema(name) for name in hyperparameters.FIELDS}
    aliases = {alias: {"$ref": f"#/properties/training/properties/{name}"} for alias, name in _aliases()}
    schema["properties"]["training"] |= {"properties": {**fields, **aliases}, "additionalProperties": False}
    searchable = [name for name, field in hyperparameters.FIELDS.items() if field.metadata["searchable"]]
    names = [*searchable, *(alias for alias, name in _aliases() if name in searchable)]
    schema["$defs"]["Search"]["properties"]["space"] |= {
        "propertyNames": {"enum": names},
        "minProperties": 1,
        "additionalProperties": {"anyOf": [_CHOICES, _CHOICES_MAP, _RANGE]},
    }
    schema["$defs"]["When"] = {
        "type": "object",
        "description": "active only while each of these searched hyperparameters has (one of) these values",
        "propertyNames": {"enum": [*names, hyperparameters.MODEL]},
        "minProperties": 1,
        "additionalProperties": {"anyOf": [{"type": ["string", "number"]}, _CHOICES]},
    }
    return schema


def _aliases() -> list[tuple[str, str]]:
    return list(hyperparameters.ALIASES.items())


_CHOICES: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}}
_CHOICES_MAP: dict[str, Any] = {
    "type": "object",
    "properties": {"choices": _CHOICES, "when": {"$ref": "#/$defs/When"}},
    "required": ["choices"],
    "additionalProperties": False,
}
_RANGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "low": {"type": "number"},
        "high": {"type": "number"},
        "log": {"type": "boolean"},
        "step": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "when": {"$ref": "#/$defs/When"},
    },
    "required": ["low", "high"],
    "additionalProperties": False,
}


if __name__ == "__main__":  # python -m orchestrator.spec > docs/schemas/study.schema.json
    print(json.dumps(json_schema(), indent=2))
