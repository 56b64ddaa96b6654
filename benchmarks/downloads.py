"""One large model from a hub on this computer: ours (resumable, hashed, synced to disk) against `curl -L -o`.

Run as `python -m benchmarks.downloads`; see benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import report
from benchmarks.report import Aim, Spread
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.downloader import download
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.spec import ModelSpec
from sidecar.settings import ROOT

SAMPLE_S = 0.02
LARGE, SMALL = "acme/large", "acme/small"
BLOCK_BYTES = 1 << 24


class Run(NamedTuple):
    """One download; growth is the most RSS while it ran over the RSS before (MiB), where it was watched."""

    seconds: float
    cpu_s: float
    growth_mib: float = 0.0


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size-mb", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where both write (default: the system's temporary folder)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return _child(options.child)
    report.print_machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        figures = _run(Path(name), options.rounds, options.size_mb * 1_000_000)
    rates = {key: [options.size_mb / seconds for seconds in figures[key]] for key in ("ours", "curl")}
    for key, values in rates.items():
        cpu = Spread.of(figures[f"{key}_cpu"]).text(2)
        print(f"{key:<6} {Spread.of(values).text(0)} MB/s, {cpu} s of processor time")
    aims = [
        Aim("rate of ours to that of curl", report.ratios(rates["ours"], rates["curl"]), 0.8, True),
        Aim("growth of our RSS", Spread.of(figures["growth_mib"]), 16, False, " MiB"),
    ]
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


def _run(folder: Path, rounds: int, size: int) -> dict[str, Any]:
    _write(folder / "hub" / LARGE / "model.onnx", size)
    _write(folder / "hub" / SMALL / "model.onnx", 1_000_000)
    figures: dict[str, Any] = {"ours": [], "curl": [], "ours_cpu": [], "curl_cpu": [], "growth_mib": []}
    hub = subprocess.Popen(
        [sys.executable, "-m", "tests.hub", str(folder / "hub")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert hub.stdout
        url = next(json.loads(line)["url"] for line in hub.stdout if "url" in json.loads(line))
        for turn in range(rounds + 1):
            curl, ours = _curl(url, folder), _ours(url, folder)
            if turn == 0:
                continue  # bytecode, disk cache
            for key, run in (("curl", curl), ("ours", ours)):
                figures[key].append(run.seconds)
                figures[f"{key}_cpu"].append(run.cpu_s)
            figures["growth_mib"].append(ours.growth_mib)
            print(f"round {turn}: curl {curl.seconds:.2f} s, ours {ours.seconds:.2f} s", flush=True)
    finally:
        hub.kill()
        hub.wait()
    return figures


def _write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        while size > 0:
            file.write(os.urandom(min(size, BLOCK_BYTES)))
            size -= BLOCK_BYTES


def _curl(url: str, folder: Path) -> Run:
    """What curl takes for the same file; it neither hashes it nor waits for the disk."""
    target = folder / "curl.out"
    address = f"{url}/{LARGE}/resolve/main/model.onnx"
    before, began = _children_cpu_s(), time.perf_counter()
    subprocess.run(["curl", "-sSfL", "-o", str(target), address], check=True)
    run = Run(time.perf_counter() - began, _children_cpu_s() - before)
    target.unlink()
    os.sync()  # its dirty pages shall not slow the next one
    return run


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _ours(url: str, folder: Path) -> Run:
    environment = os.environ | {"HF_ENDPOINT": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.downloads", "--child", str(folder / "home")]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    os.sync()
    return Run(**json.loads(done.stdout))


def _child(home: Path) -> None:
    """A process that has downloaded before, as the server has."""
    cache = ModelCache(home / "models", Lockfile(home / "models.lock.json"))
    download(_spec("small", SMALL), cache)
    me, peak, done = psutil.Process(), [0], threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            peak[0] = max(peak[0], me.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu_s, began = time.process_time(), time.perf_counter()
    download(_spec("large", LARGE), cache)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    done.set()
    watcher.join()
    for name, repo in (("small", SMALL), ("large", LARGE)):
        cache.remove(_spec(name, repo))
    cache.lockfile.path.unlink()
    print(json.dumps(Run(seconds, cpu_s, max(0, peak[0] - before) / 2**20)._asdict()))


def _spec(name: str, repo: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "id": name,
            "title": name,
            "capabilities": ["emotion"],
            "runtime": "onnx",
            "licence": "none",
            "source": {"repo": repo},
            "files": [{"path": "model.onnx"}],
        }
    )


if __name__ == "__main__":
    main()
