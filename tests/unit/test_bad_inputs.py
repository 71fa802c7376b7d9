# ruff: noqa: E501 - a table reads better with one case a line
"""Every bad study file, dataset or model folder ends with one clear message and its exit code, before any database."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import cli, families, forms
from tests.unit.study_text import ROWS, folder, jsonl, space, study

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def foldtune(foldtune_home: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the real command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with mock.patch.object(sys, "argv", ["foldtune", *map(str, arguments)]), pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    yield run
    assert not foldtune_home.exists(), "the database's home was touched"


class Bad(NamedTuple):
    study: str | bytes
    expected: str  # regular expression for stderr
    code: int = 2
    files: dict[str, str | bytes] = {}  # noqa: RUF012 - never changed


def data(content: str | bytes, expected: str, *, name: str = "rows.jsonl", text: str | None = None) -> Bad:
    """A valid study whose data file is bad."""
    return Bad(text or study(data=f"{{path: {name}}}"), expected, 65, {name: content})


def rows(*changed: object) -> str:
    """Valid rows with some more at the end, from line 21 on."""
    return jsonl([*ROWS, *changed])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
LR = "learning_rate"
CAUSAL = "causal_lm"
POOL = study(data="{path: rows.jsonl, pool: pool.jsonl}", training="{pseudo_rounds: 1}")

STUDY_YAML = {
    "3 empty": Bad("", r"error\[empty\] .*study\.yaml: the file is empty"),
    "3 comment only": Bad("# nothing\n", r"says nothing"),
    "3 blank": Bad(" \n\n", r"is empty\n  help: copy"),
    "4 Latin-1": Bad(b"study: caf\xe9\n", r"study\.yaml: not UTF-8 at byte 10 \(0xE9\)"),
    "4 UTF-16": Bad(study().encode("utf-16"), r"not UTF-8 at byte 0 \(0xFF\)"),
    "4 UTF-16 without a mark": Bad(study().encode("utf-16-le"), r"study\.yaml:1:2: not valid YAML"),
    "5 python tag": Bad(
        study(seed="!!python/object/apply:os.system [touch pwned]"),
        r"study\.yaml:7:7: tag '!!python/object/apply:os.system' is not allowed",
    ),
    "5 local tag": Bad(study(seed="!env HOME"), r":7:7: tag '!env' is not allowed"),
    "5 binary tag": Bad(study(study="!!binary eA=="), r"tag '!!binary' is not allowed"),
    "6 alias bomb": Bad(BOMB, r"more than 100 aliases or 20 levels: refused"),
    "6 alias to itself": Bad("a: &a [*a]\n", r"refused"),
    "6 deep nesting": Bad("a: " + "[" * 30 + "]" * 30, r"20 levels: refused"),
    "6 tower of brackets": Bad("a: " + "[" * 20_000, r":1:104: more than 100 brackets are open: refused"),
    "7 duplicate key": Bad(study() + "seed: 1\nseed: 2\n", r":8:1: 'seed' given twice \(lines 7 and 8\)"),
    "7 duplicate in a map": Bad(space("epochs: [1], epochs: [2]"), r":6:\d+: 'epochs' given twice \(lines 6 and 6\)"),
    "7 alias of the same key": Bad(study(training="{lr: 0.1, learning_rate: 0.2}"), r"'learning_rate' and 'lr' are the"),
    "8 unknown key": Bad(study(training="{epocs: 3}"), r"unknown hyperparameter 'epocs'\n  help: did you mean 'epochs'\?"),
    "8 unknown top key": Bad(study(buget="{trials: 3}"), r":7:1: unknown key 'buget'\n  help: did you mean 'budget'\?"),
    "8 unknown inner key": Bad(study(data="{path: rows.jsonl, txt: a}"), r":4:26: unknown key 'data.txt'\n.*'text'\?"),
    "8 key without effect yet": Bad(study(nested="true"), r"'nested' .* not supported in this version"),
    "share_epochs with a schedule that decays": Bad(
        study(share_epochs="true", search="{sampler: random, space: {epochs: [1, 2]}}"),
        r":7:1: 'share_epochs' needs a learning rate that does not depend on the number of epochs "
        r"— got lr_schedule linear, warmup_ratio 0.05\n  help: write training: \{lr_schedule: constant, warmup_ratio: 0\}",
    ),
    "share_epochs with a warm-up that is a share": Bad(
        study(
            share_epochs="true",
            search="{sampler: random, space: {epochs: [1, 2]}}",
            training="{lr_schedule: constant}",
        ),
        r"'share_epochs' needs .* — got warmup_ratio 0.05\n",
    ),
    "share_epochs with schedules to choose from": Bad(
        study(
            share_epochs="true",
            search="{sampler: random, space: {epochs: [1, 2], lr_schedule: [constant, cosine]}}",
            training="{warmup_steps: 3}",
        ),
        r"'share_epochs' needs .* — got lr_schedule cosine\n",
    ),
    "share_epochs without epochs": Bad(
        study(share_epochs="true", training="{lr_schedule: constant, warmup_ratio: 0}"),
        r":7:1: 'share_epochs' needs epochs in search.space",
    ),
    "a head where the names are asked for": Bad(
        study(task="seq2seq_classification", training="{method: head}"), r":7:12: method head trains .* — got task seq2seq_classification"
    ),
    "pooling where the names are asked for": Bad(
        study(task="seq2seq_classification", training="{pooling: mean}"), r":7:12: 'pooling' has no meaning for task seq2seq_classification"
    ),
    "few shots where the names are asked for": Bad(
        study(task="seq2seq_classification", baselines="[few-shot]"), r":7:13: no baseline of task seq2seq_classification: 'few-shot'"
    ),
    "one name": data(
        jsonl([{"text": f"text {n}", "label": "a"} for n in range(9)]), r"seq2seq_classification needs at least 2 classes — got only 'a'",
        text=study(task="seq2seq_classification"),
    ),
    "PEFT's switch for DoRA": Bad(study(training="{use_dora: 1}"), r"unknown hyperparameter 'use_dora'\n  help: write `method: dora`"),
    "PEFT's switch for rsLoRA": Bad(study(training="{use_rslora: 1}"), r"'use_rslora'\n  help: write `lora_scaling: rslora`"),
    "patience with share_epochs": Bad(
        study(
            share_epochs="true", training="{patience: 2, lr_schedule: constant, warmup_ratio: 0, stopping_share: 0.4}",
            search="{sampler: tpe, space: {epochs: [1, 2]}}",
        ),
        r":8:12: with 'share_epochs' one epoch counts for all folds of a trial, and with patience each has its own",
    ),
    "patience and self-training": Bad(
        study(data="{path: rows.jsonl, pool: rows.jsonl}", training="{pseudo_rounds: 1, early_stopping_patience: 2}"),
        r":7:30: 'pseudo_rounds' trains inner models on parts of a fold, which have nothing left to stop by",
    ),
    "patience with one epoch": Bad(study(training="{epochs: 1, patience: 2}"), r":7:23: 'patience' chooses among epochs, and there is one"),
    "a share to stop by without patience": Bad(study(training="{stopping_share: 0.2}"), r":7:12: 'stopping_share' has no effect without patience"),
    "patience never searched above none": Bad(
        study(search="{sampler: grid, space: {patience: [0]}}", training="{stopping_share: 0.2}"), r":7:12: 'stopping_share' has no effect"
    ),
    "too few rows to stop by": Bad(
        study(training="{patience: 2}"),
        r":7:12: 'patience' needs 5 rows at least to stop by — got 2, 0.15 of the 15 that a fold trains on\n  help: use a larger",
    ),
    "all rows to stop by": Bad(study(training="{patience: 2, stopping_share: 0.9}"), r"'stopping_share' must be at least 0.02 and at most 0.5"),
    "share_epochs no boolean": Bad(study(share_epochs="3"), r"'share_epochs' must be true or false — got 3"),
    "two warm-ups": Bad(
        study(training="{warmup_ratio: 0.1, warmup_steps: 3}"), r":7:12: 'warmup_ratio' has no effect beside warmup_steps"
    ),
    "an adapter's size without adapters": Bad(
        study(training="{method: head, r: 4}"), r":7:26: 'lora_rank' has no effect with method head"
    ),
    "only a head, and there is none": Bad(
        study(task=CAUSAL, training="{method: head}"), r":7:12: method head trains a classifier's head, .*\n  help: use method lora"
    ),
    "a head that is none": Bad(
        study(task="seq2seq", training="{method: head}"), r"method head trains .* — got task seq2seq"
    ),
    "mixup without classes": Bad(
        study(task=CAUSAL, training="{mixup_alpha: 0.2}"), r":7:12: 'mixup_alpha' compares logits of classes"
    ),
    "R-Drop without classes": Bad(
        study(task=CAUSAL, search="{sampler: random, space: {r_drop_alpha: [0, 1]}}"), r"'r_drop_alpha' compares logits"
    ),
    "class weights without classes": Bad(
        study(task=CAUSAL, training="{class_weights: balanced}"), r":7:12: 'class_weights' weighs rows by their class — got task causal_lm"
    ),
    "R-Drop without dropout": Bad(
        study(training="{r_drop_alpha: 1}"), r":7:12: 'r_drop_alpha' compares .*\n  help: set or search lora_dropout"
    ),
    "copies without noise": Bad(
        study(training="{augment_copies: 2}"), r":7:12: 'augment_copies' counts .*\n  help: set or search char_noise, word"
    ),
    "noise on what is learnt": Bad(
        study(task=CAUSAL, data="{path: rows.jsonl, text: text}", training="{char_noise: 0.1}"), r":7:12: 'char_noise' needs rows of prompt"
    ),
    "searched noise on what is learnt": Bad(
        study(task=CAUSAL, search="{sampler: random, space: {synonyms: [0, 0.1]}}"), r":6:35: 'synonyms' needs rows of prompt"
    ),
    "noise where answers are places": Bad(
        study(task="token_classification", data="{path: rows.jsonl}", training="{word_noise: 0.1}"),
        r":7:12: 'word_noise' moves the words.*\n  help: use token_dropout",
    ),
    "too many copies": Bad(study(training="{augment_copies: 9, char_noise: 0.1}"), r"'augment_copies' must be at least 1 and at most 8"),
    "a way back without one there": Bad(
        study(augmentation="{back_translator: {path: ./model}}"), r":7:16: 'augmentation\.back_translator' brings back what a paraphraser"
    ),
    "a way back that does not say of what": Bad(
        study(augmentation="{paraphraser: {path: ./model}, back_translator: {path: ./model, prompt: Back.}}", training="{paraphrases: 1}"),
        r":7:79: 'augmentation\.back_translator\.prompt' must have \$text in it",
    ),
    "synthetic rows of pairs": Bad(
        study(data="{path: rows.jsonl, text_pair: other}", augmentation="{generator: {path: ./model}}", training="{synthetic: 1}"),
        r":8:12: 'synthetic' makes rows of one text, and 'data.text_pair' gives each row two",
    ),
    "a pool beside pairs": Bad(
        study(data="{path: rows.jsonl, text_pair: other, pool: rows.jsonl}", training="{pseudo_rounds: 1}"),
        r":7:12: 'pseudo_rounds' makes rows of one text, and 'data.text_pair' gives each row two",
    ),
    "patience of which a default share leaves too little": Bad(
        space("patience: [3, 4], stopping_share: {choices: [0.5], when: {patience: 3}}"),
        r"'patience' needs 5 rows at least to stop by — got 2",
    ),
    "paraphrases by nobody": Bad(study(training="{paraphrases: 1}"), r":7:12: 'paraphrases' needs augmentation\.paraphraser"),
    "synthetic rows by nobody": Bad(space("synthetic: [0, 8]"), r"'synthetic' needs augmentation\.generator"),
    "self-training on nothing": Bad(study(training="{pseudo_rounds: 1}"), r":7:12: 'pseudo_rounds' needs data\.pool"),
    "a writer without work": Bad(
        study(augmentation="{paraphraser: {path: ./model}}"), r":7:16: 'augmentation\.paraphraser' has no effect without paraphrases"
    ),
    "a pool without work": Bad(
        study(data="{path: rows.jsonl, pool: rows.jsonl}"), r":4:26: 'data\.pool' has no effect without pseudo_rounds"
    ),
    "self-training in shared epochs": Bad(
        study(
            data="{path: rows.jsonl, pool: rows.jsonl}", share_epochs="true",
            training="{pseudo_rounds: 1, lr_schedule: constant, warmup_ratio: 0}", search="{sampler: tpe, space: {epochs: [1, 2]}}",
        ),
        r":8:12: with 'share_epochs' fewer epochs would have had other labels for the pool",
    ),
    "a threshold without rounds": Bad(study(training="{pseudo_threshold: 0.5}"), r":7:12: 'pseudo_threshold' has no effect"),
    "classes where there are none": Bad(
        study(task=CAUSAL, augmentation="{generator: {path: ./model}}", training="{synthetic: 3}"), r":8:12: 'synthetic' makes rows of cl"
    ),
    "an unknown augmenter": Bad(study(augmentation="{translator: {path: x}}"), r":7:16: unknown key 'augmentation\.translator'"),
    "no such writer": Bad(
        study(augmentation="{paraphraser: {path: ./none}}", training="{paraphrases: 1}"), r":7:30: model './none': no such folder"
    ),
    "a prompt without the text": Bad(
        study(augmentation="{paraphraser: {path: ./model, prompt: Say it anew.}}", training="{paraphrases: 1}"),
        r":7:45: 'augmentation\.paraphraser\.prompt' must have \$text in it",
    ),
    "an unknown method": Bad(study(training="{method: dora2}"), r"'method' must be one of lora, dora, head, full — got 'dora2'"),
    "8 racing": Bad(study(racing="{rule: asha}"), r"'racing.rule' must be .*none.* — got 'asha'"),
    "racing without a rule": Bad(
        study(racing="{rule: none, first_folds: 2, hopeless: true}"), r":7:22: 'racing.first_folds' has no effect with rule none"
    ),
    "racing a rule without a confidence": Bad(
        study(racing="{rule: forgiving, confidence: 0.9}"), r":7:27: 'racing.confidence' has no effect with rule forgiving"
    ),
    "racing with no folds to save": Bad(
        study(racing="{rule: paired, first_folds: 4}"), r":7:24: racing saves the folds after the first 4, and the plan has 4"
    ),
    "racing one fold": Bad(
        study(cross_validation="{folds: 1}", racing="{rule: forgiving}"), r":7:10: racing saves .* and the plan has 1: nothing"
    ),
    "racing with gp": Bad(
        study(search="{sampler: gp, space: {batch_size: [4, 8]}}", racing="{rule: forgiving}"),
        r":7:10: sampler gp learns from complete trials alone, .* — got racing forgiving\n  help: use sampler tpe",
    ),
    "racing without folds": Bad(study(racing="{rule: forgiving, first_folds: 0}"), r"'racing.first_folds' must be .* — got 0"),
    "racing with too little confidence": Bad(study(racing="{rule: paired, confidence: 0.2}"), r"'racing.confidence' must be"),
    "9 missing data.path": Bad(study(data="{text: a}"), r":4:1: missing 'data.path'"),
    "9 missing model": Bad(study(model=None), r"missing 'model'"),
    "9 missing search": Bad(study(search=None), r"missing 'search'"),
    "9 missing space": Bad(study(search="{sampler: tpe}"), r":6:1: missing 'search.space'"),
    "9 empty space": Bad(study(search="{space: {}}"), r"at least one hyperparameter — got \{\}"),
    "9 map expected": Bad(study(data="rows.jsonl"), r"'data' must be a map of keys — got 'rows.jsonl'"),
    "9 search is a list": Bad(study(search="[tpe]"), r"'search' must be a map of keys — got \['tpe'\]"),
    "9 training is text": Bad(study(training="fast"), r"'training' must be a map of hyperparameters — got 'fast'"),
    "10 YAML 1.1": Bad("%YAML 1.1\n---\n" + study(), r":1:1: a study file is YAML 1\.2 — got '%YAML 1\.1'"),
    "10 no is text": Bad(study(cross_validation="{stratify: no}"), r"'cross_validation.stratify' must be true or false — got 'no'"),
    "10 bool as name": Bad(study(study="true"), r"'study' must be text — got True\n  help: quote it"),
    "11 octal name": Bad(study(study="012"), r":1:1: 'study' must be text — got 12\n  help: quote it"),
    "11 sexagesimal name": Bad(study(study="12:30"), r"name must match .* — got '12:30'"),
    **{
        f"12 name {name[:12]!r}": Bad(study(study=json.dumps(name, ensure_ascii=False)), r":1:1: 'study' name must match \[A-Za-z0-9\]")
        for name in ("", "a" * 300, "a/b", "..", "a\nb", "😀", "-a", "a b")
    },
    "12 name with NUL": Bad(study(study='"a\\0"'), r":1:8: holds U\+0000"),
    "12 half a surrogate": Bad(study(data='{path: "\\ud800"}'), r":4:14: holds .*half a surrogate pair"),
    "13 negative trials": Bad(study(budget="{trials: -1}"), r"'budget.trials' must be greater than or equal to 1 — got -1"),
    "13 zero hours": Bad(study(budget="{hours: 0}"), r"'budget.hours' must be greater than 0 — got 0"),
    "13 endless hours": Bad(study(budget="{hours: .inf}"), r"'budget.hours' must be .* — got inf"),
    "13 huge trials": Bad(study(budget="{trials: 99999999999}"), r"less than or equal to 100000 — got 99999999999"),
    "13 broken trials": Bad(study(budget="{trials: 1.5}"), r"'budget.trials' must be a whole number — got 1\.5"),
    "13 trials as text": Bad(study(budget="{trials: many}"), r"'budget.trials' must be a whole number — got 'many'"),
    "13 epochs 0": Bad(study(training="{epochs: 0}"), r"'epochs' must be at least 1 and at most 1000 — got 0"),
    "13 a number of 50 digits": Bad(study(seed="9" * 50), r"'9{40}' is not a number"),
    "14 folds > rows": Bad(study(cross_validation="{folds: 30}"), r":5:20: folds: 30 but only 20 rows"),
    "15 folds 1": Bad(study(cross_validation="{folds: 1}"), r"folds' must be greater than or equal to 2 — got 1"),
    "16 unset variable": Bad(study(model='{path: "${FOLDTUNE_NOT_SET}/m"}'), r":2:15: environment variable FOLDTUNE_NOT_SET is not set"),
    "17 password": Bad(study(model="{path: postgres://u:hunter2@h/x}"), r":2:15: a password stands in the study file\n  help:"),
    "17 password in a comment": Bad(study() + "# postgres://u:hunter2@h/x\n", r":7:3: a password stands"),
    "17 password in an escape": Bad(study(model='{path: "postgres:/\\x2fu:hunter2@h"}'), r":2:15: a password stands"),
    "18 too large": Bad("# " + "x" * 40_000, r"larger than 32 KiB: refused"),
    "not a map": Bad("- 1\n- 2\n", r"must be a map of keys, got a list"),
    "broken YAML": Bad("study: [1, 2\nmodel: x\n", r"study\.yaml:2:6: not valid YAML"),
    "two documents": Bad("a: 1\n---\nb: 1\n", r"not valid YAML: .*document"),
    "key is a number": Bad("1: a\n", r":1:1: a key must be text, got the number 1"),
    "key is a list": Bad("? [a]\n: b\n", r"a key must be text, got a list"),
    "both fixed and searched (26)": Bad(
        study(training="{batch_size: 4}"), r":7:12: 'batch_size' is both fixed and searched"
    ),
    "objective of another task": Bad(study(objective="perplexity"), r"'perplexity' needs task causal_lm or seq2seq — got classification"),
    "unknown objective": Bad(study(objective="loss"), r"'objective' must be one of validation_loss, .* — got 'loss'"),
    "unknown task": Bad(study(task="summary"), r"'task' must be one of classification, .*, multi_label, .*, seq2seq — got 'summary'"),
    "task of no kind": Bad(study(task="[a]"), r"'task' must be one of classification, .* — got \['a'\]"),
    "texts of classes": Bad(study(generation="{metrics: [chrf]}"), r":7:14: 'generation\.metrics' needs task seq2seq or causal_lm — got classification"),
    "texts after nothing": Bad(
        study(task=CAUSAL, data="{path: rows.jsonl, text: text}", generation="{metrics: [chrf]}"), r"'generation\.metrics' needs rows .*prompt and completion, or messages — got data\.text"
    ),
    "an unknown metric of texts": Bad(study(task="seq2seq", generation="{metrics: [bleu]}"), r":7:\d+: 'generation\.metrics\.0' must be one of chrf, exact_match — got 'bleu'"),
    "a metric of texts twice": Bad(study(task="seq2seq", generation="{metrics: [chrf, chrf]}"), r":7:14: a metric is named twice"),
    "a length of no texts": Bad(study(task="seq2seq", generation="{max_new_tokens: 9}"), r":7:14: 'generation\.max_new_tokens' has no effect without generation\.metrics"),
    "no tokens to write": Bad(study(task="seq2seq", generation="{metrics: [chrf], max_new_tokens: 0}"), r"'generation\.max_new_tokens' must be greater than or equal to 1 — got 0"),
    "an unknown key of texts": Bad(study(task="seq2seq", generation="{rows: 9}"), r":7:14: unknown key 'generation\.rows'"),
    "an objective of texts that nobody writes": Bad(
        study(task="seq2seq", objective="chrf"), r":7:1: objective chrf is of texts that the models write, and none are asked for\n  help: write generation: \{metrics: \[chrf\]\}"
    ),
    "an objective of other texts": Bad(
        study(task="seq2seq", objective="exact_match", generation="{metrics: [chrf]}"), r":7:1: objective exact_match is of texts"
    ),
    "an objective of texts for classes": Bad(study(objective="chrf"), r"'chrf' needs task seq2seq or causal_lm — got classification"),
    "baselines that write nothing": Bad(
        study(task=CAUSAL, objective="chrf", generation="{metrics: [chrf]}", baselines="[unigram]"), r":9:1: baselines write nothing, so that they have no chrf"
    ),
    "objective of two tasks": Bad(study(task=CAUSAL, objective="f1"), r"'f1' needs task classification or seq2seq_classification or multi_label — got causal_lm"),
    "objective of numbers": Bad(study(objective="mse"), r"'mse' needs task regression — got classification"),
    "smoothing without classes": Bad(
        study(task="regression", training="{label_smoothing: 0.1}"), r":7:12: 'label_smoothing' has no meaning for task regression"
    ),
    "mixup of several labels": Bad(study(task="multi_label", training="{mixup_alpha: 1}"), r"'mixup_alpha' compares .* got task multi_label"),
    "column without effect": Bad(study(data="{path: rows.jsonl, prompt: p}"), r"'data.prompt' has no meaning for task class"),
    "split of a file": Bad(study(data="{path: rows.jsonl, split: train}"), r"'data.split' has a meaning only for a dataset"),
    "revision of a folder": Bad(study(model="{path: ./model, revision: main}"), r"'model.revision' has a meaning only for a hub"),
    "precision": Bad(
        study(model="{path: ./model, precision: float16}"), r":2:24: 'model.precision' must be one of auto, float32, bfloat16 — got 'float16'"
    ),
    "quantization": Bad(study(model="{path: ./model, quantization: int8}"), r":2:24: 'model.quantization' must be one of none, nf4 — got 'int8'"),
    "quantization null": Bad(study(model="{path: ./model, quantization: null}"), r"'model.quantization' must be one of none, nf4 — got None"),
    "gradient checkpointing": Bad(
        study(model="{path: ./model, gradient_checkpointing: yes}"), r"'model.gradient_checkpointing' must be true or false — got 'yes'"
    ),
    "precision as Hugging Face has it": Bad(
        study(training="{bf16: true}"), r":7:12: unknown hyperparameter 'bf16'\n  help: write `model: {precision: bfloat16}`"
    ),
    "half precision": Bad(study(training="{fp16: true}"), r"'fp16'\n  help: float16 is not supported: write `model: {precision: bf"),
    "quantization as Hugging Face has it": Bad(
        study(training="{load_in_4bit: true}"), r"'load_in_4bit'\n  help: write `model: {quantization: nf4}`"
    ),
    "quantization of a model, as Hugging Face has it": Bad(
        study(model="{path: ./model, load_in_4bit: true}"), r"unknown key 'model.load_in_4bit'\n  help: write `model: {quantization: nf4}`"
    ),
    "8 bits": Bad(study(training="{load_in_8bit: true}"), r"help: 8 bits are not supported: write `model: {quantization: nf4}`"),
    "gradient checkpointing as Hugging Face has it": Bad(
        study(training="{gradient_checkpointing: true}"),
        r"'gradient_checkpointing'\n  help: write `model: {gradient_checkpointing: true}`",
    ),
    "gradient checkpointing searched": Bad(
        space("gradient_checkpointing: [true, false]"), r"help: write `model: {gradient_checkpointing: true}`"
    ),
    "gradient checkpointing at the top": Bad(
        study(gradient_checkpointing="true"), r"unknown key 'gradient_checkpointing'\n  help: write `model: {gradient"
    ),
    "empty column name": Bad(study(data="{path: rows.jsonl, text: ''}"), r"'data.text' must have at least 1 character"),
    "two kinds of tagged rows": Bad(
        study(task="token_classification", data="{path: rows.jsonl, tokens: w, spans: s}"), r"rows are tokens with tags, or text with spans — got"
    ),
    "entities of tags without a scheme": Bad(
        study(task="token_classification", objective="entity_f1"), r":7:1: 'entity_f1' needs tags O, B-TYPE and I-TYPE — got NN, VB", 2,
        {"rows.jsonl": jsonl([{"tokens": [f"w{i}", "x"], "tags": ["NN", "VB"]} for i in range(9)])},
    ),
    "stratify without classes": Bad(
        study(task=CAUSAL, cross_validation="{stratify: true}"), r"'stratify: true' needs classes"
    ),
    "pooling without classes": Bad(study(task=CAUSAL, training="{pooling: mean}"), r"'pooling' has no meaning for task c"),
    "pooling searched without classes": Bad(
        study(task=CAUSAL, search="{space: {pooling: [mean]}}"), r":6:\d+: 'pooling' has no meaning for task c"
    ),
    "two kinds of rows": Bad(
        study(task=CAUSAL, data="{path: rows.jsonl, text: t, prompt: p}"), r"got prompt and text|got text and prompt"
    ),
    "alpha rule": Bad(study(training="{lora_alpha: 2x}"), r"multiple of the rank such as 2r — got '2x'"),
    "alpha too large": Bad(study(training="{lora_alpha: " + "9" * 400 + "r}"), r"'lora_alpha' must be"),
    "target_modules": Bad(study(training="{target_modules: query}"), r"or a list of layer names — got 'query'"),
    "escape codes in a key (59)": Bad(
        study() + '"\\e[31mred\\nerror: fake": 1\n', r"unknown key '\\x1b\[31mred\\nerror: fake'"
    ),
}  # fmt: skip

SEARCH_SPACE = {
    "19 low > high": Bad(space(f"{LR}: {{low: 1e-3, high: 1e-5}}"), r":6:\d+: 'learning_rate': low 0\.001 is above high 1e-05"),
    "20 log with 0": Bad(space("weight_decay: {low: 0, high: 1, log: true}"), r"a log scale needs low > 0 — got 0"),
    "20 negative": Bad(space(f"{LR}: {{low: -1, high: 1, log: true}}"), r"'learning_rate.low' must be above 0 .* got -1"),
    "21 step does not lead": Bad(space("epochs: {low: 1, high: 4, step: 2}"), r"step 2 does not lead from 1 to 4"),
    "21 step 0": Bad(space("epochs: {low: 1, high: 4, step: 0}"), r"'epochs.step' must be a number above 0 — got 0"),
    "21 step and log": Bad(space("epochs: {low: 1, high: 4, step: 1, log: true}"), r"log and step exclude each other"),
    "21 broken step": Bad(space("epochs: {low: 1, high: 4, step: 1.5}"), r"'epochs.step' must be a whole number — got 1\.5"),
    "21 tiny step": Bad(space("lora_dropout: {low: 0, high: 0.9, step: 1e-300}", "grid"), r"makes more than 100000 values"),
    "22 equal choices": Bad(space("batch_size: [1, 1.0]"), r"choices 1 and 1\.0 are equal"),
    "22 true": Bad(space("batch_size: [1, true]"), r"'batch_size' must be a whole number — got True"),
    "23 NaN": Bad(space(f"{LR}: {{low: 1e-5, high: .nan}}"), r"'learning_rate.high' must be .* — got nan"),
    "23 infinity": Bad(space(f"{LR}: [.inf]"), r"'learning_rate' must be .* — got inf"),
    "24 list choice": Bad(space("batch_size: [[1, 2]]"), r"choices must be text, numbers, true/false or null — got \[1, 2\]"),
    "24 no choices": Bad(space("batch_size: []"), r"a list of at least one value — got \[\]"),
    "24 a bare value": Bad(space("batch_size: 8"), r"must be a list of choices or a map with low and high — got 8"),
    "25 grid with a range": Bad(space(f"{LR}: {{low: 1e-4, high: 1e-3}}", "grid"), r"'learning_rate': a grid needs choices or a step"),
    "25 grid too large": Bad(
        space("epochs: {low: 1, high: 1000}, max_grad_norm: {low: 0, high: 100000, step: 1}", "grid"),
        r"at most 10000 points — got 100001000",
    ),
    "25 grid and trials": Bad(
        space("epochs: {low: 1, high: 3}", "grid") + "budget: {trials: 5}\n",
        r":7:10: a grid of 3 points runs all of them — got budget.trials 5",
    ),
    "27 unknown": Bad(space("learning_rat: [1e-3]"), r"unknown hyperparameter 'learning_rat'\n  help: did you mean 'learning_rate'\?"),
    "27 not searchable": Bad(space("max_length: [64, 128]"), r"'max_length' cannot be searched; set it under training"),
    "28 cmaes": Bad(space("epochs: [1]", "cmaes"), r"'search.sampler' must be one of tpe, grid, random, gp — got 'cmaes'"),
    "29 pruner": Bad(study(search="{pruner: asha, space: {epochs: [1, 2]}}"), r"unknown key 'search.pruner'"),
    "30 a condition that is no map": Bad(space("lora_rank: {choices: [4], when: lora}, method: [lora, head]"), r":6:\d+: 'lora_rank.when' must be a map .* — got 'lora'"),
    "30 no condition": Bad(space("lora_rank: {choices: [4], when: {}}"), r"'lora_rank.when' must be a map .* — got \{\}"),
    "30 a condition on what is fixed": Bad(space("lora_rank: {choices: [4], when: {method: lora}}"), r":6:\d+: 'lora_rank.when' needs 'method' to be searched"),
    "30 a condition on nothing": Bad(space("lora_rank: {choices: [4], when: {methd: lora}}"), r"'lora_rank.when': unknown hyperparameter 'methd' — did you mean 'method'\?"),
    "30 a condition on a range": Bad(space("r: {choices: [4], when: {epochs: 1}}, epochs: {low: 1, high: 2}"), r"'epochs' must be a list of choices, and it is a range"),
    "30 a condition on no choice": Bad(space("r: {choices: [4], when: {method: full}}, method: [lora, head]"), r"'method' has no choice 'full' — choices are lora, head"),
    "30 a condition on no value": Bad(space("r: {choices: [4], when: {method: dora2}}, method: [lora, head]"), r"'lora_rank.when': 'method' must be one of lora, dora, head, full — got 'dora2'"),
    "30 a condition on an empty list": Bad(space("r: {choices: [4], when: {method: []}}, method: [lora, head]"), r"'method' needs at least one value"),
    "30 a condition with a value twice": Bad(space("r: {choices: [4], when: {epochs: [1, 1.0]}}, epochs: [1, 2]"), r"'epochs' has the same value twice"),
    "30 a condition by two names": Bad(space("batch_size: {choices: [4], when: {r: 4, lora_r: 4}}, r: [4, 8]"), r"'lora_r' is given twice, by two names"),
    "30 conditions in a circle": Bad(space("r: {choices: [4, 8], when: {batch_size: 4}}, batch_size: {choices: [4, 8], when: {r: 4}}"), r":6:\d+: 'lora_rank.when' leads back to itself: lora_rank needs batch_size needs lora_rank"),
    "30 a condition on itself": Bad(space("r: {choices: [4, 8], when: {r: 4}}", "grid"), r"'lora_rank.when' leads back to itself"),
    "30 a condition that always holds": Bad(space("r: {choices: [4], when: {method: [lora, head]}}, method: [lora, head]"), r"'lora_rank.when': 'method' has no other choice, so that it always holds"),
    "30 a condition that never holds": Bad(
        space("batch_size: {choices: [4], when: {method: head, r: 4}}, r: {choices: [4, 8], when: {method: lora}}, method: [lora, head]"),
        r"'batch_size.when' never holds: what it needs wants different values of 'method'",
    ),
    "30 adapters where there are none": Bad(
        space("r: {choices: [4, 8], when: {method: head}}, method: [lora, head]"), r"'lora_rank' has no effect with method head, which has no adapters"
    ),
    "30 epochs that are shared and wait": Bad(
        study(
            share_epochs="true", training="{lr_schedule: constant, warmup_ratio: 0}",
            search="{sampler: random, space: {epochs: [1, 2], batch_size: {choices: [4, 8], when: {epochs: 2}}}}",
        ),
        r":6:\d+: with 'share_epochs' every trial has epochs, and no other hyperparameter may depend on them",
    ),
    "30 the model among the hyperparameters": Bad(space("model: [a, b]"), r"unknown hyperparameter 'model'\n  help: write `model: \[ONE, OTHER\]`"),
    "one model in a list": Bad(study(model="[./model]"), r":2:1: 'model' as a list needs at least 2 models to choose from — got 1"),
    "no model in a list": Bad(study(model="[]"), r":2:1: 'model' as a list needs at least 2 models to choose from — got 0"),
    "a model twice": Bad(study(model="[./model, {path: ./model, precision: float32}]"), r":2:18: model './model' is given twice: a model is told by its path"),
    "a model of several that is not there": Bad(study(model="[./model, ./other]"), r":2:18: model './other': no such folder"),
    "a key of a model of several": Bad(study(model="[./model, {path: ./other, precison: float32}]"), r":2:34: unknown key 'model.1.precison'\n  help: did you mean 'precision'"),
    "a model of several without a path": Bad(study(model="[./model, {precision: float32}]"), r":2:18: missing 'model.1.path'"),
    "a number among models": Bad(study(model="[./model, 3]"), r":2:18: 'model.1' must be a map of keys — got 3"),
    "revision of one folder of several": Bad(study(model="[./model, {path: ./model2, revision: main}]"), r":2:35: 'model.revision' has a meaning only for a hub"),
    "models as a key": Bad(study(models="[./a, ./b]"), r":7:1: unknown key 'models'\n  help: write a list under `model`"),
    "a grid over models": Bad(study(model="[./model, ./m2]", search="{sampler: grid, space: {r: [4, 8]}}", budget="{trials: 3}"), r"a grid of 4 points runs all of them — got budget.trials 3"),
    "a condition on no model": Bad(
        study(model="[./model, ./m2]", search="{space: {r: {choices: [4, 8], when: {model: ./m3}}}}"), r"'model' has no choice './m3' — choices are ./model, ./m2"
    ),
    "a condition on the only model": Bad(space("r: {choices: [4, 8], when: {model: ./model}}"), r"'lora_rank.when' needs 'model' to be searched"),
    "models with different tokenizers, and tokens are scored": Bad(
        study(model="[./model, ./other]", task=CAUSAL, data="{path: rows.jsonl, text: text}"),
        r":2:1: task causal_lm is scored in nats of tokens, .*; models with one tokenizer can be compared, and any for classification", 2,
        {"other/config.json": "{}", "other/model.safetensors": b"", "other/tokenizer.json": "{}"},
    ),
    "range of words": Bad(space("pooling: {low: 1, high: 2}"), r"'pooling' is no plain number: give a list of choices"),
    "missing high": Bad(space("epochs: {low: 1}"), r"'epochs': missing 'high'"),
    "unknown key of a range": Bad(space("epochs: {low: 1, high: 2, logg: true}"), r"unknown key 'logg' — did you mean 'log'\?"),
    "choices and more": Bad(space("epochs: {choices: [1], low: 2}"), r"choices stand alone, got also low"),
}  # fmt: skip

TAGGED, ASKED = study(task="token_classification"), study(task="question_answering")
NUMBERS, SEVERAL = study(task="regression"), study(task="multi_label")
PROMPTS = study(task=CAUSAL, data="{path: rows.jsonl, prompt: p, completion: c}")
DATASET = {
    "no such file": Bad(study(data="{path: none.jsonl}"), r"none\.jsonl: no such file \(looked for ", 65),
    "a folder": Bad(study(data="{path: model, format: csv}"), r"is a directory, expected a data file", 65),
    "a name too long for a file": Bad(study(data=f"{{path: {'a' * 3000}.csv}}"), r"no such file", 65),
    "no such user": Bad(study(data="{path: ~nobody-here/rows.csv}"), r"no such file", 65),
    "empty": data("", r"rows\.jsonl: no rows"),
    "empty, language model": data("", r"no rows", text=study(task=CAUSAL)),
    "31 broken line": data(jsonl() + '{"text": "a", "label": "b"\n', r"error\[data-json\] rows\.jsonl:21:27: not valid JSON"),
    "31 many broken lines": data("{\n" * 9, r"rows\.jsonl:5:2: not valid JSON(.|\n)*and 4 more lines"),
    "31 endless number": data('{"text": ' + "1" * 5000 + "}\n", r"rows\.jsonl:1: not valid JSON"),
    "31 deep": data("[" * 9 + "\n", r"looks like one JSON list"),
    "31 too deep": data('{"a": ' + "[" * 100_000 + "\n", r"rows\.jsonl:1: not valid JSON: maximum recursion"),
    "32 one list": data(json.dumps(ROWS), r"looks like one JSON list, expected one object a line"),
    "32 .json": data(jsonl(), r"suffix must be one of \.jsonl.* — got '\.json'\n  help: .*format: jsonl", name="rows.json"),
    "32 row is no object": data(jsonl() + "7\n", r":21: a row must be an object \{\.\.\.\} — got '7'"),
    "33 wrong column": data("txt,label\na,b\n", r"rows\.csv:2: no column 'text' in any row \(there is label, txt\)\n.*'txt'\?", name="rows.csv"),
    "33 ragged": data("text,label\na,b\na,b,c\n", r"rows\.csv:3: 3 cells but 2 columns", name="rows.csv"),
    "33 NUL": data("text,label\na,\0\n", r"rows\.csv:2: holds the character U\+0000", name="rows.csv"),
    "33 unquoted newline": data('text,label\n"a\n",b\na\nb,c\n', r"rows\.csv:4: 1 cells but 2 columns", name="rows.csv"),
    "33 open quote": data('text,label\n"a,b\n', r"rows\.csv:2: not valid CSV", name="rows.csv"),
    "33 column twice": data("text,text\na,b\n", r"rows\.csv:1: column names repeat", name="rows.csv"),
    "33 column missing in a row": data(rows({"text": "a"}), r":21: no column 'label' \(there is text\)"),
    "34 number": data(rows({"text": 5, "label": "a"}), r"error\[data-type\] rows\.jsonl:21: 'text' must be text — got 5"),
    "34 null": data(rows({"text": None, "label": "a"}), r":21: 'text' must be text — got None"),
    "34 label list": data(rows({"text": "x", "label": ["a"]}), r":21: 'label' must be text or a whole number — got \['a'\]"),
    "34 label NaN": data(jsonl() + '{"text": "x", "label": NaN}\n', r":21: 'label' must be text or a whole number — got nan"),
    "34 five shown": data(jsonl([{"text": 1, "label": "a"}] * 9), r":5: 'text' must be(.|\n)*and 4 more rows"),
    "34 no number": data(jsonl([{"text": f"t{i}", "label": i} for i in range(9)] + [{"text": "x", "label": "tall"}]), r":10: 'label' must be a number — got 'tall'", text=NUMBERS),
    "34 a number that is none": data('{"text": "x", "label": NaN}\n', r":1: 'label' must be a finite number — got nan", text=NUMBERS),
    "34 an endless number": data('{"text": "x", "label": 1' + "0" * 400 + "}\n", r":1: 'label' must be a finite number", text=NUMBERS),
    "34 a number in a list": data(jsonl([{"text": "x", "label": [1]}]), r":1: 'label' must be a number — got \[1\]", text=NUMBERS),
    "34 a number in words": data("text,label\na,1.5\nb,many\n", r"rows\.csv:3: 'label' must be a number — got 'many'", name="rows.csv", text=study(task="regression", data="{path: rows.csv}")),
    "34 one label, no list": data(jsonl([{"text": "x", "label": "a"}]), r":1: 'label' must be a list of class names — got 'a'", text=SEVERAL),
    "34 a label that is a list": data(jsonl([{"text": "x", "label": [["a"]]}]), r":1: 'label' must be a list of class names — got \['a'\] in it", text=SEVERAL),
    "34 a label twice": data(jsonl([{"text": "x", "label": ["a", "a"]}]), r":1: 'label' must name each class once — got 'a' twice", text=SEVERAL),
    "34 a label with U+0000": data(jsonl([{"text": "x", "label": ["a\0"]}]), r":1: 'label' holds the character U", text=SEVERAL),
    "42 no label at all": data(jsonl([{"text": f"t{i}", "label": []} for i in range(9)]), r"multi_label needs at least 1 class", text=SEVERAL),
    "42 one number": data(jsonl([{"text": f"t{i}", "label": 3} for i in range(9)]), r"needs at least 2 different numbers — got only 3", text=NUMBERS),
    "34 tokens as text": data(jsonl([{"tokens": "a b", "tags": ["O", "O"]}]), r":1: 'tokens' must be a list of words — got 'a b'", text=TAGGED),
    "34 an empty token": data(jsonl([{"tokens": ["a", " "], "tags": ["O", "O"]}]), r":1: 'tokens' must be a list of words, all text — got ' ' in it", text=TAGGED),
    "34 a tag that is a number": data(jsonl([{"tokens": ["a"], "tags": [3]}]), r":1: 'tags' must be a list of words, all text — got 3 in it", text=TAGGED),
    "34 fewer tags than tokens": data(jsonl([{"tokens": ["a", "b"], "tags": ["O"]}]), r"\[data-fit\] .*:1: 'tags' must have one tag for each of 2 tokens — got 1", text=TAGGED),
    "34 spans of no form": data(jsonl([{"text": "a b", "spans": [{"start": 0, "end": 1}]}]), r":1: 'spans' must be a list of \{start, end, label\} — got", text=TAGGED),
    "34 a span before the text": data(jsonl([{"text": "a b", "spans": [{"start": -1, "end": 1, "label": "x"}]}]), r":1: 'spans' must be .*, characters from 0", text=TAGGED),
    "34 a span behind the text": data(jsonl([{"text": "a b", "spans": [{"start": 2, "end": 4, "label": "x"}]}]), r":1: 'spans' must lie within a text of 3 characters", text=TAGGED),
    "34 a span of nothing": data(jsonl([{"text": "a  b", "spans": [{"start": 1, "end": 2, "label": "x"}]}]), r":1: 'spans' must cover a word", text=TAGGED),
    "34 spans that overlap": data(
        jsonl([{"text": "ab c", "spans": [{"start": 0, "end": 1, "label": "x"}, {"start": 1, "end": 4, "label": "y"}]}]),
        r":1: 'spans' must not share a word with another span", text=TAGGED,
    ),
    "42 one tag": data(jsonl([{"tokens": [f"w{i}"], "tags": ["O"]} for i in range(9)]), r"needs at least 2 tags — got only 'O'", text=TAGGED),
    "34 an answer elsewhere": data(
        jsonl([{"context": "a red fruit", "question": "which?", "answer": "red", "answer_start": 3}] * 2),
        r":1: 'answer_start' must be where the answer stands: there is 'ed ', and the answer is 'red'(.|\n)*:2: 'answer_start'", text=ASKED,
    ),
    "34 an answer nowhere": data(
        jsonl([{"context": "a", "question": "b", "answer": "a", "answer_start": "x"}]), r":1: 'answer_start' must be the number of a character", text=ASKED
    ),
    "35 an empty question": data(jsonl([{"context": "a", "question": " ", "answer": "a", "answer_start": 0}]), r":1: 'question' is empty", text=ASKED),
    "35 an empty target": data(
        jsonl([{"source": "a", "target": ""}] * 2), r":1: 'target' is empty(.|\n)*:2: 'target' is empty", text=study(task="seq2seq")
    ),
    "33 no target": data(jsonl([{"source": "a", "tgt": "b"}]), r":1: no column 'target' in any row \(there is source, tgt\)", text=study(task="seq2seq")),
    "34 a pair's second text": data(
        rows({"text": "a", "b": 3, "label": "a"}), r":21: 'b' must be text — got 3", text=study(data="{path: rows.jsonl, text_pair: b}")
    ),
    "35 blank text": data(rows({"text": " \t", "label": "a"}), r"error\[data-empty\] rows\.jsonl:21: 'text' is empty"),
    "35 blank completion": data(jsonl([{"p": "a", "c": " "}] * 5), r"rows\.jsonl:1: 'c' is empty", text=PROMPTS),
    "35 no assistant": data(
        jsonl([{"messages": [{"role": "user", "content": "a"}]}] * 5),
        r":1: 'messages' has no assistant turn",
        text=study(task=CAUSAL),
    ),
    "34 messages": data(jsonl([{"messages": ["hi"]}] * 5), r"list of \{role, content\}, both text — got 'hi'", text=study(task=CAUSAL)),
    "no known columns": data(jsonl([{"body": "a"}] * 5), r"rows must have text, prompt.*\n  help: columns are body", text=study(task=CAUSAL)),
    "36 all rows equal": Bad(study(), r"folds: 4 but only 2 groups", 2, {"rows.jsonl": jsonl([{"text": "x", "label": "a"}, {"text": "y", "label": "b"}] * 9)}),
    "38 gz truncated": data(gzip.compress(jsonl().encode())[:-12], r"rows\.jsonl\.gz: cannot be read", name="rows.jsonl.gz"),
    "38 gz damaged": data(gzip.compress(jsonl().encode())[:20] + b"\xff" * 40, r"cannot be read", name="rows.jsonl.gz"),
    "38 not gz": data(jsonl(), r"cannot be read: Not a gzipped file", name="rows.jsonl.gz"),
    "38 no Parquet": data(b"PK\x03\x04", r"is not a Parquet file \(starts with b'PK", name="rows.parquet"),
    "38 Parquet without footer": data(b"PAR1" + b"x" * 50, r"rows\.parquet: is a damaged Parquet file", name="rows.parquet"),
    "39 Latin-1": data(jsonl().encode() + b'{"text": "caf\xe9"}\n', r"rows\.jsonl:21: not UTF-8 at byte \d+ \(0xE9\)"),
    "39 surrogate": data(jsonl() + '{"text": "\\ud800", "label": "a"}\n', r"rows\.jsonl:21: 'text' holds half a surrogate pair"),
    "39 U+0000": data(rows({"text": "a\0", "label": "a"}), r"rows\.jsonl:21: 'text' holds the character U\+0000"),
    "42 one class": data(jsonl([{"text": f"t{i}", "label": "a"} for i in range(9)]), r"needs at least 2 classes — got only 'a'"),
    "42 no group column": data(jsonl(), r"no column 'author' in any row", text=study(data="{path: rows.jsonl, group: author}")),
    "42 fewer groups than folds": Bad(
        study(data="{path: rows.jsonl, group: g}"), r"folds: 4 but only 2 groups", 2,
        {"rows.jsonl": jsonl([{**row, "g": index % 2} for index, row in enumerate(ROWS)])},
    ),
    "a pool that is not there": data(jsonl(), r"none\.jsonl: no such file", text=POOL.replace("pool.jsonl", "none.jsonl")),
    "a pool without text": Bad(POOL, r"pool\.jsonl:1: no column 'text' in any row \(there is txt\)\n  help: did you", 65, {"pool.jsonl": jsonl([{"txt": "a"}])}),
    "an empty pool": Bad(POOL, r"pool\.jsonl: no rows", 65, {"pool.jsonl": ""}),
    "a pool with an empty text": Bad(POOL, r"pool\.jsonl:2: 'text' is empty", 65, {"pool.jsonl": jsonl([{"text": "a"}, {"text": " "}])}),
    "paraphrases of what is learnt": Bad(
        study(task=CAUSAL, augmentation="{paraphraser: {path: ./model}}", training="{paraphrases: 1}"), r":8:12: 'paraphrases' needs rows of prompt"
    ),
    "texts after rows of text": Bad(
        study(task=CAUSAL, generation="{metrics: [chrf]}"), r":7:14: 'generation\.metrics' needs rows with something to answer.* — got rows of text"
    ),
    "escape codes in a column (59)": data(jsonl([{"\x1b[2J": 1}]), r"no column 'text' in any row \(there is \\x1b\[2J\)"),
}  # fmt: skip

ADAPTER = study(model="{path: ./adapter}")
MODEL = {
    "no folder": Bad(study(model="{path: ./none}"), r"error\[model\] .*:2:9: model './none': no such folder"),
    "short form": Bad(study(model="./none"), r":2:1: model './none': no such folder"),
    "a file": Bad(study(model="{path: rows.jsonl}"), r"rows\.jsonl is a file, expected a folder"),
    "no such package": Bad(study(model="{path: 'package:not_here/m'}"), r"no installed package 'not_here'\n  help: pip"),
    "package without a spec": Bad(study(model="{path: 'package:__main__/m'}"), r"no installed package '__main__'"),
    "module, no package": Bad(study(model="{path: 'package:this/m'}"), r"no installed package 'this'"),
    "no folder in the package": Bad(study(model="{path: 'package:orchestrator/none'}"), r"no such folder"),
    "out of the package": Bad(study(model="{path: 'package:orchestrator/../tests'}"), r"leads out of the package"),
    "47 no config": Bad(ADAPTER, r"no config\.json in", 2, {"adapter/model.safetensors": b""}),
    "47 damaged config": Bad(study(), r"config\.json is no JSON object", 2, {"model/config.json": "{"}),
    "48 auto_map": Bad(study(), r"asks to run its own code, which foldtune never", 2, {"model/config.json": '{"auto_map": {"A": "b"}}'}),
    "48 shard elsewhere": Bad(
        study(), r"names the shard '\.\./\.\./x', which is not", 2,
        {"model/model.safetensors.index.json": '{"weight_map": {"a": "../../x"}}'},
    ),
    "49 adapter": Bad(
        ADAPTER, r"is a LoRA adapter for some/base, not a base model", 2,
        {"adapter/adapter_config.json": '{"base_model_name_or_path": "some/base"}'},
    ),
    "49 damaged adapter": Bad(ADAPTER, r"is a LoRA adapter for another model", 2, {"adapter/adapter_config.json": "[]"}),
    "no safetensors": Bad(ADAPTER, r"no \*\.safetensors in .*other weight formats can run code", 2, {"adapter/config.json": '{"a": 1}'}),
}  # fmt: skip


def config(kind: str, name: str, **more: object) -> dict[str, str | bytes]:
    return {"model/config.json": json.dumps({"model_type": kind, "architectures": [name], **more})}


BERT, T5 = config("bert", "BertForMaskedLM"), config("t5", "T5ForConditionalGeneration", is_encoder_decoder=True)
GPT2 = config("gpt2", "GPT2LMHeadModel")
FAMILY = {
    "causal_lm with an encoder": Bad(
        study(task=CAUSAL), r"error\[model\] .*:2:9: model './model': task causal_lm needs a model that writes, .* — got an encoder, BertForMaskedLM\n  help: name", 2,
        {**BERT, "rows.jsonl": jsonl([{"text": f"t{i}"} for i in range(9)])},
    ),
    "causal_lm with an unknown encoder": Bad(study(task=CAUSAL), r"got an encoder, NewForMaskedLM", 2, config("new", "NewForMaskedLM")),
    "causal_lm with an encoder-decoder": Bad(
        study(task=CAUSAL), r"needs a decoder, .* — got an encoder-decoder, T5ForCond.*\n  help: use task seq2seq", 2, T5
    ),
    "seq2seq with a decoder": Bad(study(task="seq2seq"), r"task seq2seq needs an encoder-decoder, such as T5 — got no encoder-decoder, GPT2LMH", 2, GPT2),
    "seq2seq with an encoder": Bad(study(task="seq2seq"), r"task seq2seq needs an encoder-decoder, such as T5 — got an encoder, BertFor", 2, BERT),
    "answers by an encoder-decoder": Bad(study(task="question_answering"), r"needs a model that reads both ways, .* — got an encoder-decoder", 2, T5),
    "a paraphraser that only reads": Bad(
        study(augmentation="{paraphraser: {path: ./model}}", training="{paraphrases: 1}"), r":7:30: model './model': a paraphraser needs .* got an encoder", 2, BERT
    ),
    "a generator with an encoder": Bad(
        study(augmentation="{generator: {path: ./model}}", training="{synthetic: 1}"), r"a generator needs a decoder, .* got an encoder-decoder", 2, T5
    ),
}  # fmt: skip
PROMPTING = {
    "few-shot without the label": Bad(
        study(baselines='{template: "{text} is"}'), r"'baselines' template must have the field \{label\} once — got '\{text\} is'"
    ),
    "few-shot without the text": Bad(study(baselines='{template: "It is {label}"}'), r"template must have the field \{text\} once"),
    "few-shot with the label in front": Bad(study(baselines='{template: "{label}: {text}"}'), r"template must end with \{label\}"),
    "an unknown baseline": Bad(study(baselines="[tfdif]"), r":7:13: no baseline of task classification: 'tfdif'\n  help: did you mean 'tfidf'"),
    "a generator's prompt without the label": Bad(
        study(augmentation="{generator: {path: ./model, prompt: $examples}}", training="{synthetic: 1}"), r"'augmentation\.generator\.prompt' must have \$label in it"
    ),
}  # fmt: skip

CASES = {**STUDY_YAML, **SEARCH_SPACE, **DATASET, **MODEL, **FAMILY, **PROMPTING}


@pytest.mark.parametrize("task", forms.TASKS)
@pytest.mark.parametrize("files", [BERT, GPT2, T5, config("bert", "BertLMHeadModel", is_decoder=True)], ids=str)
def test_a_model_that_may_do_its_task_is_not_refused(task: str, files: dict[str, str | bytes]) -> None:
    """Which is refused where: the table of transformers' automatic classes, and what the engine refuses."""
    said = json.loads(files["model/config.json"])
    kind = "halves" if said.get("is_encoder_decoder") else "encoder" if "Masked" in str(said) else "decoder"
    refused = {("causal_lm", "encoder"), ("causal_lm", "halves"), ("question_answering", "halves")}
    refused |= {(name, kind) for name in ("seq2seq", "seq2seq_classification") for kind in ("encoder", "decoder")}
    assert bool(families.problem(task, said)) == ((task, kind) in refused)
    assert families.problem(task, {**said, "architectures": None}) == ""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_ends_with_one_clear_message(
    case: Bad, foldtune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = foldtune("check", folder(tmp_path, case.study, case.files))
    assert re.search(case.expected, err), err
    assert code == case.code
    assert out == ""
    assert err.startswith("error[")
    assert "Traceback" not in err
    assert "hunter2" not in err
    assert not (tmp_path / "pwned").exists()
    assert "\x1b" not in err


def test_the_study_that_the_cases_break_is_valid(foldtune: Run, tmp_path: Path) -> None:
    code, out, err = foldtune("check", folder(tmp_path))
    assert (code, err.splitlines()[-1]) == (
        0,
        f"{tmp_path / 'study.yaml'} is a valid study: 20 rows, 2 classes, 20 trials",
    )
    assert re.search(r"batch_size +choices \[4, 8\] +line 6", out)


def test_check_says_what_a_worker_here_would_lack_for_4_bits(
    foldtune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    path = folder(tmp_path, study(model="{path: ./model, quantization: nf4}"))
    for found in (None, find_spec("json")):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest, f=found: f if name == "bitsandbytes" else find_spec(name)
        )
        code, _, err = foldtune("check", path)
        assert code == 0
        missing = (
            "nf4 needs bitsandbytes on every worker, and it is not installed here; pip install 'foldtune[quantized]'"
        )
        assert (missing in err) == (found is None)


@pytest.mark.parametrize("name", ["none.yaml", "", "x" * 5000, "study.yaml/x"])
def test_a_missing_study_file_is_named(name: str, foldtune: Run, tmp_path: Path) -> None:
    folder(tmp_path)
    code, _, err = foldtune("check", tmp_path / name)
    assert code == 2
    assert re.match(r"error\[file\] .*(no such file \(looked in |is a directory|cannot be read)", err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_study_file_is_named_with_its_mode(foldtune: Run, tmp_path: Path) -> None:
    path = folder(tmp_path)
    path.chmod(0)
    code, _, err = foldtune("check", path)
    assert (code, "permission denied (mode 0o0" in err) == (2, True)


def test_all_errors_of_a_file_are_said_at_once_in_its_order(foldtune: Run, tmp_path: Path) -> None:
    text = study(
        study="a b",
        task=CAUSAL,
        data="{path: rows.jsonl, label: l, txt: t}",
        cross_validation="{folds: 1}",
        search="{sampler: grid, space: {lr: {low: 1e-4, high: 1e-3}, epocs: [1]}}",
        objective="accuracy",
        training="{lora_rank: 0, pooling: mean}",
        budget="{trials: 0}",
    )
    code, _, err = foldtune("check", folder(tmp_path, text))
    assert code == 2
    found = [line for line in err.splitlines() if line.startswith("error[")]
    expected = [
        "'study' name must match",
        "'data.label' has no meaning",
        "unknown key 'data.txt'",
        "folds' must be greater",
        "a grid needs choices",
        "unknown hyperparameter 'epocs'",
        "'accuracy' needs task classification",
        "'lora_rank' must be at least 1",
        "'pooling' has no meaning",
        "'budget.trials' must be greater",
    ]
    assert len(found) == len(expected), err
    assert all(part in line for part, line in zip(expected, found, strict=True)), err


def test_model_and_data_are_both_said_to_be_missing(foldtune: Run, tmp_path: Path) -> None:
    code, _, err = foldtune("check", folder(tmp_path, study(model="./none", data="{path: none.csv}")))
    assert (code, err.count("error[")) == (2, 2)


def test_at_most_twenty_errors_are_listed(foldtune: Run, tmp_path: Path) -> None:
    _, _, err = foldtune("check", folder(tmp_path, study() + "".join(f"key{index}: 1\n" for index in range(50))))
    assert err.count("error[") == 20
    assert err.endswith("... and 30 more\n")


@pytest.mark.parametrize("verb", ["check", "launch", "run"])
@pytest.mark.parametrize("case", ["8 unknown key", "14 folds > rows", "31 broken line", "49 adapter"])
def test_a_bad_file_never_starts_the_database(verb: str, case: str, foldtune: Run, tmp_path: Path) -> None:
    bad = CASES[case]
    code, out, err = foldtune(verb, folder(tmp_path, bad.study, bad.files))
    assert (code, out) == (bad.code, "")
    assert re.search(bad.expected, err)  # and the fixture asserts that FOLDTUNE_HOME was not made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chek"], "No such command 'chek'"),
        (["check"], "Missing argument 'FILE'"),
        (["check", "--fast", "x"], "No such option.*--fast"),
        (["run", "x.yaml", "--workers", "0"], "0 is not in the range x>=1"),
        (["run", "x.yaml", "--workers"], "requires an argument"),
        (["resume", "q", "--trials", "-3"], "-3 is not in the range x>=1"),
        (["dashboard", "--port", "99999"], "99999 is not in the range"),
        (["worker", "--idle-exit", "-1"], "-1.0 is not in the range x>=0"),
        (["best", "q", "--storage", "mysql://u:hunter2@h/d"], "error: .*Postgres"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], expected: str, foldtune: Run) -> None:
    code, out, err = foldtune(*arguments)
    assert (code, out) == (2, "")
    assert re.search(expected, err), err
    assert "Traceback" not in err
    assert "hunter2" not in err


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
YAMLISH = st.lists(
    st.sampled_from(
        [
            *"[]{},:-?&*!|>'\"%@`#~= \n\t",
            *("a", "&a ", "*a", "<<", "!!int ", "!!bool ", "1e9", "0x", "-.inf", "\\ud800"),
            *("study: ", "model: ", "data: ", "{path: ", "search: ", "space: ", "epochs: ", "low: ", "high: ", "\n  "),
        ]
    ),
    max_size=40,
).map("".join)


def quiet_check(capfd: pytest.CaptureFixture[str], path: Path) -> None:
    with mock.patch.object(sys, "argv", ["foldtune", "check", str(path)]), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, 2, 65), capfd.readouterr().err
    assert "Traceback" not in capfd.readouterr().err


