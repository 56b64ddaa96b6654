"""How fast it answers, alone and with a hundred at once."""

import http.client
import math
import statistics
import threading
from collections.abc import Iterator, Sequence

from sidecar.doctor.client import Client
from sidecar.doctor.finding import Finding, Level
from sidecar.settings import Settings

REQUESTS = 60
WARM_UP = 5
CONCURRENT = 100
SLOW_MS = 150.0
TOGETHER_MS = 5000.0
GOOD = "200"
REFUSED = "overloaded"
LIMITED = "rate_limited"
_SLOW_CURE = "end what keeps the processor busy, or take a smaller model (`models list`, `models why ID`)"
TEXTS = (
    "Thanks, that works.",
    "I have been on hold for forty minutes and nobody can tell me where my parcel is.",
    "The train leaves at a quarter past nine from platform two, so we should be there a little earlier.",
    "No way, you two know each other?",
    "My hands would not stop shaking when the doctor called, and then it turned out to be nothing at all, thank God, "
    "though I still did not sleep that night.",
)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def performance(client: Client, settings: Settings) -> Iterator[Finding]:
    """Latency of single texts, one after the other."""
    took: list[float] = []
    for number in range(WARM_UP + REQUESTS):
        answer = client.call("POST", "/emotion/detect", {"text": TEXTS[number % len(TEXTS)]})
        if answer.status != 200:
            code, detail = answer.problem()
            if code == LIMITED:
                yield Finding("info", "latency", "not measured: RATE_LIMIT_PER_MINUTE lets too few requests through")
                return
            yield Finding("fail", "latency", f"status {answer.status} {code}: {detail}")
            return
        if number >= WARM_UP:
            took.append(answer.took_ms)
    p50, p95 = statistics.median(took), percentile(took, 0.95)
    figures = {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "max_ms": round(max(took), 2), "requests": REQUESTS}
    level: Level = "ok" if p95 <= SLOW_MS else "warn"
    detail = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, slowest {max(took):.1f} ms ({REQUESTS} texts, one after the other)"
    yield Finding(level, "latency", detail, "" if level == "ok" else _SLOW_CURE, figures)


def concurrency(client: Client, settings: Settings) -> Iterator[Finding]:
    """A hundred requests at the same moment, each on a connection of its own."""
    outcomes = ["no answer"] * CONCURRENT
    took_ms = [0.0] * CONCURRENT
    together = threading.Barrier(CONCURRENT)

    def one(number: int) -> None:
        mine = Client(client.handshake)
        try:
            mine.connect()
            together.wait()
            answer = mine.call("POST", "/emotion/detect", {"text": TEXTS[number % len(TEXTS)]})
            outcomes[number] = GOOD if answer.status == 200 else answer.problem()[0] or str(answer.status)
            took_ms[number] = answer.took_ms
        except (OSError, http.client.HTTPException, threading.BrokenBarrierError):
            together.abort()
        finally:
            mine.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(CONCURRENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield _verdict(outcomes, [each for each in took_ms if each])


def _verdict(outcomes: list[str], took_ms: list[float]) -> Finding:
    name = f"{len(outcomes)} at once"
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    told = ", ".join(f"{count} × {outcome}" for outcome, count in counts.items())
    if set(outcomes) - {GOOD, REFUSED, LIMITED}:
        return Finding("fail", name, told, "python3 launcher.py logs", {"outcomes": counts})
    p50, p95 = statistics.median(took_ms), percentile(took_ms, 0.95)
    figures = {"outcomes": counts, "p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "last_ms": round(max(took_ms), 2)}
    detail = f"{told}; p50 {p50:.0f} ms, p95 {p95:.0f} ms, the last after {max(took_ms):.0f} ms"
    if REFUSED in counts or LIMITED in counts:
        cure = "raise SIDECAR_QUEUE_SIZE" if REFUSED in counts else "raise RATE_LIMIT_PER_MINUTE"
        return Finding("warn", name, detail, cure, figures)
    slow = max(took_ms) > TOGETHER_MS
    return Finding("warn" if slow else "ok", name, detail, _SLOW_CURE if slow else "", figures)
