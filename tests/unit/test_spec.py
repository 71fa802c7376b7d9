"""Study files: defaults, origins, digests, the smoke form, the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import baselines, document, objective, space, spec, study_file
from orchestrator.contract import Generation, Settings
from orchestrator.reading import TRIAL_STATES
from orchestrator.spec import StudySpec
from tests.unit import study_text
from trial_worker import units

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def load(text: str) -> study_file.LoadedStudy:
    return study_file.resolve(document.parse(text, "study.yaml"), Path())


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} >= {"glosses", "grid", "causal"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_repository_are_valid_whole_and_as_smoke(path: Path) -> None:
    loaded = study_file.load(path)
    assert loaded.spec.study == path.stem
    small = study_file.smoke(loaded).spec
    assert StudySpec.model_validate_json(small.model_dump_json()) == small
    assert (small.budget.trials, small.cross_validation.folds, small.cross_validation.repeats) == (1, 2, 1)
    assert (small.training["epochs"], small.data.limit) == (1, 40)


def test_a_spec_comes_back_from_json_with_its_digest() -> None:
    wanted = load(study_text.study(training="{lora_alpha: 8, target_modules: [query]}", budget="{hours: 2}")).spec
    back = StudySpec.model_validate(json.loads(wanted.model_dump_json()))
    assert back == wanted
    assert back.digest() == wanted.digest()


def test_everything_that_is_not_searched_has_its_default() -> None:
    loaded = load(study_text.space("lr: {low: 1e-5, high: 1e-2, log: true}, r: [4]"))
    assert set(loaded.spec.training) == set(Settings.__dataclass_fields__) - {"learning_rate", "lora_rank"}
    assert space.settings(loaded.spec.training, {"learning_rate": 2e-4, "lora_rank": 16}) == space.settings({}, {})
    assert loaded.spec.budget.trials == 20
    assert loaded.spec.data.text == "text"


def test_every_value_says_where_it_comes_from() -> None:
    text = study_text.study(training="{num_train_epochs: 2}", search="{space: {lr: [0.1]}}")
    origins = load(text).origins
    assert origins["training.epochs"] == "line 7, written num_train_epochs"
    assert origins["search.space.learning_rate"] == "line 6, written lr"
    assert origins["model.path"] == "line 2"
    assert origins["search.sampler"] == origins["training.lora_rank"] == "default"
    assert load(text.replace("{path: ./model}", "./model")).origins["model.path"] == "line 2"


@given(order=st.permutations(study_text.study(seed="3", training="{epochs: 2, lora_rank: 4}").splitlines()))
def test_the_digest_does_not_depend_on_the_order_of_keys(order: list[str]) -> None:
    assert load("\n".join(order)).spec.digest() == load("\n".join(sorted(order))).spec.digest()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ({"budget": "{trials: 3}"}, {"budget": "{trials: 9, hours: 1}"}, True),
        ({"training": "{epochs: 3}"}, {}, True),
        ({"training": "{lr: 0.1}"}, {"training": "{learning_rate: 1e-1}"}, True),
        ({"model": "./model"}, {}, True),
        ({"seed": "1"}, {"seed": "2"}, False),
        ({"training": "{epochs: 2}"}, {}, False),
        ({"model": "{path: ./model, precision: auto, gradient_checkpointing: false, quantization: none}"}, {}, True),
        ({"model": "{path: ./model, precision: bfloat16}"}, {}, False),
        ({"model": "{path: ./model, gradient_checkpointing: true}"}, {}, False),
        ({"model": "{path: ./model, quantization: nf4}"}, {}, False),
        ({"search": "{space: {epochs: [1, 2]}}"}, {"search": "{space: {epochs: [1, 3]}}"}, False),
        ({"generation": "{metrics: []}"}, {}, True),
        ({"task": "seq2seq", "generation": "{metrics: [chrf]}"}, {"task": "seq2seq"}, False),
        (
            {"task": "seq2seq", "generation": "{metrics: [chrf]}"},
            {"task": "seq2seq", "generation": "{metrics: [chrf], max_new_tokens: 9}"},
            False,
        ),
    ],
)
def test_the_digest_is_that_of_the_meaning_without_the_budget(
    old: dict[str, str], new: dict[str, str], same: bool
) -> None:
    before, after = load(study_text.study(**old)).spec, load(study_text.study(**new)).spec
    assert (before.digest() == after.digest()) == same
    assert (spec.differing_keys(before.identity(), after.identity()) == []) == same


def test_a_study_that_has_nothing_written_is_the_one_of_before_there_was_any() -> None:
    """Its digest was stored when it was launched."""
    assert "generation" not in load(study_text.study()).spec.identity()


@pytest.mark.parametrize(
    ("more", "every"),
    [
        ({}, False),
        ({"objective": "chrf"}, True),
        ({"objective": "exact_match"}, True),
        ({"objective": "perplexity"}, False),
        (
            {
                "share_epochs": "true",
                "training": "{lr_schedule: constant, warmup_ratio: 0}",
                "search": "{sampler: random, space: {epochs: [1, 2]}}",
            },
            True,
        ),
    ],
)
def test_texts_are_written_after_every_epoch_where_epochs_are_compared_by_them(
    more: dict[str, str], every: bool
) -> None:
    text = study_text.study(task="seq2seq", generation="{metrics: [chrf, exact_match], max_new_tokens: 9}", **more)
    wanted = load(text).spec
    assert units.generation_of(wanted) == Generation(
        metrics=("chrf", "exact_match"), max_new_tokens=9, every_epoch=every
    )
    assert units.generation_of(load(study_text.study()).spec) is None


def test_baselines_write_nothing_so_a_study_of_texts_has_none() -> None:
    assert baselines.wanted("causal_lm", None, by_text=True) == ()
    assert baselines.wanted("causal_lm", None) == ("unigram", "zero-shot", "few-shot")
    assert baselines.wanted("causal_lm", ["unigram"], by_text=True) == ("unigram",)


def test_differing_keys_are_named_with_both_values() -> None:
    before, after = load(study_text.study()).spec, load(study_text.study(training="{epochs: 2}", seed="5")).spec
    assert spec.differing_keys(before.identity(), after.identity()) == ["seed: 0 -> 5", "training.epochs: 3 -> 2"]


def test_a_grid_runs_all_its_points() -> None:
    loaded = load(study_text.space("batch_size: [4, 8], epochs: {low: 1, high: 3}", "grid"))
    assert loaded.spec.budget.trials == 6


@pytest.mark.parametrize(
    ("text", "searched", "fixed_learning_rate"),
    [
        (
            study_text.space("batch_size: [4, 8], epochs: {low: 2, high: 3}", "grid"),
            {"batch_size": {"choices": [4]}},
            2e-4,
        ),
        (study_text.space("epochs: [2, 3]", "grid"), {"learning_rate": {"choices": [2e-4]}}, None),
        (study_text.space("epochs: [2, 3]"), {"learning_rate": {"choices": [2e-4]}}, None),
        (
            study_text.space("lora_dropout: {low: 0, high: 0.2, step: 0.1}", "grid"),
            {"lora_dropout": {"choices": [0.0]}},
            2e-4,
        ),
        (
            study_text.space("lr: {low: 1e-3, high: 1e-2}, epochs: [2]"),
            {"learning_rate": {"low": 1e-3, "high": 1e-2}},
            None,
        ),
    ],
)
def test_smoke_keeps_one_point_of_a_grid_and_one_epoch(
    text: str, searched: dict[str, Any], fixed_learning_rate: float | None
) -> None:
    small = study_file.smoke(load(text)).spec
    assert small.search.space == searched
    assert small.training["epochs"] == 1
    assert small.training.get("learning_rate") == fixed_learning_rate
    assert not set(small.training) & set(searched)
    assert set(small.training) | set(searched) == set(Settings.__dataclass_fields__)
    if small.search.sampler == "grid":
        assert space.grid_size(small.space) == small.budget.trials == 1
    assert spec.NAME.fullmatch(small.study)


def test_smoke_races_after_one_of_its_two_folds() -> None:
    text = study_text.study(racing="{rule: forgiving, first_folds: 3}")
    assert study_file.smoke(load(text)).spec.racing.first_folds == 1


def test_racing_is_forgiving_unless_another_rule_is_asked_for() -> None:
    default, paired = load(study_text.study()).spec.racing, load(study_text.study(racing="{rule: paired}")).spec.racing
    assert (default.rule, default.on, paired.rule) == ("forgiving", True, "paired")
    assert (paired.first_folds, paired.confidence, paired.hopeless) == (1, 0.975, True)
    off = load(study_text.study(racing="{rule: none}")).spec.racing
    assert (off.rule, off.on) == ("none", False)
    assert load(study_text.study(racing="{hopeless: false}")).spec.racing.on


def test_gp_is_not_raced_by_default() -> None:
    text = study_text.study(search="{sampler: gp, space: {batch_size: [4, 8]}}")
    assert load(text).spec.racing.rule == "none"


def test_smoke_of_a_long_name_is_a_name_and_of_another_study_another() -> None:
    one, two = (study_file.smoke(load(study_text.study(study="a" * 63, seed=seed))).spec for seed in "12")
    assert spec.NAME.fullmatch(one.study)
    assert one.study != two.study


def test_smoke_never_takes_more_rows_than_the_study() -> None:
    assert study_file.smoke(load(study_text.study(data="{path: rows.jsonl, limit: 12}"))).spec.data.limit == 12


def test_the_published_schema_is_current() -> None:
    """Refresh it with `python -m orchestrator.spec > docs/schemas/study.schema.json`."""
    published = (ROOT / "docs/schemas/study.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == json.loads(json.dumps(spec.json_schema()))


def test_the_schema_knows_every_hyperparameter_and_alias() -> None:
    schema = spec.json_schema()
    assert {"learning_rate", "lr", "r", "max_length"} <= set(schema["properties"]["training"]["properties"])
    assert {"learning_rate", "lr", "r"} <= set(
        schema["$defs"]["Search"]["properties"]["space"]["propertyNames"]["enum"]
    )
    assert "max_length" not in schema["$defs"]["Search"]["properties"]["space"]["propertyNames"]["enum"]


def published(name: str) -> Any:
    return json.loads((ROOT / f"docs/schemas/{name}.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_studies_and_refuses_a_slip(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(published("study"))
    values = document.read(path).values
    assert list(validator.iter_errors(values)) == []
    assert list(validator.iter_errors({**values, "training": {"epocs": 3}}))
    assert list(validator.iter_errors({**values, "budget": {"trials": 0}}))


@pytest.mark.parametrize("name", ["study", "status", "best", "list"])
def test_the_published_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(published(name))


def test_the_published_answers_name_every_hyperparameter_and_state() -> None:
    best = published("best")["anyOf"][1]["properties"]
    assert list(best["settings"]["properties"]) == list(Settings.__dataclass_fields__)
    assert set(best["objective"]["enum"]) == set(objective.MAXIMIZE)
    assert tuple(published("status")["properties"]["trials"]["properties"]) == TRIAL_STATES
    asked = {"curves"}  # of `status --curves` alone
    told = {name: each for name, each in published("status")["properties"].items() if name not in asked}
    assert published("list")["properties"]["studies"]["items"]["properties"] == told


def test_check_leaves_a_dataset_of_the_hub_to_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import prepare, readers

    def fetched(*_: object) -> None:
        raise AssertionError("check has no network")

    monkeypatch.setattr(readers, "read", fetched)
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: s\nmodel: org/model\ntask: classification\ndata: {path: org/rows}\n"
        "search: {space: {batch_size: [4, 8]}}\n"
    )
    checked = prepare.check(study_file.load(path))
    assert checked.snapshot is None
    assert "checked at launch" in checked.cautions[0]


MODELS = "[./model, {path: ./other, precision: float32}]"


def test_a_list_of_models_is_a_choice_that_others_may_wait_for() -> None:
    searched = "{sampler: grid, space: {r: {choices: [4, 8], when: {model: ./other}}, epochs: [1, 2]}}"
    loaded = load(study_text.study(model=MODELS, search=searched))
    wanted = loaded.spec
    assert list(wanted.space) == ["model", "lora_rank", "epochs"]
    assert wanted.budget.trials == 2 + 4
    assert [source.precision for source in wanted.sources] == ["auto", "float32"]
    assert [source.path for source in wanted.sources] == list(wanted.space["model"].points()) == ["./model", "./other"]
    assert space.default_params(wanted.space)[0] == {"model": "./model", "epochs": 3}
    assert space.settings(wanted.training, {"model": "./model", "epochs": 3}) == space.settings({}, {})
    assert StudySpec.model_validate_json(wanted.model_dump_json()) == wanted
    assert wanted.proposed["model"] == {"choices": ["./model", "./other"]}
    assert loaded.origins["model.path"] == "line 2"


def test_one_model_has_the_identity_that_it_had_and_several_another() -> None:
    one, several = load(study_text.study()).spec, load(study_text.study(model=MODELS)).spec
    assert "models" not in one.identity()
    assert one.digest() != several.digest()
    swapped = load(study_text.study(model="[{path: ./other, precision: float32}, ./model]")).spec
    assert several.digest() != swapped.digest()  # the default configuration has the first


@pytest.mark.parametrize(("sampler", "models"), [("grid", ["./model"]), ("tpe", ["./model", "./other"])])
def test_smoke_of_several_models_takes_the_first_point_of_a_grid(sampler: str, models: list[str]) -> None:
    searched = (
        f"{{sampler: {sampler}, space: {{r: {{choices: [4, 8], when: {{model: ./other}}}}, batch_size: [4, 8]}}}}"
    )
    small = study_file.smoke(load(study_text.study(model=MODELS, search=searched))).spec
    assert [source.path for source in small.sources] == models
    assert ("lora_rank" in small.search.space) == (sampler == "tpe")
    assert set(small.training) | set(small.search.space) == set(Settings.__dataclass_fields__)
    assert space.default_params(small.space)[0]


def test_the_schema_accepts_several_models_and_conditions() -> None:
    validator = jsonschema.Draft202012Validator(published("study"))
    waits = {"choices": [4, 8], "when": {"model": ["./other"], "method": "lora"}}
    values = document.parse(study_text.study(model=MODELS), "f").values
    search = {"space": {"lora_rank": waits, "lora_alpha": {"low": 1, "high": 2, "when": {"r": [4, 8]}}}}
    assert list(validator.iter_errors({**values, "search": search})) == []
    assert list(validator.iter_errors({**values, "model": ["./model"]}))
    assert list(validator.iter_errors({**values, "search": {"space": {"r": {"choices": [4], "when": {"rank": 4}}}}}))


@pytest.mark.parametrize(
    "entries",
    [
        "lr_schedule: [linear, cosine], warmup_steps: {choices: [3], when: {lr_schedule: cosine}}",  # beside a ratio
        "method: [lora, head], patience: {choices: [1], when: {method: head}}, "
        "pseudo_rounds: {choices: [1], when: {method: lora}}",
    ],
)
def test_what_conditions_keep_apart_is_no_contradiction(entries: str) -> None:
    data = "{path: rows.jsonl, pool: rows.jsonl}" if "pseudo" in entries else "{path: rows.jsonl}"
    text = study_text.study(
        data=data, search=f"{{sampler: random, space: {{{entries}}}}}", training="{warmup_ratio: 0.1}"
    )
    assert load(text).spec.search.space


def test_the_extremes_of_an_entry_that_waits_include_what_is_there_without_it() -> None:
    text = study_text.space("method: [lora, head], batch_size: {choices: [1, 2], when: {method: head}}", "random")
    wanted = load(text).spec
    assert wanted.extremes("batch_size") == (1, 2, Settings().batch_size)
    assert wanted.extremes("method") == ("lora", "head")
    assert wanted.extremes("epochs") == (Settings().epochs,)
