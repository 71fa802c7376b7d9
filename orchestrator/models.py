"""Which weights exactly: a model source of a study file -> a ModelPin. Loads no weights and no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import families
from orchestrator.contract import ModelPin, WriterPin
from orchestrator.errors import BAD_DATA, USAGE, BadInput, FoldtuneError, Problem
from orchestrator.spec import ModelSource, WriterSource

HUB_FILES = ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer_config.json"]  # no weights
IGNORED = frozenset({".git", "__pycache__", ".cache"})


def origin(path: str, folder: Path) -> str:
    """Where a model path leads: "package", "local" or "hub"."""
    if path.startswith("package:"):
        return "package"
    local = path.startswith((".", "/", "~")) or os.path.exists(local_folder(path, folder))
    return "local" if local else "hub"


def local_folder(path: str, folder: Path) -> Path:
    """The folder of a local or packaged model.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    if not path.startswith("package:"):
        return folder / os.path.expanduser(path)
    name, _, inner = path.removeprefix("package:").partition("/")
    try:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module without a spec, such as __main__
        found = None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"no installed package {name!r}")
    if inner.startswith("/") or ".." in inner.split("/"):
        raise FileNotFoundError(f"{inner!r} leads out of the package {name!r}")
    return Path(next(iter(found.submodule_search_locations))) / inner


def check(source: ModelSource, folder: Path, file: str, *, wanted: str | None = None) -> list[Problem]:
    """What is wrong with a model source, as far as can be said without a network.

    wanted: what it is for, see `families.problem`; None: not asked.
    """
    if origin(source.path, folder) == "hub":
        return []
    try:
        where = local_folder(source.path, folder)
    except FileNotFoundError as error:
        help = "pip install it; the quickstart's model comes with `make env`"
        return [Problem(code="model", message=f"model {source.path!r}: {error}", help=help, file=file)]
    if not os.path.isdir(where):
        wrong = f"{where} is a file, expected a folder" if os.path.exists(where) else f"no such folder {where}"
        return [Problem(code="model", message=f"model {source.path!r}: {wrong}", file=file)]
    if (where / "adapter_config.json").exists() and not (where / "config.json").exists():
        base = json_object(where / "adapter_config.json").get("base_model_name_or_path", "another model")
        message = f"model {source.path!r} is a LoRA adapter for {base}, not a base model"
        return [Problem(code="model", message=message, file=file)]
    problems = []
    if not (where / "config.json").is_file():
        problems.append(f"model {source.path!r}: no config.json in {where}")
    elif not isinstance(_json(where / "config.json"), dict):
        problems.append(f"model {source.path!r}: config.json is no JSON object")
    elif json_object(where / "config.json").get("auto_map"):
        problems.append(f"model {source.path!r} asks to run its own code, which foldtune never does")
    if not list(where.glob("*.safetensors")):
        problems.append(f"model {source.path!r}: no *.safetensors in {where}; other weight formats can run code")
    shards = json_object(where / "model.safetensors.index.json").get("weight_map")
    for shard in sorted({str(name) for name in shards.values()} if isinstance(shards, dict) else ()):
        if Path(shard).name != shard or not (where / shard).is_file():
            problems.append(f"model {source.path!r}: its index names the shard {shard!r}, which is not in its folder")
    if problems or wanted is None:
        return [Problem(code="model", message=message, file=file) for message in problems]
    return family_problems(source, json_object(where / "config.json"), wanted, file)


def family_problems(source: ModelSource, config: Mapping[str, Any], wanted: str, file: str) -> list[Problem]:
    """Whether the model is of another family than the task needs."""
    wrong = families.problem(wanted, config)
    message = f"model {source.path!r}: {wrong}"
    return [Problem(code="model", message=message, help=families.help_for(wanted, config), file=file)] if wrong else []


def cautions(source: ModelSource) -> list[str]:
    """What a worker on this machine would lack; others may have it, so that it is no error here."""
    if source.quantization == "none" or importlib.util.find_spec("bitsandbytes") is not None:
        return []
    need = f"model.quantization: {source.quantization} needs bitsandbytes on every worker, and it is not installed here"
    return [f"{need}; pip install 'foldtune[quantized]'"]


