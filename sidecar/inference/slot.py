"""Slot: one model with its queue, its runners and what residency needs to know of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import psutil

from sidecar import wire
from sidecar.catalogue.catalogue import ModelSpec
from sidecar.errors import OutOfMemoryError, ShuttingDownError, SidecarError
from sidecar.inference.batcher import Batcher
from sidecar.inference.client import RunnerClient
from sidecar.inference.replica import Replica
from sidecar.inference.residency import FOREVER, Resident, parse_keep_alive
from sidecar.settings import Settings

State = Literal["available", "loading", "ready", "unloading", "failed"]
Publish = Callable[[str, dict[str, Any]], None]


class Slot:
    """Loaded on demand through `make_room`, which returns when there is memory for it."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        make_room: Callable[["Slot"], Awaitable[None]],
        publish: Publish,
        log: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.keep_alive_s = FOREVER if spec.pinned else parse_keep_alive(settings.keep_alive, 300.0)
        self.was_ready = False
        self.used_at = self.ready_since = time.monotonic()
        self.measured_bytes = 0
        self.out_of_memory = False
        self.batcher = Batcher(self._run, spec.batch, settings.queue_size, time.monotonic)
        self._settings = settings
        self._make_room = make_room
        self._publish = publish
        self._log = log
        self._replicas = [
            Replica(spec, settings.runner_ready_timeout_s, self._changed, self._progressed, log)
            for _ in range(spec.replicas)
        ]
        self._admission: asyncio.Task[None] | None = None
        self._admitted = False
        self._unloading = False
        self._closing = False
        self._state: State = "available"

    # State

    @property
    def state(self) -> State:
        """Derived from the runners: ready as soon as one of them is."""
        states = {replica.state for replica in self._replicas}
        if self._unloading:
            return "unloading"
        if "ready" in states:
            return "ready"
        if "failed" in states:
            return "failed"
        return "loading" if "loading" in states or self._admission is not None else "available"

    @property
    def error(self) -> SidecarError | None:
        return next((replica.error for replica in self._replicas if replica.error), None)

    @property
    def device(self) -> wire.Ready | None:
        return next((replica.device for replica in self._replicas if replica.device), None)

    @property
    def restarts(self) -> int:
        return sum(replica.restarts for replica in self._replicas)

    @property
    def resident(self) -> bool:
        """In memory or on its way there; not while it still waits for room."""
        return self._admitted

    def size_bytes(self) -> int:
        """Measured memory; before there is a measurement, the catalogue's estimate for every replica."""
        return self.measured_bytes or (self.spec.memory_mb << 20) * len(self._replicas)

    def as_resident(self) -> Resident:
        busy = self.batcher.busy or self.state in ("loading", "unloading")
        return Resident(
            self.spec.id,
            self.size_bytes(),
            self.used_at,
            self.keep_alive_s,
            busy=busy,
            pinned=self.spec.pinned,
            group=self.spec.group,
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
            "queue_size": len(self.batcher),
            "restarts": self.restarts,
            "pid": next((replica.pid for replica in self._replicas if replica.pid), None),
            "error": self.error.message if self.error else None,
        }

    # Use

    def touch(self, keep_alive_s: float | None = None) -> None:
        """A request came or went; it may say how long the model shall stay."""
        self.used_at = time.monotonic()
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s

    async def ensure_ready(self) -> RunnerClient:
        """The least busy ready runner, loading the model if need be. Raises SidecarError."""
        if self._closing and self.state != "ready":
            raise _stopping()
        if self._admission is None:
            self._admission = asyncio.get_running_loop().create_task(self._admit(), name=f"admit-{self.spec.id}")
            self._announce()
        await asyncio.shield(self._admission)
        ready = [replica for replica in self._replicas if replica.state == "ready"]
        return await min(ready or self._replicas, key=lambda replica: replica.load).ready()

    async def unload(self) -> None:
        """Let what is in flight land, end the runners, give the memory back. Queued requests load it again."""
        if not self._admitted or self._unloading:
            return
        self._unloading = True
        try:
            self._announce()
            await self.batcher.hold()
            await asyncio.gather(*(replica.stop() for replica in self._replicas))
            self._admission = None
            self._admitted = False
            self.measured_bytes = 0
        finally:
            self._unloading = False
            self._announce()
            self.batcher.release()

    def refuse(self) -> None:
        """Stopping: load no more; what waits for a load is told so, what runs or is queued may still be answered."""
        self._closing = True
        if all([replica.refuse(_stopping()) for replica in self._replicas]):
            self.give_up()

    def give_up(self) -> None:
        """Answer everything that is left with ShuttingDownError."""
        self.batcher.fail_all(_stopping())

    async def close(self) -> None:
        """End the runners, whatever they do."""
        self.refuse()
        self.give_up()
        if self._admission:
            self._admission.cancel()
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
            self.measured_bytes = total

    async def _run(self, capability: str, items: list[Any]) -> list[Any]:
        runner = await self.ensure_ready()
        return await runner.infer(capability, items, self.spec.batch.timeout_s)

    async def _admit(self) -> None:
        try:
            await self._make_room(self)
        except BaseException:
            self._admission = None
            raise
        self._admitted = True
        for replica in self._replicas:
            replica.start()

    def _changed(self, replica: Replica) -> None:
        if replica.state == "ready":
            self.ready_since = time.monotonic()
            self.was_ready = True
            self.batcher.set_parallel(
                sum(each.device.parallel for each in self._replicas if each.state == "ready" and each.device)
            )
        if replica.client and isinstance(replica.client.verdict, OutOfMemoryError):
            self.out_of_memory = True
        self._announce()

    def _announce(self) -> None:
        state = self.state
        if state != self._state:
            self._state = state
            self._publish("model", self.describe())

    def _progressed(self, progress: wire.Progress) -> None:
        fields = {"item": progress.item, "done": progress.done, "total": progress.total, "unit": progress.unit}
        self._publish("progress", {"model": self.spec.id, **fields})


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the sidecar is stopping")


def _rss_bytes(pid: int) -> int:
    # Without children: to find those, every process of the computer would have to be looked at.
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
