"""One server process: its pipes, its threads and its end."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.supervisor import proctree
from sidecar.supervisor.events import Put, ServerExited, StatusReported
from sidecar.supervisor.logs import TAIL_BYTES, RotatingLog, read_blocks
from sidecar.supervisor.outbox import write_all

LAST_WORDS_S = 0.5  # how long a dead server's pipes are read on, when a process that left the group still holds them


class Child:
    """A server process from spawn to exit. Its last event is ServerExited, after everything it said.

    stdin carries control messages (its end tells the server that we died), stdout status messages, stderr the log.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        listener: socket.socket,
        *,
        launch: int,
        secret: str | None,
        log: RotatingLog,
        put: Put,
    ) -> None:
        """Spawn. Raises OSError when the system cannot."""
        self.launch = launch
        self._secret = secret.encode() if secret else None
        self._log = log
        self._put = put
        self._tail = b""
        self._tree = proctree.Tree(listener)
        self._process = subprocess.Popen(
            command,
            env={**environment, **self._tree.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            **self._tree.spawn_options(),
        )
        self.pid: int = self._process.pid
        greeting = self._tree.adopt(self._process)
        if greeting:
            self.send(greeting)
        self._readers = [self._thread(self._read_status), self._thread(self._read_log)]
        self._thread(self._await_exit)

    def send(self, message: dict[str, Any]) -> None:
        """One control message; a server that is gone misses it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed after the exit
            write_all(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")

    def terminate(self) -> None:
        """SIGTERM to the whole tree."""
        self._tree.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole tree."""
        self._tree.kill()

    def stderr_tail(self) -> str:
        """The last 4 KiB of the log output, the token masked."""
        return self._tail.decode("utf-8", "replace")

    def _thread(self, target: Any) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True, name=target.__name__)
        thread.start()
        return thread

    def _read_status(self) -> None:
        # A reader closes its own pipe: closed by another thread, the number could be another file's by the next read.
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for block in read_blocks(pipe.fileno(), self._secret):
                for line in block.splitlines():
                    self._on_status_line(line)

    def _on_status_line(self, line: bytes) -> None:
        message = _parse(line)
        if message is None:
            self._log.write(b"[server stdout] " + line + b"\n")
        else:
            self._put(StatusReported(self.launch, message))

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for block in read_blocks(pipe.fileno(), self._secret):
                self._tail = (self._tail + block)[-TAIL_BYTES:]
                self._log.write(block)

    def _await_exit(self) -> None:
        returncode = self._tree.wait()
        deadline = time.monotonic() + LAST_WORDS_S
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._put(ServerExited(self.launch, returncode))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("event"), str) else None


def launch_environment(
    environment: Mapping[str, str], *, token: str | None, instance_id: str, restart_count: int
) -> dict[str, str]:
    """The server's environment. What a sidecar around us may have left of its own launch is taken out."""
    clean = {name: value for name, value in environment.items() if not name.startswith("SIDECAR_LAUNCH_")}
    clean["SIDECAR_LAUNCH_INSTANCE_ID"] = instance_id
    clean["SIDECAR_LAUNCH_RESTART_COUNT"] = str(restart_count)
    if token:
        clean["SIDECAR_LAUNCH_TOKEN"] = token
    return clean


def describe_exit(code: int | None, signal_name: str | None) -> str:
    """`exit code 1` or `SIGKILL`."""
    return signal_name if code is None and signal_name else f"exit code {code}"
