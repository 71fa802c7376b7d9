"""The command line. Thin: each verb parses, calls one use case, prints. Heavy imports live inside the verbs, so that
`foldtune --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import foldtune
from orchestrator.errors import BUG, USAGE, BadInput, FoldtuneError, printable

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.study_file import LoadedStudy

F = TypeVar("F", bound=Callable[..., Any])


def storage_option(function: F) -> F:
    """`--storage`, on every verb that needs the database."""
    return click.option(
        "--storage", metavar="URL", help="Postgres to use; default OPTUNA_STORAGE, else the embedded one."
    )(function)


def json_option(function: F) -> F:
    """`--json`, on every verb that reads."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(foldtune.__version__, prog_name="foldtune")
def cli() -> None:
    """Find the hyperparameters that fine-tune a language model best on a small dataset."""


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--probe", is_flag=True, help="Load the model, train a few steps, and forecast the study by that.")
@json_option
def check(file: Path, probe: bool, as_json: bool) -> None:
    """Validate a study file and its data; print every setting and where it came from."""
    from orchestrator import console, prepare, study_file

    loaded = study_file.load(file)
    checked = prepare.check(loaded)
    snapshot, forecast, probes = checked.snapshot, checked.forecast, None
    if probe:
        from orchestrator import probing

        probes, forecast = probing.probe(loaded, snapshot or prepare.read(loaded))
    resolved = loaded.spec.model_dump(mode="json")
    if as_json:
        report = {
            "spec": resolved,
            "origins": dict(loaded.origins),
            "rows": None if snapshot is None else snapshot.rows,
            "cautions": checked.cautions,
            "findings": [finding.to_json() for finding in checked.findings],
            "forecast": forecast and forecast.to_json(),
            "probes": None if probes is None else [each.to_json() for each in probes],
        }
        click.echo(json.dumps(report))
        return
    console.data().print(console.resolved(resolved, dict(loaded.origins)))
    for caution in checked.cautions:
        say(f"warning: {caution}")
    for line in (*(probes or ()), forecast):
        if line is not None:
            say(str(line))
    classes = f", {len(snapshot.classes)} classes" if snapshot and snapshot.classes else ""
    rows_here = f"{snapshot.rows} rows{classes}, " if snapshot else ""
    say(f"{file} is a valid study: {rows_here}{loaded.spec.budget.trials} trials")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@storage_option
def launch(file: Path, storage: str | None) -> None:
    """Create the study in the database; workers anywhere can then train it."""
    from orchestrator import study_file

    _, name = launch_study(study_file.load(file), storage)
    say(f"train it with `foldtune worker {name}`, watch it with `foldtune watch {name}`")


@cli.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@storage_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@click.option("--name", help="Name of this worker; default host:pid.")
@click.option("--idle-exit", type=click.FloatRange(min=0), metavar="SECONDS", help="Leave after so long without work.")
def worker(
    studies: tuple[str, ...], storage: str | None, device: str, name: str | None, idle_exit: float | None
) -> None:
    """Train these studies until they are done; without names, every open study, oldest first, and wait for more."""
    from orchestrator.database.engine import storage_url
    from orchestrator.launchers import local

    options = ["--device", device]
    options += ["--name", name] if name else []
    options += ["--idle-exit", str(idle_exit)] if idle_exit is not None else []
    environment = local.environment(storage_url(storage), 1)
    os.execve(sys.executable, local.command(studies, *options), environment)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@storage_option
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes; default one for each GPU or core.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@click.option("--smoke", is_flag=True, help="1 trial, 2 folds, 1 epoch, 40 rows: does it run at all?")
@json_option
def run(file: Path, storage: str | None, workers: int | None, device: str, smoke: bool, as_json: bool) -> None:
    """Launch a study, train it on this machine, show it live, print the winner."""
    from orchestrator import running, study_file

    loaded = study_file.load(file)
    if smoke:
        loaded = study_file.smoke(loaded)
    # A smoke test that found its old result would prove nothing.
    engine, name = launch_study(loaded, storage, anew=smoke)
    raise SystemExit(running.run(engine, name, workers=workers, device=device, as_json=as_json))


@cli.command("list")
@storage_option
@json_option
def list_studies(storage: str | None, as_json: bool) -> None:
    """List all studies."""
    from orchestrator import console, reading, view

    rows = reading.studies(open_engine(storage))
    if as_json:
        click.echo(json.dumps({"studies": rows}))
    elif rows:
        console.data().print(view.list_table(rows))
    else:
        say("no studies yet; `foldtune launch FILE` makes one")


