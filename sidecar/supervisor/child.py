"""One server process: its pipes, its threads and its end."""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.supervisor import proctree
from sidecar.supervisor.events import Put, ServerExited, StatusReported
from sidecar.supervisor.logs import TAIL_BYTES, RotatingLog, read_blocks
from sidecar.supervisor.outbox import write_all

# How long nothing may come from a dead server's pipes until they are given up: a process that left the group may hold
# them. Told in looks, so that a machine that stood still, or slept, has lost one of them and not the evidence.
LAST_WORDS_S = 0.5
_LOOKS = 10
_LOOKS_AT_MOST = 100


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
        self._heard = 0
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
                self._heard += 1
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
                self._heard += 1
                self._tail = (self._tail + block)[-TAIL_BYTES:]
                self._log.write(block)

    def _await_exit(self) -> None:
        returncode = self._tree.wait()
        self._hear_last_words()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._put(ServerExited(self.launch, returncode))

    def _hear_last_words(self) -> None:
        silent, heard = 0, self._heard
        for _ in range(_LOOKS_AT_MOST):
            alive = [reader for reader in self._readers if reader.is_alive()]
            if not alive or silent == _LOOKS:
                return
            alive[0].join(LAST_WORDS_S / _LOOKS)
            silent, heard = (silent + 1, heard) if self._heard == heard else (0, self._heard)


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
