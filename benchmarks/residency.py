"""Four models on a budget for two under random traffic, and what loading costs those who do not wait for it.

Run as `python -m benchmarks.residency`; see benchmarks/README.md. Needs no peers.
"""

import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.peers import contestants
from benchmarks.report import Aim, Spread
from tests.product import Product, until, write_fake

MIB = 1 << 20
BALLAST_MB = 150
EMBEDDED_MB = 170  # pinned, so its share is never free
MODELS = ("a", "b", "c", "d")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of random traffic")
    parser.add_argument("--rounds", type=int, default=5, help="of loading four models beside a steady client")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    contestants.forget_python_settings()
    report.print_machine()
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as folder:
        budget = _four_on_two(Path(folder) / "budget", options.seconds, options.seed)
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as folder:
        steady = _steady_while_loading(Path(folder) / "steady", options.rounds)
    aims = _aims(budget, steady)
    report.print_aims(aims)
    report.write_json(options.json, {"budget": budget, "steady": steady}, aims)


def _ask(product: Product, model: str) -> int:
    body = {"text": "a text of medium length", "model": model}
    return product.call("POST", "/emotion/detect", body, timeout_s=120).status


def _four_on_two(home: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Random traffic of four clients to four models of ~190 MiB each, with room for two."""
    for name in MODELS:
        write_fake(home / "catalogue", id=name, ballast_mb=BALLAST_MB, memory_mb=BALLAST_MB + 40)
    budget_bytes = (2 * (BALLAST_MB + 60) + EMBEDDED_MB) * MIB
    env = {"SIDECAR_CATALOGUE": str(home / "catalogue"), "SIDECAR_MEMORY_BUDGET": str(budget_bytes)}
    statuses: dict[int, int] = {}
    samples: list[tuple[float, float]] = []  # sum and largest of the runners that hold ballast (MiB)
    end = time.monotonic() + seconds
    counting = threading.Lock()
    with Product(home, wait=True, **env) as product:
        _unload_all(product)  # the best one was loaded at the start
        before_mib = _tree_mib(product)

        def client(number: int) -> None:
            chance = random.Random(seed + number)
            while time.monotonic() < end:
                status = _ask(product, chance.choice(MODELS))
                with counting:
                    statuses[status] = statuses.get(status, 0) + 1
                time.sleep(chance.random() * 0.2)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            samples.append(_sizes(product))
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        _unload_all(product)
        left, _ = _sizes(product)
        grown_mib = _tree_mib(product) - before_mib
    return {
        "requests": sum(statuses.values()),
        "failed": sum(count for status, count in statuses.items() if status != 200),
        "budget_mib": budget_bytes / MIB - EMBEDDED_MB,
        "peak_mib": max(total for total, _ in samples),
        "largest_mib": max(largest for _, largest in samples),
        "over_budget_share": sum(total > budget_bytes / MIB - EMBEDDED_MB for total, _ in samples) / len(samples),
        "left_mib": left,
        "tree_grown_mib": grown_mib,
    }


def _tree_mib(product: Product) -> float:
    """RSS of all that is ours, supervisor and server included."""
    return sum(each.memory_info().rss for each in product.tree()) / MIB


def _unload_all(product: Product) -> None:
    for name in MODELS:
        product.call("POST", f"/models/{name}/unload", {})
    until(lambda: sum(_sizes(product)) < 120, "the memory is back", 20)


def _sizes(product: Product) -> tuple[float, float]:
    sizes = []
    for runner in product.runners():
        try:
            if "run" in runner.cmdline() and runner.cmdline()[-1] in MODELS:
                sizes.append(runner.memory_info().rss / MIB)
        except psutil.Error:
            continue
    return sum(sizes), max(sizes, default=0.0)


def _steady_while_loading(home: Path, rounds: int) -> dict[str, list[float]]:
    """p99 of one client of the embedded model: alone, and while four others load at the same time."""
    for name in MODELS:
        write_fake(home / "catalogue", id=name, preference=-1, ballast_mb=BALLAST_MB, load="ok")
    figures: dict[str, list[float]] = {"calm_p50": [], "calm_p99": [], "busy_p50": [], "busy_p99": [], "load_s": []}
    with Product(home, wait=True, SIDECAR_CATALOGUE=str(home / "catalogue")) as product:
        _latencies(product, threading.Event(), 2.0)
        for _ in range(rounds):
            calm = _latencies(product, threading.Event(), 4.0)
            done = threading.Event()
            started = time.monotonic()
            threads = [threading.Thread(target=_ask, args=(product, name)) for name in MODELS]
            for thread in threads:
                thread.start()

            def until_loaded(threads: list[threading.Thread] = threads, done: threading.Event = done) -> None:
                for thread in threads:
                    thread.join()
                done.set()

            threading.Thread(target=until_loaded).start()
            busy = _latencies(product, done, 60.0)
            figures["load_s"].append(time.monotonic() - started)
            for name, values in (("calm", calm), ("busy", busy)):
                figures[f"{name}_p50"].append(statistics.median(values))
                figures[f"{name}_p99"].append(statistics.quantiles(values, n=100)[98])
            for name in MODELS:
                product.call("POST", f"/models/{name}/unload", {})
    return figures


def _latencies(product: Product, stop: threading.Event, seconds: float) -> list[float]:
    """Of one request after the other (ms), until `stop` or for that long."""
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.is_set():
        started = time.perf_counter()
        assert _ask(product, "minilm") == 200
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def _aims(budget: dict[str, Any], steady: dict[str, list[float]]) -> list[Aim]:
    for name, value in budget.items():
        print(f"budget: {name:<20} {value:.2f}" if isinstance(value, float) else f"budget: {name:<20} {value}")
    for name, values in steady.items():
        print(f"steady: {name:<20} {Spread.of(values).text()}")
    over = (budget["peak_mib"] - budget["budget_mib"]) / budget["largest_mib"]
    return [
        Aim("requests that fail on a budget for two", Spread.of([float(budget["failed"])]), 0, False),
        Aim("over the budget, in models", Spread.of([over]), 1.0, False),
        Aim("memory left after unload (MiB)", Spread.of([budget["left_mib"]]), 1.0, False),
        Aim("growth of the whole tree after it (MiB)", Spread.of([budget["tree_grown_mib"]]), 30.0, False),
        Aim("p99 while four load / p99 alone", report.ratios(steady["busy_p99"], steady["calm_p99"]), 1.5, False),
    ]


if __name__ == "__main__":
    main()
