"""Load: wrk for throughput, threads with a connection each for what has to be seen request by request."""

import http.client
import itertools
import json
import os
import random
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "models" / "build" / "data" / "emotion_test.tsv"
SCRIPT = Path(__file__).with_name("requests.lua")
PATH = "/emotion/detect"


class Target(NamedTuple):
    """A server that answers POST /emotion/detect; `pid` is the root of its process tree."""

    port: int
    token: str
    pid: int

    @property
    def headers(self) -> dict[str, str]:
        authorization = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"Content-Type": "application/json", **authorization}


class Measured(NamedTuple):
    """One run. `failed`: answers that were not 200; `broken`: connections that failed or timed out."""

    requests: int
    seconds: float
    failed: int = 0
    broken: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p95_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return (self.requests - self.failed) / self.seconds


def read_texts() -> list[str]:
    """Real sentences of mixed lengths: the emotion model's test split."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t", 1)[1] for line in lines if "\t" in line]


def mix_lengths(texts: list[str], seed: int) -> list[str]:
    """As many texts, from one word to some 120: of each, 1 to 8 sentences, or the first words of one."""
    chance = random.Random(seed)
    mixed = []
    for text in texts:
        kind = chance.random()
        if kind < 0.3:
            words = text.split()
            mixed.append(" ".join(words[: chance.randint(1, len(words))]))
        else:
            more = chance.sample(texts, chance.randint(1, 7)) if kind > 0.7 else []
            mixed.append(" ".join([text, *more]))
    return mixed


def write_bodies(path: Path, texts: list[str], seed: int) -> Path:
    """Request bodies, one a line, shuffled by `seed`."""
    shuffled = random.Random(seed).sample(texts, len(texts))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in shuffled), encoding="utf-8")
    return path


def require_wrk() -> str:
    """Path of wrk. Exits with the cure when it is missing."""
    if wrk := shutil.which("wrk"):
        return wrk
    raise SystemExit(
        "wrk is missing: the load client must be a compiled one. Install your system's package"
        " (Debian and Ubuntu: apt install wrk; macOS: brew install wrk)."
    )


def run_wrk(wrk: str, target: Target, bodies: Path, connections: int, seconds: float, path: str = PATH) -> Measured:
    """Closed loop: each of `connections` sends its next request when the last one is answered."""
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(SCRIPT)]
    environment = {**os.environ, "BENCHMARK_BODIES": str(bodies), "BENCHMARK_TOKEN": target.token}
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{target.port}{path}"], env=environment, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"wrk failed ({done.returncode}): {done.stdout}{done.stderr}")
    return Measured(**json.loads(lines[-1]))


def post(target: Target, text: str, timeout_s: float = 60.0) -> int:
    """Status of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=timeout_s)
    try:
        connection.request("POST", PATH, json.dumps({"text": text}), target.headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def post_together(target: Target, texts: list[str]) -> list[int]:
    """All texts at the same moment, each on an open connection of its own. Statuses in order; 0: no answer."""
    statuses = [0] * len(texts)
    barrier = threading.Barrier(len(texts))

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
        try:
            connection.connect()
            barrier.wait()
            connection.request("POST", PATH, json.dumps({"text": texts[number]}), target.headers)
            response = connection.getresponse()
            response.read()
            statuses[number] = response.status
        except (OSError, http.client.HTTPException):
            pass  # stays 0
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


@dataclass
class Steady:
    """Clients that send one request after the other, reconnect when they are cut off, and note what they met."""

    target: Target
    clients: int = 8
    answers: list[tuple[float, float]] = field(default_factory=list)  # (sent, answered), monotonic seconds
    refused: int = 0
    reset: int = 0
    failed: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Steady":
        texts = read_texts()
        for number in range(self.clients):
            mine = random.Random(number).sample(texts, len(texts))
            self._threads.append(threading.Thread(target=self._client, args=(mine,), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self, texts: list[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.target.port, timeout=60)
        turn = 0
        while not self._stop.is_set():
            turn = (turn + 1) % len(texts)
            sent_at = time.monotonic()
            try:
                connection.request("POST", PATH, json.dumps({"text": texts[turn]}), self.target.headers)
                response = connection.getresponse()
                response.read()
            except ConnectionRefusedError:
                connection.close()
                with self._lock:
                    self.refused += 1
            except (OSError, http.client.HTTPException):
                connection.close()
                with self._lock:
                    self.reset += 1
            else:
                with self._lock:
                    if response.status == 200:
                        self.answers.append((sent_at, time.monotonic()))
                    else:
                        self.failed.append(response.status)
        connection.close()

    def first_answer_after(self, moment: float, deadline_s: float = 30.0) -> float:
        """When the first request *sent* after `moment` was answered (an older answer may still lie in a buffer)."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            with self._lock:
                recent = [answered for sent, answered in self.answers[-1000:] if sent > moment]
            if recent:
                return min(recent)
            time.sleep(0.005)
        raise SystemExit(f"no answer within {deadline_s:g} s")

    def longest_gap(self, since: float, until: float) -> float:
        """Longest time within [since, until] in which no answer came (s)."""
        with self._lock:
            moments = sorted(answered for _, answered in self.answers if since <= answered <= until)
        edges = [since, *moments, until]
        return max(later - earlier for earlier, later in itertools.pairwise(edges))