@given(content=st.one_of(YAMLISH.map(str.encode), st.text(max_size=60).map(str.encode), st.binary(max_size=60)))
@example(content=b"&a [&a ")
@FUZZ
def test_no_study_file_is_a_bug(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quiet_check(capfd, folder(tmp_path, content))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["tpe", "grid", "2r"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["low", "high", "log", "step", "choices", "path", "a"]), inner, max_size=4)
    ),
    max_leaves=6,
)
KEYS = ["study", "model", "task", "data", "cross_validation", "search", "training", "budget", "objective", "seed"]
NAMES = ["learning_rate", "lr", "batch_size", "epochs", "lora_alpha", "pooling", "target_modules", "lora_dropout"]


@given(
    sections=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    searched=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    fixed=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    sampler=st.sampled_from(["tpe", "grid"]),
)
@FUZZ
def test_no_value_of_a_study_file_is_a_bug(
    sections: dict[str, object],
    searched: dict[str, object],
    fixed: dict[str, object],
    sampler: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    values: dict[str, object] = {"training": fixed, "search": {"sampler": sampler, "space": searched}, **sections}
    text = study(**{key: json.dumps(value) for key, value in values.items()})
    quiet_check(capfd, folder(tmp_path, text))


@given(
    name=st.sampled_from(["rows.jsonl", "rows.csv", "rows.jsonl.gz", "rows.parquet"]),
    content=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='{}[]:,"\\ue0\n\r\t a1-', max_size=60).map(str.encode),
        st.lists(st.dictionaries(st.sampled_from(["text", "label"]), VALUES, min_size=1), min_size=1, max_size=6).map(
            lambda found: jsonl(list(found)).encode()
        ),
    ),
    magic=st.booleans(),
)
@FUZZ
def test_no_data_file_is_a_bug(
    name: str, content: bytes, magic: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if magic:
        content = {"z": gzip.compress(content)[:-1], "t": b"PAR1" + content + b"PAR1"}.get(name[-1], content)
    quiet_check(capfd, folder(tmp_path, study(data=f"{{path: {name}}}"), {name: content}))