@cli.command()
@click.argument("study")
@storage_option
@click.option("--curves", is_flag=True, help="Add each trial's losses by epoch; with --json every fold and metric.")
@json_option
def status(study: str, storage: str | None, curves: bool, as_json: bool) -> None:
    """Show a study's trials, budget and failures."""
    from orchestrator import console, reading, view

    engine = open_engine(storage)
    seen = reading.view(engine, study, every_curve=curves)
    if as_json:
        click.echo(json.dumps(reading.status(seen) | ({"curves": reading.all_curves(seen)} if curves else {})))
        return
    console.data().print(view.live(seen))
    if curves:
        console.data().print(view.curves(seen))
    ends = reading.attempts(engine, study)
    if ends.keys() - {"done"}:  # otherwise the table says it all
        say("attempts ended: " + ", ".join(f"{count} {cause}" for cause, count in ends.items()))
    for failure in reading.failures(engine, study):
        reason = printable(failure["reason"])
        say(f"trial {failure['trial']} fold {failure['fold'] + 1} {failure['state']}: {reason}")
        for line in reading.excerpt(failure["evidence"]):
            say("    " + printable(line))


@cli.command()
@click.argument("study")
@storage_option
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks.")
def watch(study: str, storage: str | None, every: float) -> None:
    """Follow a study live until it ends; Ctrl-C stops watching, not the study."""
    from orchestrator import running

    running.follow(open_engine(storage), study, every=every)


@cli.command()
@click.argument("study")
@storage_option
@json_option
def best(study: str, storage: str | None, as_json: bool) -> None:
    """Show the best trial beside the default configuration. Exit code 1 while nothing is complete."""
    from orchestrator import console, reading, view

    seen = reading.view(open_engine(storage), study)
    found = reading.best(seen)
    if as_json:
        click.echo(json.dumps(found))
    elif found is not None:
        console.data().print(view.result(seen))
    else:
        say(f"study {study!r}: no trial is complete yet")
    raise SystemExit(0 if found is not None else 1)


@cli.command()
@click.argument("study")
@click.argument("one", required=False, metavar="[TRIAL")
@click.argument("other", required=False, metavar="[TRIAL]]")
@storage_option
@json_option
def compare(study: str, one: str | None, other: str | None, storage: str | None, as_json: bool) -> None:
    """Compare two trials on the same rows: best, default, a number or a baseline's name.

    Without names the best one with the default configuration. Exit code 1 while nothing is complete.
    """
    from orchestrator import console, contrast, view

    found = contrast.find(open_engine(storage), study, one, other)
    if as_json:
        click.echo(json.dumps(found))
    elif found is None:
        say(f"study {study!r}: no trial is complete yet")
    else:
        console.data().print(view.compared(found))
    raise SystemExit(1 if found is None else 0)


@cli.command()
@click.argument("study")
@storage_option
@click.option("--n", "most", type=click.IntRange(min=1), default=20, show_default=True, help="Rows at most.")
@json_option
def suspects(study: str, storage: str | None, most: int, as_json: bool) -> None:
    """Show rows that are probably labelled wrongly, by the best trials. Exit code 1 while nothing is complete."""
    from orchestrator import console, suspecting, view

    found = suspecting.find(open_engine(storage), study, most)
    if as_json:
        click.echo(json.dumps(found))
    elif found is None:
        say(f"study {study!r}: no trial is complete yet")
    elif found["suspects"]:
        console.data().print(view.suspects_table(found))
    else:
        say(f"study {study!r}: none of its {found['rows']} rows is suspect")
    raise SystemExit(1 if found is None else 0)


@cli.command()
@click.argument("study")
@storage_option
def stop(study: str, storage: str | None) -> None:
    """Cancel what is open; finished folds are kept."""
    from orchestrator import control

    say(control.stop(open_engine(storage), study))


@cli.command()
@click.argument("study")
@storage_option
@click.option("--trials", type=click.IntRange(min=1), help="New total of searched trials.")
@click.option("--hours", type=float, help="New total of device hours.")
def resume(study: str, storage: str | None, trials: int | None, hours: float | None) -> None:
    """Let a stopped or finished study go on, with a larger budget if one is given."""
    from orchestrator import control

    say(control.resume(open_engine(storage), study, trials=trials, hours=hours))
    say(f"train it with `foldtune worker {study}`")


@cli.command()
@click.argument("study")
@storage_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(study: str, storage: str | None, yes: bool) -> None:
    """Remove a study and all its results for good."""
    from orchestrator import control, reading

    engine = open_engine(storage)
    seen = reading.view(engine, study)
    if not yes:
        if not sys.stdin.isatty():
            raise FoldtuneError(f"refusing to delete {study!r} without --yes", code=USAGE)
        complete = reading.status(seen)["trials"]["complete"]
        click.confirm(f"Delete study {study!r} with {complete} complete trials?", abort=True, err=True)
    control.delete(engine, study)
    say(f"study {study!r} deleted")


