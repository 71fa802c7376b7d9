"""Workers and their devices, as the database knows them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

import foldtune
from orchestrator import lifecycle
from orchestrator.database.engine import transaction
from orchestrator.devices import Device
from orchestrator.errors import UNAVAILABLE, FoldtuneError


def register(engine: Engine, candidates: Sequence[Device], *, name: str | None = None) -> tuple[int, Device]:
    """Enter this process as a worker and claim the first free device: (worker id, device).

    Raises:
        FoldtuneError: every candidate is taken by a living worker.
    """
    host, pid = socket.gethostname(), os.getpid()
    with transaction(engine) as connection:
        worker = connection.execute(
            text(
                "INSERT INTO worker (name, host, pid, device, version) "
                "VALUES (:name, :host, :pid, '', :version) RETURNING id"
            ),
            {"name": name or f"{host}:{pid}", "host": host, "pid": pid, "version": foldtune.__version__},
        ).scalar_one()
        for device in candidates:
            if device.id is None or _claim(connection, device, worker, host):
                connection.execute(
                    text("UPDATE worker SET device = :device WHERE id = :id"), {"device": device.name, "id": worker}
                )
                return int(worker), device
        raise FoldtuneError(
            "every GPU here is used by another worker: " + ", ".join(device.name for device in candidates),
            help="stop one, or use --device cpu",
            code=UNAVAILABLE,
        )


def _claim(connection: Connection, device: Device, worker: int, host: str) -> bool:
    claimed = connection.execute(
        text(
            "INSERT INTO device (id, host, worker, expires_at) "
            "VALUES (:id, :host, :worker, now() + make_interval(secs => :ttl)) "
            "ON CONFLICT (id) DO UPDATE SET worker = excluded.worker, host = excluded.host, "
            "expires_at = excluded.expires_at WHERE device.expires_at < now() RETURNING id"
        ),
        {"id": device.id, "host": host, "worker": worker, "ttl": lifecycle.LEASE_SECONDS},
    )
    return claimed.scalar() is not None


@dataclass(frozen=True)
class Pulse:
    """What a worker learns by a sign of life.

    claimed: it still has its device; false for a process that was stopped for longer than a claim lives.
    others: other workers that gave a sign of life within the last lease.
    """

    claimed: bool
    others: int


def beat(engine: Engine, worker: int, device: Device) -> Pulse:
    """Sign of life: keeps the worker counted and its device claimed."""
    with transaction(engine) as connection:
        connection.execute(text("UPDATE worker SET seen_at = now() WHERE id = :id"), {"id": worker})
        kept = connection.execute(
            text(
                "UPDATE device SET expires_at = now() + make_interval(secs => :ttl) "
                "WHERE worker = :worker AND id = :device"
            ),
            {"worker": worker, "device": device.id, "ttl": lifecycle.LEASE_SECONDS},
        ).rowcount
        others = connection.execute(
            text(
                "SELECT count(*) FROM worker WHERE id <> :id AND left_at IS NULL "
                "AND seen_at > now() - make_interval(secs => :ttl)"
            ),
            {"id": worker, "ttl": lifecycle.LEASE_SECONDS},
        ).scalar_one()
        return Pulse(claimed=device.id is None or kept == 1, others=int(others))


def offer(engine: Engine, worker: int, slots: int) -> None:
    """Say how many units this worker can train at once."""
    with transaction(engine) as connection:
        connection.execute(text("UPDATE worker SET capacity = :slots WHERE id = :id"), {"slots": slots, "id": worker})


def leave(engine: Engine, worker: int, farewell: str) -> None:
    """Sign off and free the device."""
    with transaction(engine) as connection:
        connection.execute(
            text("UPDATE worker SET left_at = now(), farewell = :farewell WHERE id = :id"),
            {"farewell": farewell, "id": worker},
        )
        connection.execute(text("DELETE FROM device WHERE worker = :id"), {"id": worker})
