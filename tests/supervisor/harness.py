"""A supervisor under test: a real process around the stand-in server, in a home of its own."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from sidecar.supervisor.handshake import Handshake, HandshakeFile
from sidecar.supervisor.probe import Endpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SUPERVISE = [sys.executable, str(FIXTURES / "supervise_standin.py"), "supervise"]
DEADLINE_S = 15.0
Result = TypeVar("Result")


def until(condition: Callable[[], Result], what: str = "", timeout_s: float = DEADLINE_S) -> Result:
    """The condition's first true value. Fails when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)
    return result


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than an unreaped entry."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running:
    """One supervisor process; its stdin is a pipe that the test holds, as a host would."""

    def __init__(
        self, home: Path, *flags: str, standin: str = "", stdin: int = subprocess.PIPE, **settings: str
    ) -> None:
        self.home = home
        self.environment = environment_of(home, standin, **settings)
        self.process = subprocess.Popen(
            [*SUPERVISE, *flags],
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.file = HandshakeFile(home / "run" / "sidecar.json")
        self.events: list[dict[str, Any]] = []
        self._stderr = b""
        self._readers = [threading.Thread(target=read) for read in (self._read_events, self._read_stderr)]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self._stderr = self.process.stderr.read()

    def stderr(self) -> str:
        """All of it; only after the end."""
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return self._stderr.decode()

    def phases(self) -> list[str]:
        """The phases that --events told, repetitions left out."""
        self.stderr()
        phases = [event["phase"] for event in self.events]
        return [phase for index, phase in enumerate(phases) if index == 0 or phases[index - 1] != phase]

    def until_phase(self, phase: str = "ready", **more: Any) -> Handshake:
        """The first handshake of this supervisor in that phase."""

        def look() -> Handshake | None:
            assert self.process.poll() is None or phase == "failed", f"ended early: {self.stderr()}\n{self.log()}"
            found = self.file.read()
            ours = found is not None and found.supervisor.pid == self.pid and found.phase == phase
            return found if ours and all(getattr(found, name) == value for name, value in more.items()) else None

        return until(look, f"phase {phase} {more}, now {self.file.read()}")  # type: ignore[return-value]

    def until_server_after(self, pid: int) -> Handshake:
        """The handshake that shows another server than `pid`, ready."""

        def look() -> Handshake | None:
            found = self.file.read()
            return found if found and found.phase == "ready" and found.server and found.server.pid != pid else None

        return until(look, f"a server after {pid}")  # type: ignore[return-value]

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def log(self) -> str:
        try:
            return (self.home / "logs" / "sidecar.log").read_text(errors="replace")
        except FileNotFoundError:  # not yet, or between the two steps of a rotation
            return ""

    def role(self, *role: str) -> "subprocess.CompletedProcess[str]":
        """Another role of `python -m sidecar` for the same home."""
        command = [SUPERVISE[0], SUPERVISE[1], *role]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)

    def close(self) -> None:
        """End whatever is left of it."""
        with contextlib.suppress(psutil.Error):
            tree = psutil.Process(self.pid)
            for process in [*tree.children(recursive=True), tree]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.process.wait()
        self.stderr()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def environment_of(home: Path, standin: str = "", **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return {**clean, "SIDECAR_HOME": str(home), "STANDIN": standin, **settings}


def server_pid(handshake: Handshake) -> int:
    assert handshake.server is not None
    return handshake.server.pid


def until_ready(home: Path) -> Handshake:
    file = HandshakeFile(home / "run" / "sidecar.json")
    ready = until(lambda: (now := file.read()) and now.phase == "ready" and now)
    assert ready
    return ready


def ask(handshake: Handshake, method: str, path: str, timeout_s: float = 5.0) -> tuple[int, dict[str, Any]]:
    """(status, JSON) of an authenticated request to the server."""
    endpoint = Endpoint(handshake.host, handshake.port, handshake.token, handshake.instance_id)
    status, body = endpoint.request(method, path, timeout_s)
    return status, json.loads(body or b"{}")


def run_python(source: str, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    command: Sequence[str] = [sys.executable, "-c", source, *arguments]
    return subprocess.Popen(command, **options)
