"""Imports run one way, and the command line stays light."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("foldtune", "orchestrator", "trial_worker")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TORCH = ("torch", "transformers", "peft", "safetensors", "accelerate")
ENGINE = ("trial_worker.engine", "trial_worker.tasks", "trial_worker.baselines", "trial_worker.augment")


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file; `from a import b` as a and as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(names: tuple[str, ...], where: list[str]) -> list[str]:
    """`module imports name` for every forbidden import."""
    return [
        f"{module} imports {imported}"
        for module in where
        for imported in imports(MODULES[module])
        if any(imported == name or imported.startswith(f"{name}.") for name in names)
    ]


def under(*prefixes: str) -> list[str]:
    found = [name for name in MODULES if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)]
    assert found
    return found


TRAINING = under("trial_worker.trainer", *ENGINE)
SUPERVISION = [name for name in under("trial_worker") if name not in TRAINING]


def test_the_orchestrator_never_imports_torch_or_the_worker() -> None:
    assert offenders((*TORCH, "trial_worker"), under("orchestrator", "foldtune")) == []


@pytest.mark.parametrize("name", ["contract", "crash_points", "durable"])
def test_what_every_process_shares_is_standard_library_only(name: str) -> None:
    shared = {"orchestrator"} if name == "durable" else set()  # it names crash points
    foreign = {each.partition(".")[0] for each in imports(MODULES[f"orchestrator.{name}"])} - sys.stdlib_module_names
    assert foreign == shared


def test_only_space_and_study_know_optuna() -> None:
    allowed = {"orchestrator.space", "orchestrator.study"}
    assert offenders(("optuna",), [name for name in MODULES if name not in allowed]) == []
    allowed |= {"orchestrator.dashboard"}
    assert offenders(("optuna_dashboard",), [name for name in MODULES if name not in allowed]) == []


def test_the_supervisors_processes_never_import_torch() -> None:
    assert offenders((*TORCH, *ENGINE), SUPERVISION) == []


def test_a_trainer_imports_torch_by_its_engine_only(tmp_path: Path) -> None:
    assert offenders((*TORCH, "numpy", *ENGINE), ["trial_worker.trainer", *SUPERVISION]) == []
    loaded = "import sys, trial_worker.trainer; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    seconds, out = min(run("-c", loaded, home=tmp_path) for _ in range(3))
    assert out == "[]\n"
    assert seconds < 0.3


def test_training_runs_without_optuna_and_without_a_database() -> None:
    apart = ("optuna", "sqlalchemy", "psycopg2", "orchestrator.database", "orchestrator.study", "orchestrator.trials")
    assert offenders(apart, TRAINING) == []


def test_training_knows_only_the_contract_and_pure_modules() -> None:
    pure = {
        "orchestrator",
        "orchestrator.baselines",
        "orchestrator.contract",
        "orchestrator.crash_points",
        "orchestrator.durable",
        "orchestrator.forms",
        "orchestrator.objective",
        "orchestrator.models",
        "orchestrator.errors",
        "orchestrator.texts",
        "orchestrator.stopping",
    }
    used = {
        imported
        for module in TRAINING
        for imported in imports(MODULES[module])
        if imported in MODULES and imported.startswith("orchestrator")
    }
    assert used - pure == set()


def test_pure_modules_know_neither_the_database_nor_the_use_cases() -> None:
    pure = ["contract", "errors", "hyperparameters", "space", "objective", "folds", "lifecycle", "document", "spec"]
    pure += ["cross_checks", "study_file", "readers", "dataset", "models", "prepare", "console", "texts"]
    pure += ["augmentation", "augmentation_checks", "families", "findings", "near", "preflight", "repeats", "tokens"]
    pure += ["suspects", "devices", "forecast"]
    pure += ["conditions", "comparing"]
    apart = ("sqlalchemy", "psycopg2", "orchestrator.database", "orchestrator.study", "orchestrator.trials")
    assert offenders(apart, [f"orchestrator.{name}" for name in pure]) == []


def run(*arguments: str, home: Path) -> tuple[float, str]:
    """(CPU seconds, stdout) of a Python process: unlike the clock's, they do not grow with the machine's load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "FOLDTUNE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


CHECK = """
import sys
from orchestrator import cli
loaded = sorted({"click", "rich", "pydantic", "ruamel", "optuna", "torch", "sqlalchemy", "numpy"} & set(sys.modules))
sys.argv = ["foldtune", "check", "studies/glosses.yaml"]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "transformers", "optuna", "sqlalchemy", "psycopg2", "numpy", "sklearn", "pyarrow", "huggingface_hub"}
print("at the start:", loaded)
print("after check:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.package_model
def test_check_needs_no_torch_no_optuna_and_no_database(tmp_path: Path) -> None:
    seconds, out = run("-c", CHECK, home=tmp_path / "home")
    assert out.splitlines()[-2:] == ["at the start: ['click']", "after check: []"]
    assert seconds < 2
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_answers_at_once(arguments: list[str], tmp_path: Path) -> None:
    assert min(run("-m", "foldtune", *arguments, home=tmp_path)[0] for _ in range(3)) < 0.3
