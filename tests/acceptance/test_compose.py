"""docker-compose.yml and Dockerfile: their promises, held against Compose, the files and the real command line."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE = "foldtune:local"


def compose() -> dict[str, Any]:
    return YAML(typ="safe").load(COMPOSE_FILE)


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == IMAGE}


@cache
def compose_client() -> tuple[str, ...] | None:
    """Docker's plugin, else the stand-alone program; neither needs an engine for `config`."""
    for words in (("docker", "compose"), ("docker-compose",)):
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0
        ):
            return words
    return None


@pytest.fixture(scope="module")
def resolved() -> dict[str, Any]:
    """The file as Compose understands it: merged, with variables in place, every profile included."""
    client = compose_client()
    if client is None:
        pytest.skip("no docker compose here")
    done = subprocess.run(
        [*client, "--profile", "cpu", "--profile", "cli", "config"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("FOLDTUNE", "COMPOSE", "HF_"))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return YAML(typ="safe").load(done.stdout)


def test_compose_accepts_the_file_and_sees_every_service(resolved: dict[str, Any]) -> None:
    assert set(resolved["services"]) == {"postgres", "dashboard", "worker", "worker-cpu", "cli"} == set(SERVICES)


def test_compose_resolves_the_port_to_loopback(resolved: dict[str, Any]) -> None:
    """Compose 1 prints `127.0.0.1:8080:8080/tcp`, Compose 2 a mapping with `host_ip`."""
    for service in resolved["services"].values():
        for port in service.get("ports", ()):
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert host == "127.0.0.1"


def test_nothing_is_published_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 1
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service or service.get("privileged") for service in SERVICES.values())
    assert compose()["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]


def test_postgres_18_keeps_its_data_in_a_named_volume() -> None:
    postgres = SERVICES["postgres"]
    assert re.fullmatch(r"postgres:18(\.\d+)?(-\w+)?", postgres["image"])
    (volume,) = postgres["volumes"]
    name, target = volume.split(":")
    assert target == "/var/lib/postgresql", "18's image keeps its data in a folder per version below this one"
    assert name in compose()["volumes"]


def test_every_named_volume_is_declared_and_made_with_the_workers_as_owner() -> None:
    declared = compose()["volumes"]
    for service in OURS.values():
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                assert (ROOT / source).is_dir()
                assert volume.endswith(":ro")
            else:
                assert source in declared
                assert re.search(rf"install --directory --owner=foldtune .*{re.escape(target)}", DOCKERFILE)


def test_servers_have_health_checks_and_everyone_waits_for_the_database() -> None:
    for name in ("postgres", "dashboard"):
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
        assert {"interval", "timeout", "retries", "start_period"} <= set(SERVICES[name]["healthcheck"])
    assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]
    for service in OURS.values():
        assert service["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "HEALTHCHECK" not in DOCKERFILE, "the image's workers serve nothing that a probe could ask"


def test_no_password_stands_in_the_file_or_in_a_command() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert "POSTGRES_PASSWORD" not in SERVICES["postgres"]["environment"]
    for name, service in OURS.items():
        environment = service["environment"]
        assert environment["FOLDTUNE_DB_PASSWORD_FILE"] == "/run/secrets/postgres_password", name
        assert re.fullmatch(r"postgresql://[^:@]+@postgres:5432/\w+", environment["OPTUNA_STORAGE"]), name
        assert environment.get("HF_TOKEN") is None, "the token comes from the caller's environment"
        assert not any("://" in word for word in service["command"])
    assert all(service["secrets"] == ["postgres_password"] for service in SERVICES.values())
    assert compose()["secrets"]["postgres_password"]["file"] == "./secrets/postgres_password"
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in dockerignore
    assert not any("secrets" in line for line in dockerignore if line.startswith("!"))


def test_gpu_workers_scale_and_see_every_gpu() -> None:
    worker = SERVICES["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert not {"container_name", "ports", "hostname"} & set(worker), "these stop a service from scaling"
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["worker-cpu"]


def test_long_running_services_come_back_and_their_logs_are_bounded() -> None:
    for name, service in SERVICES.items():
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
        if name != "cli":
            assert service["restart"] == "unless-stopped"
        assert "no-new-privileges:true" in service["security_opt"]


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """What the services run, and what the comments tell a reader to run."""
    for name, service in OURS.items():
        yield name, [str(word) for word in service["command"]]
    for line in (COMPOSE_FILE.read_text(encoding="utf-8") + DOCKERFILE).splitlines():
        if found := re.match(r"#\s+docker (?:compose run --rm cli|run --rm foldtune:local) ([a-z-][^#]*)", line):
            yield line.strip("# "), shlex.split(found[1])


COMMANDS = [pytest.param(argv, id=" ".join(argv)) for _, argv in documented_commands()]


@pytest.mark.parametrize("argv", COMMANDS)
def test_the_command_line_knows_every_command(argv: list[str]) -> None:
    command: click.Command = importlib.import_module("orchestrator.cli").cli
    if argv == ["--help"]:
        return
    context = click.Context(command, info_name="foldtune")
    words = list(argv)
    while isinstance(command, click.Group):
        verb = command.get_command(context, words[0])
        assert verb is not None, f"foldtune has no verb {words[0]!r}: {shlex.join(argv)}"
        command, words = verb, words[1:]
        context = click.Context(command, info_name=verb.name, parent=context)
    command.make_context(command.name, words, parent=context.parent)


def test_the_comments_show_each_step_of_a_first_run() -> None:
    verbs = {argv[0] for _, argv in documented_commands()}
    assert {"launch", "worker", "dashboard", "status", "best"} <= verbs
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    for target in re.findall(r"#\s+make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for services in re.findall(r"#\s+docker compose up -d ([a-z -]+)$", text, flags=re.MULTILINE):
        assert set(services.split()) <= set(SERVICES)
    for study in re.findall(r"studies/[\w.-]+\.yaml", text):
        assert (ROOT / study).is_file()


def test_the_image_installs_with_constraints_and_does_not_run_as_root() -> None:
    instructions = re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE, flags=re.MULTILINE)
    users = [rest for word, rest in instructions if word == "USER"]
    assert users == ["10001:10001"], "a number, so that a cluster can see that it is not root"
    assert ("ENTRYPOINT", '["foldtune"]') in instructions
    assert "PIP_CONSTRAINT=constraints.txt" in DOCKERFILE
    assert "--constraint constraints.txt torch" in DOCKERFILE
    last = [word for word, _ in instructions]
    assert last.index("USER") > max(index for index, word in enumerate(last) if word in ("RUN", "COPY"))


def test_everything_that_the_image_copies_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
        for word in line.split()
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, f".dockerignore keeps {name} from the build"
