"""A histogram with fixed bounds, cheap enough for every item: a bisection and two additions."""

from bisect import bisect_left
from itertools import accumulate

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what takes time: HTTP requests, waiting in a queue, a batch."""
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds for batch sizes."""


class Histogram:
    """Counts per bound (a value belongs to the first bound it does not exceed), and the sum of all values."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, int]]:
        """Prometheus' cumulative buckets: upper bound and count up to it, "+Inf" last."""
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        return list(zip(names, accumulate(self._counts), strict=True))
