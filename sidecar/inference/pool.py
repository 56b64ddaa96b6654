"""Pool: model id → ready runner. Callers say `infer`; nobody checks and then acts."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import psutil

from sidecar import wire
from sidecar.catalogue.catalogue import Catalogue, ModelSpec
from sidecar.errors import ModelLoadError, ModelNotFoundError, ModelUnavailableError, ShuttingDownError, SidecarError
from sidecar.inference.batcher import Batcher, Priority
from sidecar.inference.client import RunnerClient
from sidecar.settings import Settings

State = Literal["available", "loading", "ready", "failed"]
Publish = Callable[[str, dict[str, Any]], None]

_MEMORY_CHECK_S = 0.5
_IDLE_TURNS = 10
_LOAD_DELAYS_S = (1.0, 5.0, 15.0, 60.0)
_CRASH_DELAYS_S = (0.0, 0.0, 1.0, 5.0, 15.0)


def delay_s(delays: tuple[float, ...], failures: int) -> float:
    """Delay before try number `failures` + 1 after that many failures in a row."""
    return delays[min(failures, len(delays)) - 1] if failures else 0.0


class Slot:
    """One model: its runner, kept alive, and its batcher. One owner task decides; everybody else awaits `_ready`."""

    def __init__(self, spec: ModelSpec, settings: Settings, publish: Publish, log: Callable[[str], None]) -> None:
        self.spec = spec
        self.state: State = "available"
        self.restarts = 0
        self.error: SidecarError | None = None
        self.device: wire.Ready | None = None
        self.batcher = Batcher(self._run, spec.batch, settings.queue_size, time.monotonic)
        self._settings = settings
        self._publish = publish
        self._log = log
        self._ready: asyncio.Future[RunnerClient] = asyncio.get_running_loop().create_future()
        self._client: RunnerClient | None = None
        self._owner: asyncio.Task[None] | None = None
        self._closing = False

    async def ensure_ready(self) -> RunnerClient:
        """The ready runner, loading it if need be. Raises ModelLoadError, at once while a failed load cools down."""
        if self._closing and not self._ready.done():
            raise _stopping()
        if self._owner is None or self._owner.done():
            self._owner = asyncio.get_running_loop().create_task(self._own(), name=f"slot-{self.spec.id}")
        return await asyncio.shield(self._ready)

    def refuse(self) -> None:
        """Stopping: load no more; what waits for a load is told so, what runs or is queued may still be answered."""
        self._closing = True
        if not self._ready.done():
            self._ready.set_exception(_stopping())
            self._ready.exception()  # retrieved: nobody need be waiting
            self.give_up()

    def give_up(self) -> None:
        """Answer everything that is left with ShuttingDownError."""
        self.batcher.fail_all(_stopping())

    async def close(self) -> None:
        """End the runner, whatever it does."""
        self.refuse()
        self.give_up()
        if self._owner:
            self._owner.cancel()
        if self._client:
            await self._client.close()

    def check_memory(self) -> None:
        """End the runner if it passed its limit, before the system has to choose a victim."""
        client = self._client
        if client is None or client.dead.done():
            return
        limit = self.memory_limit_bytes()
        rss = _rss_bytes(client.pid)
        if rss > limit:
            client.out_of_memory(rss, limit)

    def memory_limit_bytes(self) -> int:
        """RSS at which the runner is ended."""
        if self.spec.memory_limit_mb:
            return self.spec.memory_limit_mb << 20
        return self._settings.runner_memory_limit_bytes or int(_TOTAL_MEMORY_BYTES * 0.85)

    def describe(self) -> dict[str, Any]:
        """State for /models, /health and /events."""
        return {
            "id": self.spec.id,
            "title": self.spec.title,
            "capabilities": list(self.spec.capabilities),
            "state": self.state,
            "profile": self.spec.profile,
            "licence": self.spec.licence,
            "memory_mb": self.spec.memory_mb,
            "queue_size": len(self.batcher),
            "restarts": self.restarts,
            "pid": self._client.pid if self._client and not self._client.dead.done() else None,
            "error": self.error.message if self.error else None,
        }

    async def _run(self, capability: str, items: list[Any]) -> list[Any]:
        runner = await self.ensure_ready()
        return await runner.infer(capability, items, self.spec.batch.timeout_s)

    async def _own(self) -> None:
        """Load, watch, load again; ends after a run of failed loads, until somebody asks anew."""
        load_failures = crashes = 0
        while load_failures < len(_LOAD_DELAYS_S) and not self._closing:
            self._set_state("loading")
            try:
                client = self._client = await RunnerClient.start(
                    self.spec.id,
                    self._settings.runner_ready_timeout_s,
                    self._died,
                    self._progressed,
                    self._log,
                )
                self.device = await asyncio.shield(client.ready)
            except ModelLoadError as error:
                load_failures += 1
                await self._cool_down(error, delay_s(_LOAD_DELAYS_S, load_failures))
                continue
            load_failures = 0
            if client.dead.done() or self._ready.done():  # it died, or we are to stop, in this very moment
                crashes += 1
                await asyncio.sleep(delay_s(_CRASH_DELAYS_S, crashes))
                continue
            self.error = None
            self._set_state("ready")
            self._ready.set_result(client)
            self.batcher.set_parallel(self.device.parallel)
            await asyncio.shield(client.dead)
            self.restarts += 1
            crashes = 1 if client.served else crashes + 1
            self._log(f"runner {client.exit_text()}; restarting")
            await asyncio.sleep(delay_s(_CRASH_DELAYS_S, crashes))

    async def _cool_down(self, error: ModelLoadError, pause_s: float) -> None:
        """Tell those who wait, refuse newcomers at once for a while, then start afresh."""
        self._log(f"load failed: {error.message}; next try in {pause_s:g} s")
        self.error = error
        self._set_state("failed")
        error.retry_after_s = pause_s
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # retrieved: nobody need be waiting
        await asyncio.sleep(pause_s)
        self._ready = asyncio.get_running_loop().create_future()

    def _died(self, client: RunnerClient) -> None:
        # Before the client fails its requests: their retries must wait for the next runner, not find this one.
        if self._ready.done() and not self._ready.exception():
            self._ready = asyncio.get_running_loop().create_future()
            self._set_state("loading")

    def _progressed(self, progress: wire.Progress) -> None:
        self._publish(
            "progress",
            {
                "model": self.spec.id,
                "item": progress.item,
                "done": progress.done,
                "total": progress.total,
                "unit": progress.unit,
            },
        )

    def _set_state(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._publish("model", self.describe())


class Pool:
    """All slots."""

    def __init__(self, catalogue: Catalogue, settings: Settings, publish: Publish, log: Callable[[str], None]) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._publish = publish
        self._log = log
        self._slots: dict[str, Slot] = {}
        self._watch: asyncio.Task[None] | None = None
        self._closing = False

    def resolve(self, capability: str, model: str | None = None) -> ModelSpec:
        """The pinned model, or the best usable one. Raises ModelNotFoundError, ModelUnavailableError."""
        if model is not None:
            spec = self._catalogue.get(model)
            if capability not in spec.capabilities:
                raise ModelNotFoundError(f"model {model!r} does not offer {capability}")
            return spec
        usable = self._catalogue.for_capability(capability)
        if not usable:
            raise ModelUnavailableError(f"no model for {capability} has its files on this computer")
        return usable[0]

    async def infer(
        self, spec: ModelSpec, capability: str, item: Any, cost: int, priority: Priority = Priority.INTERACTIVE
    ) -> Any:
        """One item through one model. Raises SidecarError; cancelling takes it out of the queue."""
        if self._closing:
            raise _stopping()
        return await self.slot(spec).batcher.submit(capability, item, cost, priority)

    def slot(self, spec: ModelSpec) -> Slot:
        """The slot of `spec`, made at its first use."""
        slot = self._slots.get(spec.id)
        if slot is None:
            slot = self._slots[spec.id] = Slot(
                spec, self._settings, self._publish, lambda line: self._log(f"[{spec.id}] {line}")
            )
            if self._watch is None:
                self._watch = asyncio.get_running_loop().create_task(self._watch_memory(), name="memory-watch")
        return slot

    def slots(self) -> list[Slot]:
        """Slots in use, in order of first use."""
        return list(self._slots.values())

    def queue_size(self) -> int:
        """Requests waiting, over all models."""
        return sum(len(slot.batcher) for slot in self._slots.values())

    def refuse(self) -> None:
        """Take no new work; what is under way may still be answered, until `give_up`."""
        self._closing = True
        for slot in self._slots.values():
            slot.refuse()

    def give_up(self) -> None:
        """Answer everything that is left with ShuttingDownError."""
        for slot in self._slots.values():
            slot.give_up()

    async def close(self) -> None:
        """End all runners."""
        self.refuse()
        if self._watch:
            self._watch.cancel()
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))

    async def _watch_memory(self) -> None:
        while True:
            for turn in range(_IDLE_TURNS):
                await asyncio.sleep(_MEMORY_CHECK_S)
                for slot in self._slots.values():
                    if slot.batcher.busy or turn == 0:  # an idle model hardly grows
                        slot.check_memory()


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the sidecar is stopping")


_TOTAL_MEMORY_BYTES = psutil.virtual_memory().total


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
