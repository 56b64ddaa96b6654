"""Pool: model id → ready runner, within a memory budget. Callers say `infer`; nobody checks and then acts."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

from sidecar.catalogue.catalogue import Catalogue, ModelSpec
from sidecar.errors import ModelNotFoundError, ModelUnavailableError, ShuttingDownError, SidecarError
from sidecar.inference.batcher import Priority
from sidecar.inference.residency import expired, make_room, preempt
from sidecar.inference.slot import Publish, Slot
from sidecar.settings import Settings

_TICK_S = 0.5
_IDLE_TURNS = 10
# How long a busy model may stay in memory while another one waits for its place: long enough that work outweighs loads.
_QUANTUM_S = 2.0
_BUDGET_SHARE = 0.6
_LIMIT_SHARE = 0.85


class Pool:
    """All slots, the room they share, and which model answers for each capability."""

    def __init__(self, catalogue: Catalogue, settings: Settings, publish: Publish, log: Callable[[str], None]) -> None:
        total_bytes = psutil.virtual_memory().total
        self.budget_bytes = settings.memory_budget_bytes or int(total_bytes * _BUDGET_SHARE)
        self._limit_bytes = settings.runner_memory_limit_bytes or int(total_bytes * _LIMIT_SHARE)
        self._catalogue = catalogue
        self._settings = settings
        self._publish = publish
        self._log = log
        self._slots: dict[str, Slot] = {}
        self._active: dict[str, str] = {}
        self._upgrades: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Lock()
        self._tick: asyncio.Task[None] | None = None
        self._unloads: set[asyncio.Task[None]] = set()
        self._closing = False

    # Which model answers

    def resolve(self, capability: str, model: str | None = None) -> ModelSpec:
        """The pinned model, else the active one. Raises ModelNotFoundError, ModelUnavailableError."""
        if model is not None:
            for usable in self._catalogue.for_capability(capability):
                if usable.id == model:
                    return usable
            if capability not in self._catalogue.get(model).capabilities:
                raise ModelNotFoundError(f"model {model!r} does not offer {capability}")
            return self._catalogue.usable(model)
        active = self._active.get(capability)
        if active is None:
            active = self._active[capability] = self._best(capability).id
        return self._catalogue.get(active)

    def _best(self, capability: str) -> ModelSpec:
        usable = self._catalogue.for_capability(capability)
        if not usable:
            raise ModelUnavailableError(f"no model for {capability} has its files on this computer")
        healthy = [spec for spec in usable if not (spec.id in self._slots and self._slots[spec.id].out_of_memory)]
        for spec in usable:
            smaller = spec.smaller if spec not in healthy else None
            if smaller in {each.id for each in healthy}:
                return self._catalogue.get(str(smaller))
            if spec in healthy:
                return spec
        return usable[0]

    def forget(self, model_id: str) -> None:
        """Its files are gone: whatever it answered for goes to the next best at the next request."""
        for capability in self.active_for(model_id):
            del self._active[capability]

    def refresh(self, capabilities: Iterable[str]) -> None:
        """Something became available or ran out of memory: bring the best usable model of each capability up, live."""
        for capability in capabilities:
            try:
                best = self._best(capability)
            except SidecarError:
                continue  # resolve() says so to whoever asks
            running = self._upgrades.get(capability)
            if best.id != self._active.get(capability) and (running is None or running.done()):
                self._upgrades[capability] = asyncio.get_running_loop().create_task(self._upgrade(capability, best))

    async def _upgrade(self, capability: str, spec: ModelSpec) -> None:
        """Load beside the old one; take over between two requests."""
        try:
            await self.slot(spec).ensure_ready()
        except SidecarError as error:
            self._log(f"{capability} stays with {self._active.get(capability)}: {spec.id}: {error.message}")
            return
        old, self._active[capability] = self._active.get(capability), spec.id
        self._publish("upgrade", {"capability": capability, "from": old, "to": spec.id})

    async def switch(self, group: str) -> None:
        """Make `group` the one that answers: its members are ready before the others leave, if the budget allows.

        Raises ModelNotFoundError, or what loading a member raised; the old group then goes on.
        """
        members = [spec for spec in self._catalogue.specs.values() if spec.group == group]
        if not members:
            raise ModelNotFoundError(f"no model of the catalogue is in group {group!r}")
        await asyncio.gather(*(self.slot(spec).ensure_ready() for spec in members))
        leaving = []
        for spec in members:
            for capability in spec.capabilities:
                old = self._slots.get(self._active.get(capability, ""))
                self._active[capability] = spec.id
                if old is not None and old.spec.group not in (None, group):
                    leaving.append(old.spec.group)
        for slot in self.slots():
            if slot.spec.group in leaving:
                self._unload_soon(slot)

    # Work

    async def infer(
        self,
        spec: ModelSpec,
        capability: str,
        item: Any,
        cost: int,
        priority: Priority = Priority.INTERACTIVE,
        keep_alive_s: float | None = None,
    ) -> Any:
        """One item through one model. Raises SidecarError; cancelling takes it out of the queue."""
        if self._closing:
            raise ShuttingDownError("the sidecar is stopping")
        slot = self.slot(spec)
        slot.touch(keep_alive_s)
        try:
            return await slot.batcher.submit(capability, item, cost, priority)
        finally:
            slot.touch()

    def slot(self, spec: ModelSpec) -> Slot:
        """The slot of `spec`, made at its first use."""
        slot = self._slots.get(spec.id)
        if slot is None:
            slot = self._slots[spec.id] = Slot(
                spec, self._settings, self._admit, self._publish, lambda line: self._log(f"[{spec.id}] {line}")
            )
            if self._tick is None:
                self._tick = asyncio.get_running_loop().create_task(self._keep_house(), name="residency")
        return slot

    def active_for(self, model_id: str) -> list[str]:
        """Capabilities that this model answers for now."""
        return [capability for capability, active in self._active.items() if active == model_id]

    def slots(self) -> list[Slot]:
        """Slots in use, in order of first use."""
        return list(self._slots.values())

    def queue_size(self) -> int:
        """Requests waiting, over all models."""
        return sum(len(slot.batcher) for slot in self._slots.values())

    async def unload(self, model_id: str) -> None:
        """Take a model out of memory. Raises ModelNotFoundError."""
        self._catalogue.get(model_id)
        if slot := self._slots.get(model_id):
            await slot.unload()

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
        for task in (self._tick, *self._upgrades.values(), *self._unloads):
            if task:
                task.cancel()
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))

    # Room

    async def _admit(self, slot: Slot) -> None:
        """Return when there is room for `slot`. One at a time, in the order of asking, so that nobody starves."""
        async with self._room:
            while not await self._try_admit(slot):
                await asyncio.sleep(_TICK_S / 5)

    async def _try_admit(self, slot: Slot) -> bool:
        others = [each for each in self._slots.values() if each.resident and each is not slot]
        residents = [each.as_resident() for each in others]
        plan = make_room(residents, slot.size_bytes(), self.budget_bytes, slot.spec.group)
        await asyncio.gather(*(self._slots[model_id].unload() for model_id in plan.evict))
        if plan.fits:
            return True
        since = {each.spec.id: each.ready_since for each in others if each.state == "ready"}
        victim = preempt(residents, since, time.monotonic(), _QUANTUM_S)
        if victim is not None:
            await self._slots[victim].unload()
        return False

    async def _keep_house(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(_TICK_S)
            for slot in self._slots.values():
                # An idle model hardly grows; one that was never measured has to be.
                if slot.resident and (slot.batcher.busy or not slot.measured_bytes or turn % _IDLE_TURNS == 0):
                    slot.measure(self._limit_bytes)
            if exhausted := [slot for slot in self._slots.values() if slot.out_of_memory]:
                self.refresh({name for slot in exhausted for name in slot.spec.capabilities})
            residents = [slot.as_resident() for slot in self._slots.values() if slot.resident]
            for model_id in expired(residents, time.monotonic()):
                self._unload_soon(self._slots[model_id])

    def _unload_soon(self, slot: Slot) -> None:
        task = asyncio.get_running_loop().create_task(slot.unload())
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
