"""Where snapshots go: the handshake file and, with `--events`, our stdout. Neither can hold up the loop."""

import contextlib
import dataclasses
import json
import time

from sidecar import __version__
from sidecar.errors import SidecarError
from sidecar.supervisor.handshake import SCHEMA, Handshake, HandshakeFile
from sidecar.supervisor.logs import RotatingLog
from sidecar.supervisor.outbox import Outbox, say, write_all

EVENTS_KEPT = 256  # of a host that does not read its pipe
FLUSH_S = 0.5
LAST_FLUSH_S = 5.0  # of a file that stays as evidence
RETRY_S = 1.0  # a disk that was full may have room again


class Publisher:
    """Publishes whole snapshots; an error is told once and the next snapshot is tried again."""

    def __init__(self, file: HandshakeFile, log: RotatingLog, *, events: bool) -> None:
        self.file = file
        self._log = log
        self._warned = False
        self._files = Outbox(self._write, keep=1, failed=self._on_failed, retry_s=RETRY_S)
        self._events = Outbox(write_event, keep=EVENTS_KEPT, failed=self._on_pipe_closed) if events else None

    def publish(self, handshake: Handshake) -> None:
        self._files.put(handshake)
        if self._events is not None:
            self._events.put(handshake)

    def close(self, *, remove: str | None) -> None:
        """Flush, and remove the file of the instance `remove`; without one it stays, and is the last word."""
        self._files.close(FLUSH_S if remove is not None else LAST_FLUSH_S)
        if remove is not None:
            with contextlib.suppress(OSError):
                self.file.remove(remove)
        if self._events is not None:
            self._events.close(FLUSH_S)

    def _write(self, handshake: Handshake) -> None:
        if not self.file.write(handshake) and not self._warned:
            self._warned = True
            self._warn(f"{self.file.path} cannot be kept private; the token is left out of it (use --events)")

    def _on_failed(self, error: OSError) -> None:
        self._warn(f"cannot write {self.file.path}: {error.strerror}")

    def _on_pipe_closed(self, error: OSError) -> None:
        self._log.note(f"nobody reads the events any more: {error.strerror}")

    def _warn(self, message: str) -> None:
        self._log.note(message)
        say(f"ml-sidecar: {message}")


def write_failure(error: SidecarError) -> None:
    """A start that failed before there was a supervisor, in the handshake's shape. Raises OSError."""
    known = {"schema": SCHEMA, "phase": "failed", "app_version": __version__, "updated_at": time.time()}
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Handshake))
    line = json.dumps({**fields, **known, "error": {"code": error.code, "message": error.message}})
    write_all(1, line.encode() + b"\n")


def write_event(handshake: Handshake) -> None:
    """One NDJSON line on stdout. Raises OSError when the pipe is closed."""
    write_all(1, handshake.to_json().encode() + b"\n")
