"""Timer-free batching for one model.

While a batch runs, requests queue; when it returns, what is queued goes as the next one, cut to a padded-token budget.
One more batch is in flight than the runner computes at once, which hides the pipe and the HTTP work between two
batches. An idle runner starts at once: there is no window to wait for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from sidecar.catalogue.spec import BatchLimits
from sidecar.errors import (
    InferenceError,
    OutOfMemoryError,
    OverloadedError,
    RunnerCrashedError,
    RunnerTimeoutError,
    SidecarError,
)
from sidecar.inference.histogram import Histogram
from sidecar.inference.poison import PoisonLedger

MAX_ATTEMPTS = 2  # a request is retried once after its runner died
# A bulk request that has waited this long counts as interactive, so that a steady stream cannot starve it.
_BULK_PATIENCE_S = 2.0


# Before the first batch has been measured.
_GUESSED_ITEM_S = 0.05

log = logging.getLogger("sidecar.inference")


class Priority(IntEnum):
    """Interactive requests go before bulk ones."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(eq=False, slots=True)
class Job:
    """One item on its way through a model."""

    capability: str
    item: Any
    cost: int
    priority: Priority
    queued_at: float
    future: asyncio.Future[Any]
    crashes: int = 0
    flight: "Flight | None" = None


@dataclass(eq=False, slots=True)
class Flight:
    """A batch on its way."""

    waiting: int
    """Of its jobs, those that somebody still waits for."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Stats:
    """Counters since start and the service time, for /health, /metrics and Retry-After."""

    items: int = 0
    batches: int = 0
    failed: int = 0
    retried: int = 0
    dropped: int = 0
    item_s: float | None = None
    sizes: dict[int, int] = field(default_factory=dict)
    queued: Histogram = field(default_factory=Histogram)
    """Time of an item from its arrival until the model began on its batch (s)."""
    computed: Histogram = field(default_factory=Histogram)
    """Time of a batch in the model (s)."""

    def served(self, count: int, took_s: float) -> None:
        """Record a batch; `item_s` is an exponential average over roughly the last twenty batches."""
        self.items += count
        self.batches += 1
        self.sizes[count] = self.sizes.get(count, 0) + 1
        self.computed.observe(took_s)
        took_item_s = took_s / count
        self.item_s = took_item_s if self.item_s is None else self.item_s + 0.05 * (took_item_s - self.item_s)


def cut(queue: Sequence[Job], limits: BatchLimits, now: float) -> list[Job]:
    """Choose the next batch: pure, and O(n log n) in the queue.

    The anchor is the oldest job of the best priority, so nobody starves; it is joined by the jobs of its capability
    nearest to it in length, until `max_items`, the padded-token budget or the share of padding is reached. Jobs whose
    runner died under them go alone, so that a poisonous one takes nobody along.
    """
    anchor = min(queue, key=lambda job: (_rank(job, now), job.queued_at))
    if anchor.crashes:
        return [anchor]
    mates = sorted(
        (job for job in queue if job.capability == anchor.capability and not job.crashes), key=lambda job: job.cost
    )
    low = high = next(index for index, job in enumerate(mates) if job is anchor)
    tokens = anchor.cost
    # Grow around the anchor. A shorter neighbour costs only its own padding, so it is taken first.
    while high - low + 1 < limits.max_items:
        if low > 0 and _fits(high - low + 2, mates[high].cost, tokens + mates[low - 1].cost, limits):
            low -= 1
            tokens += mates[low].cost
        elif high + 1 < len(mates) and _fits(
            high - low + 2, mates[high + 1].cost, tokens + mates[high + 1].cost, limits
        ):
            high += 1
            tokens += mates[high].cost
        else:
            break
    return mates[low : high + 1]


def _fits(items: int, longest: int, tokens: int, limits: BatchLimits) -> bool:
    padded = items * longest
    return padded <= limits.max_padded_tokens and padded - tokens <= limits.max_padding * padded


def _rank(job: Job, now: float) -> int:
    return Priority.INTERACTIVE if now - job.queued_at > _BULK_PATIENCE_S else job.priority


class Batcher:
    """Queue and flights of one model.

    `run(capability, items)` executes one batch and returns its outputs in order. It raises RunnerCrashedError,
    RunnerTimeoutError or OutOfMemoryError when the runner died under this batch, NotStartedError when it died before
    this batch began; `poison` has then been told whom to suspect.
    """

    def __init__(
        self,
        run: Callable[[str, list[Any]], Awaitable[list[Any]]],
        limits: BatchLimits,
        queue_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._run = run
        self._limits = limits
        self._queue_size = queue_size
        self._clock = clock
        self._queue: dict[int, Job] = {}  # by id(job): removal is O(1), order is arrival
        self._unsettled: set[Job] = set()  # queued or in flight
        self._flights: set[asyncio.Task[None]] = set()
        self.poison = PoisonLedger()
        self._landed_at = 0.0
        self._parallel = 1
        self._alone = False
        self._held = False
        self.stats = Stats()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def flying(self) -> int:
        """Batches in flight."""
        return len(self._flights)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._flights)

    def submit(self, capability: str, item: Any, cost: int, priority: Priority) -> asyncio.Future[Any]:
        """Queue one item. Cancelling the future takes it out of the queue.

        Raises OverloadedError when the queue is full and PoisonInputError for an input that crashed the runner before.
        """
        if len(self._queue) >= self._queue_size:
            wait_s = max(1.0, len(self._queue) * (self.stats.item_s or _GUESSED_ITEM_S))
            raise OverloadedError(
                f"{len(self._queue)} requests wait already; retry in {wait_s:.0f} s", retry_after_s=wait_s
            )
        self.poison.check(capability, item)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job = Job(capability, item, cost, priority, self._clock(), future)
        self._queue[id(job)] = job
        self._unsettled.add(job)
        future.add_done_callback(lambda _: self._left(job))
        self._pump()
        return future

    @property
    def parallel(self) -> int:
        """Batches computed at the same time."""
        return self._parallel

    def set_parallel(self, count: int) -> None:
        """A runner is ready: how many batches are computed at once from now on."""
        self._parallel = count
        self._landed_at = self._clock()  # what waited for the load was not in the model meanwhile
        self._pump()

    async def hold(self) -> None:
        """Begin no further batch, and return when those in flight have landed. Requests go on queueing."""
        self._held = True
        while self._flights:
            await asyncio.wait(set(self._flights))

    def release(self) -> None:
        """Undo `hold`."""
        self._held = False
        self._pump()

    def fail_all(self, error: SidecarError) -> None:
        """End everything that waits or runs with `error`."""
        for job in list(self._unsettled):
            _settle(job, error)

    def _left(self, job: Job) -> None:
        self._unsettled.discard(job)
        if self._queue.pop(id(job), None):
            self.stats.dropped += 1
        elif flight := job.flight:
            flight.waiting -= 1
            # Settled ones come here too; by then the task is done, or still has another job to settle.
            if flight.waiting == 0 and flight.task is not None:
                flight.task.cancel()

    def _pump(self) -> None:
        while self._queue and not self._alone and not self._held and len(self._flights) <= self._parallel:
            batch = cut(list(self._queue.values()), self._limits, self._clock())
            if batch[0].crashes:
                # The suspect of a crash runs with nothing beside it: nobody else may be blamed, or die with it.
                if self._flights:
                    return
                self._alone = True
            flight = Flight(len(batch))
            for job in batch:
                del self._queue[id(job)]
                job.flight = flight
            task = flight.task = asyncio.get_running_loop().create_task(self._fly(batch))
            self._flights.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._alone = False
        self._pump()

    async def _fly(self, batch: list[Job]) -> None:
        """Run a batch; when it fails, halve it until the one bad item fails alone."""
        batch = [job for job in batch if not job.future.done()]
        if not batch:
            return
        started = self._clock()
        try:
            outputs = await self._run(batch[0].capability, [job.item for job in batch])
            if len(outputs) != len(batch):
                raise InferenceError(f"{len(outputs)} outputs came for {len(batch)} items")
        except NotStartedError:
            self._requeue(batch)
        except (RunnerCrashedError, RunnerTimeoutError, OutOfMemoryError) as error:
            self._crashed(batch, error)
        except SidecarError as error:
            if len(batch) > 1 and isinstance(error, InferenceError):
                middle = len(batch) // 2
                await self._fly(batch[:middle])
                await self._fly(batch[middle:])
            else:
                self.stats.failed += len(batch)
                for job in batch:
                    _settle(job, error)
        except Exception as error:  # a bug of ours must not leave anybody waiting
            log.exception("unexpected error in a batch of %s", batch[0].capability)
            for job in batch:
                _settle(job, InferenceError(f"internal error: {type(error).__name__}"))
        else:
            # Flights overlap, but what counts is how fast they land: count from when the one before did.
            now = self._clock()
            began = max(started, self._landed_at)
            self.stats.served(len(batch), now - began)
            self._landed_at = now
            queued = self.stats.queued.observe
            for job, output in zip(batch, outputs, strict=True):
                queued(began - job.queued_at)
                self.poison.absolve(job.capability, job.item)
                if not job.future.done():
                    job.future.set_result(output)

    def _crashed(self, batch: list[Job], error: SidecarError) -> None:
        retry = []
        for job in batch:
            job.crashes += 1
            if job.crashes < MAX_ATTEMPTS:
                retry.append(job)
            else:
                self.stats.failed += 1
                _settle(job, error)
        self.stats.retried += len(retry)
        self._requeue(retry)

    def _requeue(self, batch: list[Job]) -> None:
        # They keep their arrival time, and so their place.
        for job in batch:
            job.flight = None
            if not job.future.done():
                self._queue[id(job)] = job


class NotStartedError(Exception):
    """The runner died while this batch was waiting behind another; it cannot have been the cause."""


class RunnerKilledError(RunnerCrashedError):
    """The runner was ended from outside (SIGKILL, SIGTERM): not to be blamed on what it was working on."""


def _settle(job: Job, error: SidecarError) -> None:
    if not job.future.done():
        job.future.set_exception(error)
