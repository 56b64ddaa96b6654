"""The handshake: what a client has to know, as one object in a private file and as NDJSON events.

Its JSON Schema is `clients/handshake.schema.json`. Times are unix epoch seconds; a process is its pid and start time,
because a pid alone is used again by the system.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.supervisor import proctree

SCHEMA = 1
PROTOCOL_MIN = PROTOCOL_MAX = 1
# psutil, sysinfo (Rust) and ps round the start time differently, by up to one clock tick or one second.
START_TIME_TOLERANCE_S = 1.5

SERVER_PHASES = frozenset({"downloading", "loading", "ready", "degraded"})
PHASES = SERVER_PHASES | {"installing", "starting", "restarting", "stopping", "failed"}


@dataclass(frozen=True)
class Process:
    pid: int
    start_time: float

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this pid now; None when there is none or only its unreaped remains."""
        import psutil  # 15 ms that the first server need not wait for

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else cls(pid, process.create_time())
        except psutil.Error:
            return None

    def is_alive(self) -> bool:
        now = Process.of(self.pid)
        return now is not None and abs(now.start_time - self.start_time) <= START_TIME_TOLERANCE_S


@dataclass(frozen=True)
class Protocol:
    min: int = PROTOCOL_MIN
    max: int = PROTOCOL_MAX


@dataclass(frozen=True)
class Progress:
    item: str
    done: float
    total: float | None
    unit: str
    rate: float | None = None
    """Units per second, of a download."""
    eta_s: float | None = None

    @classmethod
    def parse(cls, raw: object) -> "Progress | None":
        """None when the server sent none, or something else than progress."""
        match raw:
            case {"item": str(item), "done": int() | float() as done, "unit": str(unit), **rest}:
                total, rate, eta_s = (
                    value if isinstance(value := rest.get(name), int | float) else None
                    for name in ("total", "rate", "eta_s")
                )
                return cls(item, done, total, unit, rate, eta_s)
        return None


@dataclass(frozen=True)
class Restarts:
    count: int
    window_s: float


@dataclass(frozen=True)
class LastExit:
    """`code` is None after a signal, `signal` is a name such as SIGKILL; `stderr_tail` is at most 4 KiB."""

    code: int | None
    signal: str | None
    at: float
    stderr_tail: str


@dataclass(frozen=True, kw_only=True)
class Handshake:
    schema: int = SCHEMA
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    app_version: str
    instance_id: str
    phase: str
    progress: Progress | None = None
    supervisor: Process
    server: Process | None = None
    host: str
    port: int
    base_url: str
    token: str | None
    health_path: str = "/health"
    device: str | None = None
    device_reason: str | None = None
    restarts: Restarts
    last_exit: LastExit | None = None
    log_dir: str
    updated_at: float

    def to_json(self) -> str:
        """One line."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False)
        # A path that is no UTF-8 has surrogates in it, which no file and no client could take.
        return text.encode("utf-8", "replace").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Handshake":
        """Raises ValueError for anything that is no handshake. Members that a later version added are ignored."""
        try:
            raw = json.loads(text)
            nested: dict[str, Any] = {
                "supervisor": Process(**raw["supervisor"]),
                "server": Process(**raw["server"]) if raw["server"] else None,
                "restarts": Restarts(**raw["restarts"]),
                "last_exit": LastExit(**raw["last_exit"]) if raw["last_exit"] else None,
                "progress": Progress.parse(raw["progress"]),
                "protocol": Protocol(**raw["protocol"]),
            }
            return cls(**{name: nested.get(name, raw[name]) for name in _NAMES})
        except (TypeError, KeyError) as error:
            raise ValueError(f"no handshake: {error}") from None


_NAMES = tuple(field.name for field in dataclasses.fields(Handshake))


@dataclass(frozen=True)
class HandshakeFile:
    """`<run_dir>/sidecar.json`. A reader sees a whole object or none."""

    path: Path
    holds_private: Callable[[int], bool] = proctree.holds_private

    def write(self, handshake: Handshake) -> bool:
        """Replace the file. Returns False if the token was left out, because others could read it. Raises OSError."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            private = handshake.token is None or self.holds_private(fd)
            file.write((handshake if private else dataclasses.replace(handshake, token=None)).to_json() + "\n")
            file.flush()
            os.fsync(fd)
        temporary.replace(self.path)
        return private

    def sweep(self) -> None:
        """Remove what a supervisor left that was killed while it wrote. Only the holder of the lock may."""
        for temporary in self.path.parent.glob(f"{self.path.name}.*.tmp"):
            temporary.unlink(missing_ok=True)

    def read(self) -> Handshake | None:
        """None when there is no file, or one that is no handshake."""
        try:
            return Handshake.from_json(self.path.read_bytes())
        except (OSError, ValueError):
            return None

    def read_live(self) -> Handshake | None:
        """Like `read`, and None when the supervisor that wrote it is gone."""
        handshake = self.read()
        return handshake if handshake and handshake.supervisor.is_alive() else None

    def remove(self, instance_id: str) -> None:
        """Remove the file if it is still that instance's."""
        handshake = self.read()
        if handshake is not None and handshake.instance_id == instance_id:
            self.path.unlink(missing_ok=True)

    def signature(self) -> tuple[int, int] | None:
        """Changes whenever the file is written."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino
