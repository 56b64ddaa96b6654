"""Random faults of the hub and SIGKILL at random moments: a download ends verified or can be resumed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.catalogue.cache import PART, ModelCache
from sidecar.catalogue.lockfile import Lockfile
from tests.catalogue.conftest import ROOT, make_spec, random_bytes
from tests.hub import Asked, Fault, Hub

DOWNLOADS = int(os.environ.get("SIDECAR_TEST_DOWNLOADS", "200"))
WORKERS = 6
ATTEMPTS = 40
RATE = 2_000_000.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


class Outcome(NamedTuple):
    attempts: int
    kills: int
    size: int


class Forker:
    """One download process at a time, to be killed."""

    def __init__(self, hub: Hub) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SIDECAR_"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "PYTHONPATH": str(ROOT)}
        script = str(ROOT / "tests" / "fixtures" / "download_forker.py")
        self._process = subprocess.Popen(
            [sys.executable, script], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def attempt(self, home: Path, spec: dict[str, object], kill_after_s: float | None) -> int:
        """Exit code of the download; -9 if it was killed."""
        assert self._process.stdin and self._process.stdout
        task = {"home": str(home), "spec": spec, "kill_after_s": kill_after_s}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline())["exit"])

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def misbehave(asked: Asked) -> Fault | None:
    """About every third request for bytes goes wrong."""
    after = random.randrange(400_000)
    roll = random.random()
    for share, fault in (
        (0.12, Fault("cut", after)),
        (0.05, Fault("truncate", after)),
        (0.04, Fault("stall", after, 3.0)),
        (0.05, Fault("status", status=random.choice([429, 500, 502, 503, 504]))),
        (0.02, Fault("silent", seconds=3.0)),
        (0.02, Fault("longer")),
        (0.01, Fault("wrong_range")),
        (0.01, Fault("corrupt", after)),
    ):
        roll -= share
        if roll < 0:
            return fault
    return None


def check(cache: ModelCache, files: dict[str, bytes]) -> None:
    """Whatever has its final name is right, however its process ended."""
    for path in cache.root.rglob("*"):
        if path.is_file() and path.suffix != PART and ".locks" not in path.parts:
            name = "/".join(path.relative_to(cache.root).parts[2:])
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(files[name]).digest(), path


def one_download(number: int, home: Path, hub: Hub, forkers: list[Forker]) -> Outcome:
    seed = random.Random(number)
    names = ["model.onnx", "sub/extra.safetensors", "config.json"][: seed.randint(1, 3)]
    files = {name: random_bytes(seed.randint(1, 600_000), seed.randint(0, 10**9)) for name in names}
    hub.add(f"acme/m{number}", dict(files))
    spec = make_spec(f"acme/m{number}", *names)
    cache = ModelCache(home / "models", Lockfile(home / "models.lock.json"))
    forker, kills = forkers.pop(), 0
    try:
        for attempt in range(1, ATTEMPTS + 1):
            kill_after_s = seed.uniform(0.0, 0.5) if seed.random() < 0.7 and attempt < 10 else None
            code = forker.attempt(home, spec.model_dump(mode="json"), kill_after_s)
            kills += code == -signal.SIGKILL
            check(cache, files)
            if code == 0:
                break
        assert cache.state(spec) == "complete", (number, attempt)
        for name, content in files.items():
            assert (cache.folder(spec) / name).read_bytes() == content
        return Outcome(attempt, kills, sum(map(len, files.values())))
    finally:
        forkers.append(forker)


@pytest.mark.slow
@pytest.mark.chaos
def test_downloads_end_verified_or_resumable_whatever_happens(hub: Hub, tmp_path: Path) -> None:
    hub.choose = misbehave
    hub.bytes_per_s = RATE
    began = time.monotonic()
    forkers = [Forker(hub) for _ in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        tasks = [pool.submit(one_download, n, tmp_path / str(n), hub, forkers) for n in range(DOWNLOADS)]
        outcomes = [task.result() for task in tasks]
    for forker in forkers:
        forker.close()
    size = sum(outcome.size for outcome in outcomes)
    twice = (hub.total_sent() - size) / size
    print(
        f"\n{len(outcomes)} downloads, {size / 1e6:.0f} MB, {sum(o.kills for o in outcomes)} SIGKILLs, "
        f"{sum(o.attempts for o in outcomes)} attempts, {twice:.1%} fetched twice, {time.monotonic() - began:.0f} s"
    )
    assert sum(outcome.kills for outcome in outcomes) >= DOWNLOADS / 10
    assert twice <= 0.10
