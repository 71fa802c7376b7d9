"""optuna-dashboard on the studies' storage."""

from __future__ import annotations

import socketserver
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click
from sqlalchemy.engine import URL

from orchestrator import study
from orchestrator.errors import USAGE, FoldtuneError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line for every poll of the page would bury what matters."""


def serve(url: URL, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        FoldtuneError: the address cannot be used.
    """
    from optuna_dashboard import wsgi

    app = wsgi(study.storage(url))
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise FoldtuneError(
            f"cannot listen on {host}:{port}: {error.strerror}", help="choose another --port", code=USAGE
        ) from None
    click.echo(f"optuna-dashboard: http://{host}:{port}/dashboard (Ctrl-C ends it)", err=True)
    if host not in LOOPBACK:
        click.echo("warning: the dashboard has no login; whoever reaches this address can delete studies", err=True)
    with server:
        server.serve_forever()
