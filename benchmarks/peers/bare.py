"""The model without any server: batches back to back in one process. Prints one JSON object.

Arguments: file of request bodies (one JSON object a line), batch size, warm-up seconds, measured seconds.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import Model, load


def run(model: Model, batches: Iterator[list[str]], seconds: float) -> tuple[int, float]:
    """Texts classified and the time that took (s)."""
    count = 0
    started = time.perf_counter()
    while (took_s := time.perf_counter() - started) < seconds:
        count += len(model.classify(next(batches)))
    return count, took_s


def main(bodies: str, batch: int, warmup_s: float, seconds: float) -> dict[str, Any]:
    texts = [json.loads(line)["text"] for line in Path(bodies).read_text(encoding="utf-8").splitlines()]
    model = load()
    endless = itertools.cycle(texts)
    run(model, iter(lambda: list(itertools.islice(endless, batch)), []), warmup_s)
    endless = itertools.cycle(texts)
    count, took_s = run(model, iter(lambda: list(itertools.islice(endless, batch)), []), seconds)
    return {"requests": count, "seconds": took_s, "failed": 0}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
