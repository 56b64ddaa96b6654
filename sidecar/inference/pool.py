"""Pool: model id → ready runner, within a memory budget. Callers say `infer`; nobody checks and then acts."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from sidecar.catalogue.catalogue import Catalogue, ModelSpec
from sidecar.errors import (
    ModelNotFoundError,
    ModelUnavailableError,
    ModelUnsupportedError,
    ShuttingDownError,
    SidecarError,
)
from sidecar.inference.batcher import Priority
from sidecar.inference.fallback import by_best
from sidecar.inference.internal import internal_slot
from sidecar.inference.residency import Vram, expired
from sidecar.inference.room import Room
from sidecar.inference.slot import Gather, Publish, Slot, Unload
from sidecar.inference.terms import Terms
from sidecar.settings import Settings

_TICK_S = 0.5
_IDLE_TURNS = 10
_LIMIT_SHARE = 0.85


class Pool:
    """All slots, the room they share, and which model answers for each capability."""

    def __init__(
        self,
        catalogue: Catalogue,
        settings: Settings,
        publish: Publish,
        log: Callable[[str], None],
        interpreter: Callable[[ModelSpec, str], Path | None] = lambda spec, device: None,
        vram: Callable[[], Awaitable[Vram]] | None = None,
    ) -> None:
        self._limit_bytes = settings.runner_memory_limit_bytes or int(psutil.virtual_memory().total * _LIMIT_SHARE)
        self._catalogue = catalogue
        self._settings = settings
        self._terms = Terms(settings.runner_ready_timeout_s, settings.threads, settings.device, interpreter)
        self._publish = publish
        self._log = log
        self._slots: dict[str, Slot] = {}
        self._internal: list[Slot] = []
        self._active: dict[str, str] = {}
        self._group: str | None = None
        self._upgrades: dict[str, asyncio.Task[None]] = {}
        self._retiring: set[Slot] = set()
        self._room = Room(self._slots, self._retiring, settings, vram)
        self._tick: asyncio.Task[None] | None = None
        self._kept: set[asyncio.Task[None]] = set()
        self._closing = False

    # Which model answers

    def resolve(self, capability: str, model: str | None = None) -> ModelSpec:
        """The pinned model, else the active one, or while that cannot be loaded the next best.

        Raises ModelNotFoundError, ModelUnavailableError.
        """
        if model is not None:
            for usable in self._catalogue.for_capability(capability):
                if usable.id == model:
                    return usable
            if capability not in self._catalogue.get(model).capabilities:
                raise ModelNotFoundError(f"model {model!r} does not offer {capability}")
            return self._catalogue.usable(model)
        active = self.wanted(capability)
        if not self._is_failing(active):
            return active
        return next((spec for spec in self.usable(capability) if not self._is_out(spec)), active)

    def wanted(self, capability: str) -> ModelSpec:
        """The active model, whether it can be loaded or not. Raises ModelUnavailableError."""
        active = self._active.get(capability)
        if active is None or active not in self._catalogue.specs:
            active = self._active[capability] = self._best(capability).id
        return self._catalogue.get(active)

    def usable(self, capability: str) -> list[ModelSpec]:
        """Models that have what they need, best first; those that cannot be loaded, or ran out of memory, last."""
        return sorted(self._catalogue.for_capability(capability), key=self._is_out)

    def _is_failing(self, spec: ModelSpec) -> bool:
        slot = self._slots.get(spec.id)
        return slot is not None and slot.failing and slot.spec == spec  # an entry that was mended has yet to be tried

    def _is_out(self, spec: ModelSpec) -> bool:
        return self._is_failing(spec) or (spec.id in self._slots and self._slots[spec.id].out_of_memory)

    def _best(self, capability: str) -> ModelSpec:
        usable = self._catalogue.for_capability(capability)
        if self._group is not None:  # what was switched to stays, whatever else becomes available
            usable = sorted(usable, key=lambda spec: spec.group != self._group)
        if not usable:
            known = self._catalogue.ranking(capability)
            if known and not any(map(self._catalogue.is_supported, known)):
                raise ModelUnsupportedError(f"no model for {capability} has a runtime in this version")
            raise ModelUnavailableError(f"no model for {capability} has its files on this computer")
        healthy = [spec for spec in usable if spec.id not in self._slots or not self._slots[spec.id].out_of_memory]
        for spec in usable:
            smaller = spec.smaller if spec not in healthy else None
            if smaller in {each.id for each in healthy}:
                return self._catalogue.get(str(smaller))
            if spec in healthy:
                return spec
        return usable[0]

    def forget(self, model_id: str) -> None:
        """Its files are gone: whatever it answered for goes to the next best at the next request."""
        for capability in [each for each, active in self._active.items() if active == model_id]:
            del self._active[capability]

    def drop(self, model_id: str) -> None:
        """It cannot answer any more: others take over, and it leaves memory once those are answered who came before."""
        self.forget(model_id)
        if slot := self._slots.pop(model_id, None):
            self._retire(slot)

    def refresh(self, capabilities: Iterable[str], tried: str | None = None) -> None:
        """Something became available or ran out of memory: bring the best usable model of each capability up, live."""
        for capability in capabilities:
            try:
                best = self._best(capability).id
            except SidecarError:
                continue  # resolve() says so to whoever asks
            if best not in (self._active.get(capability), tried) and capability not in self._upgrades:
                upgrade = self._upgrade(capability, self._catalogue.get(best))
                self._upgrades[capability] = asyncio.get_running_loop().create_task(upgrade)

    async def _upgrade(self, capability: str, spec: ModelSpec) -> None:
        """Load beside the old one; take over between two requests."""
        try:
            await self.slot(spec).ensure_ready()
        except SidecarError as error:
            self._log(f"{capability} stays with {self._active.get(capability)}: {spec.id}: {error.message}")
        else:
            old, self._active[capability] = self._active.get(capability), spec.id
            self._publish("upgrade", {"capability": capability, "from": old, "to": spec.id})
        finally:
            self._upgrades.pop(capability, None)
        self.refresh([capability], tried=spec.id)  # another one may have come meanwhile

    def _heard(self, event: str, data: dict[str, Any]) -> None:
        """From a slot. One that has become ready at last takes the place that waits for it."""
        self._publish(event, data)
        if event == "model" and data["state"] == "ready":
            self.refresh(name for name in data["capabilities"] if name in self._active)

    async def switch(self, group: str) -> None:
        """Make `group` the one that answers: its members are ready before the others leave, if the budget allows.

        Raises ModelNotFoundError, or what loading a member raised; the old group then goes on.
        """
        members = [spec for spec in self._catalogue.specs.values() if spec.group == group]
        if not members:
            raise ModelNotFoundError(f"no model of the catalogue is in group {group!r}")
        await asyncio.gather(*(self.slot(spec).ensure_ready() for spec in members))
        self._group = group
        leaving = set()
        for spec in members:
            for capability in spec.capabilities:
                old = self._slots.get(self._active.get(capability, ""))
                self._active[capability] = spec.id
                if old is not None and old.spec.group not in (None, group):
                    leaving.add(old.spec.group)
        for slot in self.slots():
            if slot.spec.group in leaving:
                self._keep(asyncio.get_running_loop().create_task(self._leave(slot)))

    async def _leave(self, slot: Slot) -> None:
        await slot.drained()
        if slot.spec.group != self._group:  # else it has been switched back to
            await slot.unload("switched")

    async def let_go(self, model_id: str) -> None:
        """Unload it once nothing waits for it any more: nobody new comes, and a reload would find nothing."""
        if slot := self._slots.get(model_id):
            await slot.drained()
            await slot.unload()

    # Work

    async def infer_by_best(
        self, capability: str, model: str | None, item: Any, cost: int, priority: Priority, keep_alive_s: float | None
    ) -> tuple[ModelSpec, Any]:
        """One item through the pinned model, else the best one that can be loaded: which it was, and the output.

        Raises SidecarError.
        """

        async def ask(spec: ModelSpec) -> tuple[ModelSpec, Any]:
            return spec, await self.infer(spec, capability, item, cost, priority, keep_alive_s)

        return await by_best(lambda: self.resolve(capability, model), ask)

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
        self._ask_again(capability, spec)
        slot = self.slot(spec)
        slot.touch()
        try:
            return await slot.batcher.submit(capability, item, cost, priority)
        finally:
            slot.touch(keep_alive_s)

    async def stream(
        self,
        spec: ModelSpec,
        capability: str,
        item: Any,
        keep_alive_s: float | None = None,
    ) -> AsyncGenerator[Any, None]:
        """One item through one model, its output in pieces as they are made. Closing the generator ends the work.

        Raises SidecarError, also after pieces have come.
        """
        if self._closing:
            raise ShuttingDownError("the sidecar is stopping")
        self._ask_again(capability, spec)
        slot = self.slot(spec)
        slot.touch()
        pieces = slot.streams.stream(capability, item)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()
            slot.touch(keep_alive_s)

    def _ask_again(self, capability: str, spec: ModelSpec) -> None:
        """Another one answers in the active one's place: that is tried now and then, beside it."""
        active = self._active.get(capability, spec.id)
        slot = self._slots.get(active) if active != spec.id else None
        if slot is not None and slot.resting and not slot.asked:
            self._keep(asyncio.get_running_loop().create_task(slot.try_again()))

    def slot(self, spec: ModelSpec) -> Slot:
        """The slot of `spec`, made at its first use, and anew when its entry has become another."""
        slot = self._slots.get(spec.id)
        if slot is not None and slot.spec is not spec:
            if slot.spec == spec:
                slot.spec = spec  # read again, and the same
            else:
                self._retire(self._slots.pop(spec.id))
                slot = None
        if slot is None:
            slot = self._slots[spec.id] = Slot(
                spec,
                self._settings,
                self._terms,
                self._admit,
                self._heard,
                lambda line: self._log(f"[{spec.id}] {line}"),
            )
            self._begin_house()
        return slot

    def internal(self, spec: ModelSpec, gather: Gather) -> Slot:
        """A process of the sidecar's own that is no model: in no list, outside the budget."""
        self._internal.append(internal_slot(spec, gather, self._settings, self._terms, self._log))
        self._begin_house()
        return self._internal[-1]

    def _begin_house(self) -> None:
        self._tick = self._tick or asyncio.get_running_loop().create_task(self._keep_house(), name="residency")

    def _all(self) -> list[Slot]:
        return [*self._slots.values(), *self._retiring, *self._internal]

    def active_for(self, model_id: str) -> list[str]:
        """Capabilities that this model answers for now."""
        known = [each for each, active in self._active.items() if active in self._catalogue.specs]
        return [each for each in known if self.resolve(each).id == model_id]

    def slots(self) -> list[Slot]:
        """Slots in use, in order of first use."""
        return list(self._slots.values())

    @property
    def queue_size_limit(self) -> int:
        """Requests that may wait for one model."""
        return self._settings.queue_size

    def queue_size(self) -> int:
        """Requests waiting, over all models."""
        return sum(slot.waiting for slot in self._slots.values())

    async def unload(self, model_id: str) -> None:
        """Take a model out of memory. Raises ModelNotFoundError."""
        self._catalogue.get(model_id)
        if slot := self._slots.get(model_id):
            await slot.unload()

    def refuse(self) -> None:
        """Take no new work; what is under way may still be answered, until `give_up`."""
        self._closing = True
        for slot in self._all():
            slot.refuse()

    def give_up(self) -> None:
        """Answer everything that is left with ShuttingDownError."""
        for slot in self._all():
            slot.give_up()

    async def close(self) -> None:
        """End all runners."""
        self.refuse()
        for task in (self._tick, *self._upgrades.values(), *self._kept):
            if task:
                task.cancel()
        await asyncio.gather(*(slot.close() for slot in self._all()))

    async def _admit(self, slot: Slot) -> None:
        """When there is room. The rest of its group comes along."""
        await self._room.admit(slot)
        for spec in self._catalogue.specs.values():
            mate = spec.group is not None and spec.group == slot.spec.group and spec.id != slot.spec.id
            if mate and not self._catalogue.obstacles(spec) and not self._is_failing(spec):
                self._keep(asyncio.get_running_loop().create_task(self.slot(spec).try_again()))

    # Housekeeping

    async def _keep_house(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(_TICK_S)
            for slot in self._all():
                # An idle model hardly grows; one that was never measured has to be.
                if slot.resident and (slot.busy or not slot.measured_bytes or turn % _IDLE_TURNS == 0):
                    slot.measure(self._limit_bytes)
            if turn % _IDLE_TURNS == 0:
                await self._room.measure_vram()
            if exhausted := [slot for slot in self._slots.values() if slot.out_of_memory]:
                self.refresh({name for slot in exhausted for name in slot.spec.capabilities})
            for model_id in self._room.surplus():
                self._unload_soon(self._slots[model_id], "evicted")
            resident = [slot for slot in self._all() if slot.resident and slot not in self._retiring]
            over = expired([slot.as_resident() for slot in resident], time.monotonic())
            for slot in resident:
                if slot.spec.id in over:
                    self._unload_soon(slot, "idle")

    def _retire(self, slot: Slot) -> None:
        """Nobody new comes to it; it ends once those are answered who came before."""

        async def retire() -> None:
            try:
                await slot.drained()
                await slot.close()
            finally:
                self._retiring.discard(slot)

        self._retiring.add(slot)
        self._keep(asyncio.get_running_loop().create_task(retire()))

    def _unload_soon(self, slot: Slot, reason: Unload) -> None:
        self._keep(asyncio.get_running_loop().create_task(slot.unload(reason)))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
