"""Is a candidate as good as the original, and is it faster. The decision is a pure function of the figures."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sidecar.capabilities.base import probabilities

Array = npt.NDArray[Any]
Classify = Callable[[Sequence[Any]], Array]

ORIGINAL = "torch"
BATCHES = (1, 8, 16)
ROUNDS = 15
WARM_UP = 2
# One text in a hundred may get another label, and the logits must keep their direction.
LEAST_SAME_LABEL = 0.99
LEAST_COSINE = 0.985
# Less than this is not worth a second copy of the model on the disk.
LEAST_SPEEDUP = 1.1


class Agreement(NamedTuple):
    """`same_label`: share of texts with the same answer. Cosines are of the logits, per text."""

    same_label: float
    cosine_mean: float
    cosine_min: float
    texts: int

    @property
    def good(self) -> bool:
        return self.same_label >= LEAST_SAME_LABEL and self.cosine_mean >= LEAST_COSINE


class Latency(NamedTuple):
    """Of one call with so many texts (ms)."""

    p50_ms: float
    p99_ms: float


class Choice(NamedTuple):
    """`kept` is None where the original stays the best; `statement` says why, for people."""

    kept: str | None
    statement: str


def agreement(expected: Array, found: Array, multi_label: bool = False, threshold: float | None = None) -> Agreement:
    """Logits (texts, labels) against logits. Above `threshold` holds the best label, or each with `multi_label`."""
    if multi_label:
        least = 0.5 if threshold is None else threshold
        holds, still = (probabilities(logits, True) > least for logits in (expected, found))
        same = (holds == still).all(axis=1)
    else:
        same = expected.argmax(axis=1) == found.argmax(axis=1)
        if threshold is not None:  # the best label counts only above it
            holds, still = (probabilities(logits).max(axis=1) > threshold for logits in (expected, found))
            same &= holds == still
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (expected * found).sum(axis=1) / np.maximum(lengths, 1e-12)
    return Agreement(float(same.mean()), float(cosines.mean()), float(cosines.min()), len(expected))


def measure(contestants: Mapping[str, Classify], texts: Sequence[Any]) -> dict[str, dict[int, Latency]]:
    """All in turn, call by call, with the same texts, so that a machine that slows down slows all of them."""
    found: dict[str, dict[int, Latency]] = {name: {} for name in contestants}
    for batch in BATCHES:
        took: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(WARM_UP + ROUNDS):
            start = turn * batch % max(1, len(texts) - batch)
            part = texts[start : start + batch]
            for name, classify in contestants.items():
                started = time.perf_counter()
                classify(part)
                if turn >= WARM_UP:
                    took[name].append((time.perf_counter() - started) * 1000)
        for name, times in took.items():
            found[name][batch] = Latency(statistics.median(times), float(np.percentile(times, 99)))
    return found


def speedups(latencies: Mapping[str, Mapping[int, Latency]], name: str) -> dict[int, float]:
    """The original's median latency to this one's, by batch size."""
    return {batch: latencies[ORIGINAL][batch].p50_ms / own.p50_ms for batch, own in latencies[name].items()}


def choose(agreements: Mapping[str, Agreement], latencies: Mapping[str, Mapping[int, Latency]]) -> Choice:
    """The fastest candidate that agrees with the original and is faster at every batch size."""
    gains = {name: speedups(latencies, name) for name in agreements}
    good = [name for name, found in agreements.items() if found.good and min(gains[name].values()) >= LEAST_SPEEDUP]
    told = "; ".join(f"{name}: {_verdict(found, gains[name])}" for name, found in agreements.items())
    if not good:
        return Choice(None, f"nothing is gained, the original stays as it is ({told})")
    best = max(good, key=lambda name: math.prod(gains[name].values()))
    return Choice(best, told)


def _verdict(found: Agreement, gain: Mapping[int, float]) -> str:
    times = ", ".join(f"{value:.2f}× at {batch}" for batch, value in gain.items())
    text = f"{100 * found.same_label:.1f} % same label on {found.texts} texts, cosine {found.cosine_mean:.4f}, {times}"
    if not found.good:
        return f"{text}; too far from the original"
    return text if min(gain.values()) >= LEAST_SPEEDUP else f"{text}; not faster everywhere"