def pin(source: ModelSource, folder: Path) -> ModelPin:
    """Resolve a source for good: the commit of a hub model, a hash over the files of a local one.

    Raises:
        BadInput: the model cannot be used. FoldtuneError: the hub does not answer or refuses.
    """
    problems = check(source, folder, "")
    if problems:
        raise BadInput(problems)
    kind = origin(source.path, folder)
    if kind == "hub":
        return _pin_hub(source)
    where = local_folder(source.path, folder)
    pooling, normalize = _pooling(where)
    root = str(folder) if kind == "local" and not Path(source.path).expanduser().is_absolute() else None
    return ModelPin(
        path=source.path,
        origin=kind,
        pin=content_hash(where),
        pooling=pooling,
        normalize=normalize,
        root=root,
        **source.holding,
    )


def files(source: ModelSource, folder: Path, pin: ModelPin | None = None) -> Path | None:
    """Where a model's JSON files lie on this machine; of a hub model, where they came with its pin. None: nowhere."""
    if origin(source.path, folder) != "hub":
        try:
            return local_folder(source.path, folder)
        except FileNotFoundError:
            return None
    if pin is None:
        return None
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.snapshot_download(source.path, revision=pin.pin, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        return None
    return Path(found)


def pin_writer(source: WriterSource, prompt: str, folder: Path) -> WriterPin:
    """As `pin`, of a model that writes rows. prompt: what it is asked where the source says nothing."""
    sampling = source.model_dump(include={"temperature", "top_p", "max_new_tokens"})
    return WriterPin(model=pin(source.model, folder), prompt=source.prompt or prompt, **sampling)


def verify(pin: ModelPin) -> None:
    """Check that this machine's files are those the study began with. A hub model is loaded at its commit anyway.

    Raises:
        FoldtuneError: other weights, or none (exit code 65).
    """
    if pin.origin == "hub":
        return
    try:
        where = local_folder(pin.path, Path(pin.root or "."))
        found = content_hash(where) if where.is_dir() else None
    except FileNotFoundError as error:
        raise FoldtuneError(f"model {pin.path!r}: {error}", code=BAD_DATA) from None
    if found is None:
        raise FoldtuneError(f"model {pin.path!r}: no such folder {where} on this machine", code=BAD_DATA)
    if found != pin.pin:
        raise FoldtuneError(
            f"model {pin.path!r} is another one here (was {pin.pin[:12]}, is {found[:12]})",
            help="install the version that the study was launched with",
            code=BAD_DATA,
        )


def content_hash(folder: Path) -> str:
    """sha256 over the names and contents of a model's files, hexadecimal."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inner = path.relative_to(folder)
        if IGNORED & set(inner.parts):
            continue
        total.update(f"{inner.as_posix()}\n".encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _pooling(folder: Path) -> tuple[str, bool]:
    """(first or mean, normalise?) as the model's own sentence-transformers files say; first without them."""
    if not (folder / "modules.json").is_file():
        return "first", False
    modules = _json(folder / "modules.json")
    modules = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if "Pooling" not in kinds or not (folder / kinds["Pooling"] / "config.json").is_file():
        return "first", False
    mean = json_object(folder / kinds["Pooling"] / "config.json").get("pooling_mode_mean_tokens", False)
    return ("mean", "Normalize" in kinds) if mean else ("first", False)


def _pin_hub(source: ModelSource) -> ModelPin:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        commit = huggingface_hub.HfApi().model_info(source.path, revision=source.revision).sha
        if commit is None:
            raise FoldtuneError(f"model {source.path!r}: the hub names no commit", code=USAGE)
        folder = huggingface_hub.snapshot_download(source.path, revision=commit, allow_patterns=HUB_FILES)
    except errors.GatedRepoError:
        raise _hub_error(source, "is gated: accept its terms on its page and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise _hub_error(source, "is neither a folder here nor a model of the hub (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise _hub_error(source, f"has no revision {source.revision!r}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise _hub_error(source, f"is no folder here, and cannot be looked up on the hub: {what}") from None
    except errors.HFValidationError as error:
        raise _hub_error(source, f"is no folder here and no model id: {error}") from None
    if json_object(Path(folder) / "config.json").get("auto_map"):
        raise _hub_error(source, "asks to run its own code, which foldtune never does")
    pooling, normalize = _pooling(Path(folder))
    return ModelPin(path=source.path, origin="hub", pin=commit, pooling=pooling, normalize=normalize, **source.holding)


def _hub_error(source: ModelSource, message: str) -> FoldtuneError:
    return FoldtuneError(f"model {source.path!r} {message}", code=USAGE)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file of a model says; empty where it is not there, or no object."""
    value = _json(path)
    return value if isinstance(value, dict) else {}
