"""Rate limit: one token bucket per client. Pure, with an injected clock."""

from collections import OrderedDict
from collections.abc import Callable

# Past it the one that was quiet longest is forgotten, and so starts with a full bucket.
_MAX_CLIENTS = 1024


class RateLimit:
    """`per_minute` requests a minute on average, and as many at once after a quiet minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float], max_clients: int = _MAX_CLIENTS) -> None:
        self._capacity = float(per_minute)
        self._refill_per_s = per_minute / 60
        self._clock = clock
        self._max_clients = max_clients
        # Tokens left and when that was (s), least recently used first.
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: bytes) -> float:
        """0 if `client` may go on, and one token is taken; else the time until it may (s)."""
        now = self._clock()
        tokens, at = self._buckets.pop(client, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - at) * self._refill_per_s)
        allowed = tokens >= 1.0
        self._buckets[client] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - tokens) / self._refill_per_s
