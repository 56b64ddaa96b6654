"""The model without any server: batches back to back in one process. Prints one JSON object.

Arguments: file of request bodies (one JSON object a line), batch size, warm-up seconds, measured seconds, threads.
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import Model, load


def run(model: Model, batches: Iterator[list[str]], seconds: float, workers: int) -> tuple[int, float]:
    """Texts classified and the time that took (s), by as many threads, each with batches of its own."""
    counts = [0] * workers
    taking = threading.Lock()
    started = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() - started < seconds:
            with taking:
                batch = next(batches)
            counts[number] += len(model.classify(batch))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts), time.perf_counter() - started


def main(bodies: str, batch: int, warmup_s: float, seconds: float, workers: int) -> dict[str, Any]:
    texts = [json.loads(line)["text"] for line in Path(bodies).read_text(encoding="utf-8").splitlines()]
    model = load()
    for duration_s in (warmup_s, seconds):
        endless = itertools.cycle(texts)
        batches = iter(lambda source=endless: list(itertools.islice(source, batch)), [])
        count, took_s = run(model, batches, duration_s, workers)
    return {"requests": count, "seconds": took_s, "failed": 0}


if __name__ == "__main__":
    bodies, batch, warmup, seconds, workers = sys.argv[1:6]
    print(json.dumps(main(bodies, int(batch), float(warmup), float(seconds), int(workers))))
