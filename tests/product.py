"""The whole product as a real process, driven from outside."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0

FAKE_TOML = """
id = "{id}"
title = "a fake"
capabilities = ["emotion"]
runtime = "fake"
licence = "none"
preference = {preference}
memory_mb = {memory_mb}
{more}
folder = "."
memory_limit_mb = {memory_limit_mb}

[heads.emotion]
output = "logits"
labels = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]

[batch]
timeout_s = {timeout_s}
max_items = {max_items}

[options]
load = "{load}"
load_s = {load_s}
item_s = {item_s}
ballast_mb = {ballast_mb}
{more_options}
"""


HUB_FAKE_TOML = """
id = "{id}"
title = "one that comes from the hub"
capabilities = ["emotion"]
runtime = "fake"
licence = "MIT"
preference = 500
files = [{{ path = "weights.safetensors" }}]

[source]
repo = "tiny/{id}"

[heads.emotion]
labels = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
"""


def write_hub_fake(folder: Path, model_id: str) -> Path:
    """A catalogue folder with a preferred fake model whose `weights.safetensors` the hub has as `tiny/ID`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{model_id}.toml").write_text(HUB_FAKE_TOML.format(id=model_id), encoding="utf-8")
    return folder


def write_fake(folder: Path, **values: Any) -> Path:
    """A catalogue folder with one fake model that is preferred to the embedded one."""
    defaults = {"id": "fake", "load": "ok", "load_s": 0.0, "item_s": 0.0, "timeout_s": 2.0}
    defaults |= {"max_items": 32, "memory_limit_mb": 0, "ballast_mb": 0, "preference": 100, "memory_mb": 0, "more": ""}
    defaults |= {"more_options": ""}
    folder.mkdir(parents=True, exist_ok=True)
    text = FAKE_TOML.format(**{**defaults, **values})
    (folder / f"{values.get('id', 'fake')}.toml").write_text(text, encoding="utf-8")
    return folder


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S, pause_s: float = 0.01) -> Any:
    """Wait for a condition with a deadline; returns its first true value."""
    end = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(pause_s)


def alive(process: psutil.Process) -> bool:
    """Whether the process runs: an unreaped entry of a dead one does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def cpu_s(process: psutil.Process) -> float:
    """Processor time that it has used: what a busy machine does not make longer."""
    times = process.cpu_times()
    return float(times.user + times.system)


def idle(process: psutil.Process) -> Callable[[], bool]:
    """Whether it wanted no processor time in fifty looks in a row. A machine that stood still is one look."""
    used, looks = -1.0, 0

    def still() -> bool:
        nonlocal used, looks
        now = cpu_s(process)
        looks = looks + 1 if now == used and not _wants_to_run(process) else 0
        used = now
        return looks >= 50

    return still


def _wants_to_run(process: psutil.Process) -> bool:
    """Whether one of its threads waits for nothing but a processor, which others may have. Linux says so."""
    for stat in Path(f"/proc/{process.pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "R":
                return True
    return False


class Product:
    """`python -m sidecar supervise` in a home of its own. Close it, or use it as a context."""

    def __init__(self, home: Path, *flags: str, wait: bool = True, **env: str) -> None:
        self.home = home
        self.events: list[dict[str, Any]] = []
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
        environment |= {"SIDECAR_HOME": str(home), "PYTHONPATH": str(ROOT), **env}
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "supervise", "--events", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait("ready", "degraded")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait(self, *phases: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """The first handshake from now on whose phase is one of these (or the present one)."""
        present = max(len(self.events) - 1, 0)

        def look() -> dict[str, Any] | None:
            told = self.events[present:]
            return next((event for event in told if event["phase"] in (*phases, "failed")), None)

        found: dict[str, Any] = until(look, f"phase {phases}", deadline_s)
        assert found["phase"] in phases, (found, self.log()[-3000:])
        return found

    @property
    def handshake(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def port(self) -> int:
        return int(self.handshake["port"])

    @property
    def token(self) -> str:
        return str(self.handshake["token"])

    def log(self) -> str:
        path = self.home / "logs" / "sidecar.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 30.0
    ) -> Answer:
        """One request on a connection of its own; a dict body is sent as JSON. `headers` replace the defaults."""
        sent = {"Authorization": f"Bearer {self.token}"} if headers is None else headers
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def emotion(self, text: str, **options: Any) -> Answer:
        return self.call("POST", "/emotion/detect", {"text": text}, **options)

    def server(self) -> psutil.Process:
        return psutil.Process(self.handshake["server"]["pid"])

    def runners(self) -> list[psutil.Process]:
        try:
            return self.server().children()
        except (psutil.NoSuchProcess, TypeError):
            return []

    def runner(self, model: str = "minilm") -> psutil.Process | None:
        """The process that has this model loaded; None while there is none."""
        pid = self.call("GET", f"/models/{model}").json()["pid"]
        try:
            return psutil.Process(pid) if pid else None
        except psutil.NoSuchProcess:  # ended since the answer, or before the server has noticed
            return None

    def tree(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def close(self) -> int:
        """End it as a host does, by closing its stdin; returns the exit code."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(5)
            self.process.stdout.close()

    def __enter__(self) -> "Product":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
