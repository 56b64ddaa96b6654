"""Slot: one model with its queue, its runners and what residency needs to know of it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Literal

import psutil

from sidecar import wire
from sidecar.catalogue.profiles import OWN
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError, ModelUnavailableError, OutOfMemoryError, ShuttingDownError, SidecarError
from sidecar.inference.batcher import Batcher
from sidecar.inference.client import RunnerClient
from sidecar.inference.replica import Breaker, Replica
from sidecar.inference.residency import FOREVER, Resident, parse_keep_alive
from sidecar.inference.streams import Streams
from sidecar.inference.terms import Terms
from sidecar.settings import Settings

State = Literal["available", "loading", "ready", "unloading", "failed"]
Unload = Literal["asked", "idle", "evicted", "switched"]
Publish = Callable[[str, dict[str, Any]], None]
Gather = Callable[[AsyncGenerator[Any, None]], Awaitable[Any]]

_DRAIN_S = 30.0
_LOOK_S = 0.05
_BARE_BYTES = 64 << 20  # of a runner before it has read any weights


class Slot:
    """Loaded on demand through `make_room`, which returns when there is memory for it.

    With `gather`, each item goes alone and is answered in pieces, which `gather` makes one output of: the deadline is
    then that of a piece, and a piece is where a cancelled one ends.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        terms: Terms,
        make_room: Callable[["Slot"], Awaitable[None]],
        publish: Publish,
        log: Callable[[str], None],
        gather: Gather | None = None,
    ) -> None:
        self.spec = spec
        self._default_keep_alive_s = FOREVER if spec.pinned else parse_keep_alive(settings.keep_alive, 300.0)
        self.keep_alive_s = self._default_keep_alive_s
        self.asked_device = "cpu" if spec.device == "cpu" else settings.device
        self.was_ready = False
        self.used_at = self.ready_since = time.monotonic()
        self.measured_bytes = 0
        self.vram_bytes = 0
        self._estimate_bytes = spec.memory_mb << 20 or _BARE_BYTES + _weights_bytes(spec)
        self.out_of_memory = False
        self.asked = False
        """Whether `try_again` is under way."""
        self.loads = 0
        self.unloads: dict[Unload, int] = {}
        self.batcher = Batcher(self._run, spec.batch, settings.queue_size, time.monotonic)
        self.streams = Streams(
            self._stream, settings.queue_size, spec.batch.max_streams * spec.replicas, self.batcher.poison
        )
        self._terms = terms
        self._make_room = make_room
        self._publish = publish
        self._log = log
        self._gather = gather
        accuse = self.batcher.poison.accuse
        self._replicas = [
            Replica(spec, terms, self._readmit, self._changed, self._progressed, accuse, log)
            for _ in range(spec.replicas)
        ]
        self._admission: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._admitted = False
        self._last_bytes = self._last_vram_bytes = 0
        self._unloading = False
        self._gone = asyncio.Event()  # cleared while its runners end: whoever wants a new one waits for that
        self._gone.set()
        self._closing = False
        self._announced: tuple[State, int] = ("available", 0)

    # State

    @property
    def state(self) -> State:
        """Derived from the runners: ready as soon as one of them is."""
        states = {replica.state for replica in self._replicas}
        if self._unloading:
            return "unloading"
        if "ready" in states:
            return "ready"
        if "failed" in states and "loading" not in states:
            return "failed"
        return "loading" if "loading" in states or self._admission is not None else "available"

    @property
    def error(self) -> SidecarError | None:
        return next((replica.error for replica in self._replicas if replica.error), None)

    @property
    def device(self) -> wire.Ready | None:
        return next((replica.device for replica in self._replicas if replica.device), None)

    @property
    def on_gpu(self) -> bool:
        return any(replica.device and replica.device.device.startswith("cuda") for replica in self._replicas)

    @property
    def restarts(self) -> int:
        return sum(replica.restarts for replica in self._replicas)

    @property
    def load_failures(self) -> int:
        return sum(replica.load_failures for replica in self._replicas)

    @property
    def breaker(self) -> Breaker:
        """Of the replica that fares worst."""
        return max((replica.breaker for replica in self._replicas), key=lambda each: (each["open"], each["failures"]))

    @property
    def failing(self) -> bool:
        """Whether its last load has failed, or its runners keep dying, and it is not ready to be tried."""
        return all(replica.failures for replica in self._replicas) and self.state != "ready"

    @property
    def resting(self) -> bool:
        """Failing, and not tried again before somebody asks."""
        return self.failing and self.state == "failed" and self.breaker["retry_after_s"] is None

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.batcher.busy or self.streams.busy

    @property
    def waiting(self) -> int:
        """Requests in its queues."""
        return len(self.batcher) + len(self.streams)

    @property
    def spare(self) -> bool:
        """Whether one more stream would be begun at once: beside one other, or where a runner is idle. What has been
        given up counts until the runner is done with it."""
        busy = max(self.streams.open, sum(replica.load for replica in self._replicas))
        return not self.waiting and busy < max(2, self.batcher.parallel)

    @property
    def resident(self) -> bool:
        """In memory or on its way there; not while it still waits for room, nor after it has failed."""
        return self._admitted and any(replica.state != "failed" for replica in self._replicas)

    def size_bytes(self) -> int:
        """Measured memory; before it is measured, that of last time, or an estimate for every replica."""
        return self.measured_bytes or self._last_bytes or self._estimate_bytes * len(self._replicas)

    def vram_need_bytes(self) -> int:
        """What it may need on the GPU: nothing if it will not use one, else what it took last time or the estimate."""
        if self.asked_device == "cpu":
            return 0
        estimate_bytes = self._estimate_bytes * len(self._replicas) if self._may_use_gpu() else 0
        return self._last_vram_bytes or estimate_bytes

    def _may_use_gpu(self) -> bool:
        """In our own environment CTranslate2 alone can; ONNX models get that of CUDA where it is installed."""
        if self.spec.profile != OWN or self.spec.runtime == "ctranslate2":
            return True
        return self._terms.interpreter(self.spec, self.asked_device) is not None

    def measure_vram(self, by_process: Mapping[int, int]) -> None:
        """Take its share of what NVML says of every process."""
        self.vram_bytes = sum(by_process.get(replica.pid or 0, 0) for replica in self._replicas)
        self._last_vram_bytes = self.vram_bytes or self._last_vram_bytes

    def as_resident(self) -> Resident:
        busy = self.busy or self.state in ("loading", "unloading")
        return Resident(
            self.spec.id,
            self.size_bytes(),
            self.used_at,
            self.keep_alive_s,
            busy=busy,
            pinned=self.spec.pinned,
            group=self.spec.group,
            vram_bytes=self.vram_bytes,
        )

    def describe(self) -> dict[str, Any]:
        """State for /models, /api/ps, /health and /events."""
        return {
            "id": self.spec.id,
            "title": self.spec.title,
            "capabilities": list(self.spec.capabilities),
            "state": self.state,
            "profile": self.spec.profile,
            "licence": self.spec.licence,
            "memory_mb": self.spec.memory_mb,
            "resident_bytes": self.measured_bytes if self.resident else 0,
            "queue_size": self.waiting,
            "restarts": self.restarts,
            "pid": next((replica.pid for replica in self._replicas if replica.pid), None),
            "error": self.error.message if self.error else None,
            "breaker": self.breaker,
        }

    # Use

    def touch(self, keep_alive_s: float | None = None) -> None:
        """A request came or went; it may say how long the model shall stay, this time."""
        self.used_at = time.monotonic()
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s

    async def ensure_ready(self) -> RunnerClient:
        """The least busy ready runner, loading the model if need be. Raises SidecarError."""
        if self._closing and self.state != "ready":
            raise _stopping()
        await self._gone.wait()
        if self._admission is None:
            self._admission = asyncio.get_running_loop().create_task(self._admit(), name=f"admit-{self.spec.id}")
            self._announce()
        admission = self._admission
        try:
            await asyncio.shield(admission)
        except asyncio.CancelledError:
            if not admission.cancelled():
                raise
            # Not whoever waits here was cancelled: the slot was closed under them.
            raise ModelUnavailableError(f"{self.spec.id} was taken away before there was room for it") from None
        failed: list[Replica] = []
        while True:
            best = self._best_replica(failed)
            try:
                return await best.ready()
            except ModelLoadError:
                failed.append(best)
                if all(each in failed or each.state == "failed" for each in self._replicas):
                    raise

    def _best_replica(self, failed: list[Replica]) -> Replica:
        """The least busy ready one, else one that may get ready."""
        untried = [each for each in self._replicas if each not in failed]
        ready = [each for each in untried if each.state == "ready"]
        hopeful = [each for each in untried if each.state != "failed"]
        return min(ready or hopeful or self._replicas, key=lambda each: each.load)

    async def try_again(self) -> None:
        """Load it although nobody waits for it; the breaker keeps count."""
        self.asked = True
        try:
            await self.ensure_ready()
        except SidecarError as error:
            self._log(f"still cannot be loaded: {error.message}")
        finally:
            self.asked = False

    async def drained(self) -> None:
        """Return when nobody waits for it, or after a while."""
        deadline = time.monotonic() + _DRAIN_S
        while self.busy and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)

    async def unload(self, reason: Unload = "asked") -> None:
        """Let what is in flight land, end the runners, give the memory back. Queued requests load it again.

        Once begun it goes on to its end, even if whoever waits for it is cancelled.
        """
        if not self._admitted or self._unloading:
            return
        self._unloading = True
        self._leaving = asyncio.get_running_loop().create_task(self._leave(reason), name=f"unload-{self.spec.id}")
        await asyncio.shield(self._leaving)

    async def _leave(self, reason: Unload) -> None:
        try:
            self._announce()
            await asyncio.gather(self.batcher.hold(), self.streams.hold())
            self._gone.clear()
            await asyncio.gather(*(replica.stop() for replica in self._replicas))
            self._admission = None
            self._admitted = False
            self.measured_bytes = self.vram_bytes = 0
            self.keep_alive_s = self._default_keep_alive_s
            if reason == "asked":  # as for the breaker: there may be more memory by now, or another model in the file
                self.out_of_memory = False
            self.unloads[reason] = self.unloads.get(reason, 0) + 1
        finally:
            self._gone.set()
            self._unloading = False
            self._announce()
            self.batcher.release()
            self.streams.release()

    def refuse(self) -> None:
        """Stopping: load no more; what waits for a load is told so, what runs or is queued may still be answered."""
        self._closing = True
        if all([replica.refuse(_stopping()) for replica in self._replicas]):
            self.give_up()

    def give_up(self) -> None:
        """Answer everything that is left with ShuttingDownError."""
        self.batcher.fail_all(_stopping())
        self.streams.fail_all(_stopping())

    async def close(self) -> None:
        """End the runners, whatever they do."""
        self.refuse()
        self.give_up()
        for task in (self._admission, self._leaving):
            if task:
                task.cancel()
        await asyncio.gather(*(replica.stop() for replica in self._replicas))

    def measure(self, limit_bytes: int) -> None:
        """Read the runners' memory; end one that is over its limit, before the system has to choose a victim."""
        total = 0
        for replica in self._replicas:
            if replica.pid is None or replica.client is None:
                continue
            rss = _rss_bytes(replica.pid)
            total += rss
            if rss > (self.spec.memory_limit_mb << 20 or limit_bytes):
                replica.client.out_of_memory(rss, self.spec.memory_limit_mb << 20 or limit_bytes)
        if self.state == "ready":
            self.measured_bytes = self._last_bytes = total

    async def _run(self, capability: str, items: list[Any]) -> list[Any]:
        runner = await self.ensure_ready()
        if self._gather is None:
            return await runner.infer(capability, items, self.spec.batch.timeout_s)
        async with aclosing(runner.stream(capability, items[0], self.spec.batch.timeout_s)) as pieces:
            return [await self._gather(pieces)]

    async def _stream(self, capability: str, item: Any) -> AsyncGenerator[Any, None]:
        runner = await self.ensure_ready()
        pieces = runner.stream(capability, item, self.spec.batch.timeout_s)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    async def _admit(self) -> None:
        try:
            await self._make_room(self)
        except BaseException:
            self._admission = None
            raise
        self._admitted = True
        for replica in self._replicas:
            replica.start()

    async def _readmit(self) -> None:
        await self._make_room(self)

    def _changed(self, replica: Replica) -> None:
        if replica.state == "ready":
            self.ready_since = time.monotonic()
            self.was_ready = True
            self.loads += 1
            self.batcher.set_parallel(
                sum(each.device.parallel for each in self._replicas if each.state == "ready" and each.device)
            )
        if replica.client and isinstance(replica.client.verdict, OutOfMemoryError):
            self.out_of_memory = True
        self._announce()

    def _announce(self) -> None:
        # A replica that dies beside a ready one changes no state, and is news all the same.
        now = (self.state, self.restarts)
        if now != self._announced:
            self._announced = now
            self._publish("model", self.describe())

    def _progressed(self, progress: wire.Progress) -> None:
        fields = {"item": progress.item, "done": progress.done, "total": progress.total, "unit": progress.unit}
        self._publish("progress", {"model": self.spec.id, **fields})


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the sidecar is stopping")


def _weights_bytes(spec: ModelSpec) -> int:
    paths = [spec.folder / file.path for file in spec.files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _rss_bytes(pid: int) -> int:
    # Without children: to find those, every process of the computer would have to be looked at.
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