@cli.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@storage_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(studies: tuple[str, ...], storage: str | None, yes: bool) -> None:
    """Remove trained weights and leftover files of these studies; without names, of every one that is not open."""
    from orchestrator import cleaning

    engine = open_engine(storage)
    found = cleaning.cleanable(engine, studies)
    adapters = sum(found.values())
    if adapters and not yes:
        if not sys.stdin.isatty():
            raise FoldtuneError(f"refusing to remove {adapters} adapters without --yes", code=USAGE)
        click.confirm(f"Remove {adapters} adapters of {', '.join(found)}?", abort=True, err=True)
    for name in found:
        freed = cleaning.clean(engine, name)
        say(f"study {name!r}: {freed.pieces} pieces removed, {freed.bytes / 2**20:.1f} MiB")
        for host in cleaning.elsewhere(engine, name):
            say(f"study {name!r}: more are on {host}; they go when a worker or `foldtune clean` runs there")
    freed = cleaning.leftovers(engine)
    if freed.pieces or not found:
        say(f"of deleted studies: {freed.pieces} pieces removed, {freed.bytes / 2**20:.1f} MiB")


@cli.command()
@storage_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. The dashboard has no login."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
def dashboard(storage: str | None, host: str, port: int) -> None:
    """Serve optuna-dashboard on the studies."""
    from orchestrator import dashboard as serving

    serving.serve(open_engine(storage).url, host, port)


@cli.group()
def db() -> None:
    """The embedded Postgres, which starts by itself when it is needed."""


@db.command("start")
def db_start() -> None:
    """Start the embedded Postgres, if it does not run."""
    from orchestrator.database import server

    server.ensure_running()
    say(f"the embedded Postgres runs on 127.0.0.1:{server.status().port}")


@db.command("stop")
def db_stop() -> None:
    """Stop the embedded Postgres."""
    from orchestrator.database import server

    say("stopped" if server.stop() else "it was not running")


@db.command("status")
@json_option
def db_status(as_json: bool) -> None:
    """Say whether the embedded Postgres runs, and where its data is. Exit code 1 if it does not run."""
    import dataclasses

    from orchestrator.database import server

    found = dataclasses.asdict(server.status())
    if as_json:
        click.echo(json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in found.items()}))
    else:
        for key, value in found.items():
            click.echo(f"{key.replace('_', ' '):16} {'–' if value is None else value}")
    raise SystemExit(0 if found["running"] else 1)


@db.command("url")
def db_url() -> None:
    """Print the embedded Postgres' URL, password included; starts it if need be."""
    from orchestrator.database import server

    click.echo(server.url(start=True))


def launch_study(loaded: LoadedStudy, storage: str | None, *, anew: bool = False) -> tuple[Engine, str]:
    """Check everything, then touch the database. anew: a study of that name is deleted first."""
    from orchestrator.prepare import prepare

    prepared, cautions = prepare(loaded)
    for caution in cautions:
        say(f"warning: {caution}")
    from orchestrator import control, paces  # only now: a wrong file is answered without them
    from orchestrator import launch as launching

    engine = open_engine(storage)
    if anew:
        control.delete_if_there(engine, loaded.spec.study)
    launched = launching.launch(engine, prepared)
    for message in launched.messages:
        say(message)
    if launched.created:
        spec = loaded.spec
        hours = f", {spec.budget.hours:g} device hours" if spec.budget.hours else ""
        say(
            f"study {launched.name!r} launched: {spec.budget.trials} trials x {len(prepared.plan.units)} folds "
            f"on {prepared.snapshot.rows} rows{hours}"
        )
        say(str(paces.forecast_of(engine, prepared)))
    return engine, launched.name


def open_engine(storage: str | None) -> Engine:
    """The database the user means, its schema up to date."""
    from orchestrator.database.engine import connect, storage_url

    return connect(storage_url(storage))


def say(line: str) -> None:
    """Talk goes to stderr."""
    click.echo(line, err=True)


def main() -> None:
    """Entry point: every failure ends in one message and its exit code, never in a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BadInput as error:
        say(str(error))
        code = error.code
    except FoldtuneError as error:
        say(str(error))
        code = error.code
    except click.ClickException as error:
        error.show()
        code = USAGE
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        code = 130
    except BrokenPipeError:  # `| head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("FOLDTUNE_DEBUG"):
            raise
        say(f"error: this is a bug in foldtune: {type(error).__name__}: {error}")
        say("help: FOLDTUNE_DEBUG=1 shows where; please report it")
        code = BUG
    sys.exit(code if isinstance(code, int) else 0)
