"""Who takes part: ours and the peers, each started fresh, awaited, and ended with its whole process tree."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import footprint
from benchmarks.load import Measured, Target, post
from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.process import usable_cores
from tests.product import Product, write_fake

HERE = Path(__file__).resolve().parent
MAX_BATCH = 32
READY_S = 60.0
LITSERVE_0 = "LitServe, batch_timeout 0"
LITSERVE_10 = "LitServe, batch_timeout 10 ms"
MOSEC = "mosec, max_wait_time 1 ms"
OURS = "ML Sidecar"

Started = AbstractContextManager[Target]


@dataclass(frozen=True)
class Setup:
    """What all contestants have in common. `failing`: no model, but one that raises on a bad text."""

    python: Path
    cores: int
    litserve_queue: str = "default"
    failing: bool = False
    item_s: float = 0.0

    @property
    def workers(self) -> int:
        """Processes of a peer, one thread each, which is how our runner uses the cores; one for the failing model."""
        return 1 if self.failing else self.cores

    def environment(self, threads: int = 1) -> dict[str, str]:
        """The environment of a peer: the catalogue entry of the embedded model, as JSON; `threads` of one batch."""
        spec = read_spec(BUILT_IN / "minilm.toml")
        graph = next(file.path for file in spec.files if file.path.endswith(".onnx"))
        config: dict[str, Any] = {
            "graph": str(spec.folder / graph),
            "tokenizer": str(spec.folder / "tokenizer.json"),
            "window": spec.window,
            "output": spec.heads["emotion"].output,
            "labels": spec.heads["emotion"].labels,
            "switches": spec.heads["emotion"].inputs,
            "threads": threads,
            "failing": self.failing,
            "item_s": self.item_s,
        }
        return {**clean_environment(), "BENCHMARK_MODEL": json.dumps(config)}


def default_cores() -> int:
    """As many as our runner takes by itself (sidecar/runner/worker.py)."""
    return min(8, usable_cores())


def clean_environment() -> dict[str, str]:
    """Ours without what would change how Python or we start; the launcher does the same."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SIDECAR_"))}


def forget_python_settings() -> None:
    """PYTHONDONTWRITEBYTECODE and the like of this shell must not reach the product: the launcher drops them."""
    for key in [key for key in os.environ if key.startswith("PYTHON")]:
        del os.environ[key]


@contextmanager
def ours(setup: Setup) -> Iterator[Target]:
    """The product as it is, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as folder:
        env = {"SIDECAR_THREADS": str(setup.cores)}
        if setup.failing:
            catalogue = write_fake(Path(folder) / "catalogue", item_s=setup.item_s)
            env["SIDECAR_CATALOGUE"] = str(catalogue)
        with Product(Path(folder), wait=True, **env) as product:
            target = Target(product.port, product.token, product.process.pid)
            _await_answer(OURS, target, lambda: product.process.poll() is None)
            yield target


def litserve(setup: Setup, batch_timeout_s: float) -> Started:
    arguments = (str(batch_timeout_s), str(MAX_BATCH), setup.litserve_queue, str(setup.workers))
    return _peer(setup, "litserve_app.py", *arguments)


def mosec(setup: Setup, wait_ms: int) -> Started:
    return _peer(setup, "mosec_app.py", str(wait_ms), str(MAX_BATCH), str(setup.workers))


CONTESTANTS: dict[str, Callable[[Setup], Started]] = {
    OURS: ours,
    LITSERVE_0: lambda setup: litserve(setup, 0.0),
    LITSERVE_10: lambda setup: litserve(setup, 0.01),
    MOSEC: lambda setup: mosec(setup, 1),
}


@contextmanager
def _peer(setup: Setup, script: str, *arguments: str) -> Iterator[Target]:
    port = _free_port()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(setup.python), str(HERE / script), str(port), *arguments],
            env=setup.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        target = Target(port, "", process.pid)
        try:
            _await_answer(script, target, lambda: process.poll() is None, log)
            yield target
        finally:
            footprint.end_tree(process.pid)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(name: str, target: Target, alive: Callable[[], bool], log: Any = None) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and alive():
        with contextlib.suppress(OSError, http.client.HTTPException):
            if post(target, "Is anybody there?") == 200:
                return
        time.sleep(0.05)
    said = ""
    if log is not None:
        log.seek(0)
        said = log.read()[-3000:]
    raise SystemExit(f"{name} did not answer within {READY_S:g} s (or ended)\n{said}")


def bare(setup: Setup, bodies: Path, batch: int, warmup_s: float, seconds: float, parallel: bool = False) -> Measured:
    """The model alone in a process of its own, batches of `batch` texts back to back.

    All cores work on one batch, or with `parallel` each on one of its own.
    """
    workers, threads = (setup.cores, 1) if parallel else (1, setup.cores)
    arguments = [str(bodies), str(batch), str(warmup_s), str(seconds), str(workers)]
    command = [str(setup.python), str(HERE / "bare.py"), *arguments]
    done = subprocess.run(command, env=setup.environment(threads), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bare.py failed: {done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout))
