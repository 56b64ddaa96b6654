"""The three forms of a classifier without any server, in the torch profile's environment; `benchmarks.text` starts it.

stdin, as JSON: {"specs": {name: entry}, "texts", "sizes", "rounds", "seconds", "threads"}. stdout: times (ms).
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from sidecar.catalogue.spec import ModelSpec
from sidecar.runner.adapters import make_adapter

WARM_UP = 3


def batches(adapters: dict[str, Any], texts: Sequence[str], size: int, rounds: int) -> dict[str, list[float]]:
    """One call with `size` texts at a time; the contestants take turns with the same texts."""
    took: dict[str, list[float]] = {name: [] for name in adapters}
    for turn in range(WARM_UP + rounds):
        part = [texts[(turn * size + number) % len(texts)] for number in range(size)]
        for name, adapter in adapters.items():
            started = time.perf_counter()
            adapter.classify(part, "emotion")
            if turn >= WARM_UP:
                took[name].append((time.perf_counter() - started) * 1000)
    return took


def concurrent(adapter: Any, texts: Sequence[str], clients: int, seconds: float) -> list[float]:
    """Threads that each ask for one text after the other."""
    took: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        turn = number
        while (started := time.perf_counter()) < end:
            adapter.classify([texts[turn % len(texts)]], "emotion")
            took[number].append((time.perf_counter() - started) * 1000)
            turn += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for mine in took for each in mine]


def main() -> None:
    frames, sys.stdout = sys.stdout, sys.stderr
    job = json.load(sys.stdin)
    adapters = {}
    for name, spec in job["specs"].items():
        adapters[name] = make_adapter(ModelSpec.model_validate(spec), job["threads"], "cpu")
        adapters[name].load(lambda *_: None)
    found: dict[str, Any] = {"batch": {name: {} for name in adapters}, "concurrent": {name: {} for name in adapters}}
    for size in job["sizes"]:
        for name, took in batches(adapters, job["texts"], size, job["rounds"]).items():
            found["batch"][name][size] = took
    for size in job["sizes"]:
        for name, adapter in adapters.items():
            found["concurrent"][name][size] = concurrent(adapter, job["texts"], size, job["seconds"])
    print(json.dumps(found), file=frames)


if __name__ == "__main__":
    main()
