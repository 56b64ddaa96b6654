"""What the server knows about itself: one object, made by the composition root, read by the routes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

from sidecar.capabilities import CAPABILITIES
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import SidecarError
from sidecar.inference.pool import Pool
from sidecar.inference.slot import Slot
from sidecar.server.downloads import Downloads
from sidecar.server.events import EventHub
from sidecar.server.metrics import Metrics

Status = Literal["starting", "healthy", "degraded"]


class ServerState:
    """Derives status and phase from the pool; nothing here is a second copy of the truth."""

    def __init__(
        self,
        instance_id: str,
        catalogue: Catalogue,
        cache: ModelCache,
        pool: Pool,
        hub: EventHub,
        metrics: Metrics,
        tell: Callable[..., None],
    ) -> None:
        self.instance_id = instance_id
        self.catalogue = catalogue
        self.cache = cache
        self.downloads = Downloads(cache, self.publish, self.arrived)
        self.pool = pool
        self.hub = hub
        self.metrics = metrics
        self.started_at = time.monotonic()
        self.phase = "starting"
        self.stopping = False
        self._tell = tell

    def warnings(self) -> list[str]:
        """What cannot work, and why."""
        lines = list(self.catalogue.faults)
        for capability in CAPABILITIES:
            try:
                slot = self.pool.slot(self.pool.resolve(capability.name))
            except SidecarError as error:
                lines.append(f"{capability.name}: {error.message}")
                continue
            if slot.error is not None:
                lines.append(f"{capability.name}: {slot.error.message}")
        return lines

    def models_loaded(self) -> dict[str, bool]:
        """Per capability, whether a runner is ready to answer it now."""
        ready = {name for slot in self.pool.slots() if slot.state == "ready" for name in slot.spec.capabilities}
        return {capability.name: capability.name in ready for capability in CAPABILITIES}

    def status(self) -> Status:
        """`starting` until the first model answers, `degraded` while something enabled cannot."""
        if self.warnings():
            return "degraded"
        return "healthy" if all(self._can_answer(capability.name) for capability in CAPABILITIES) else "starting"

    def _can_answer(self, capability: str) -> bool:
        slot = self.pool.slot(self.pool.resolve(capability))
        # One that has left memory after its keep-alive comes back on demand: that is no fault.
        return slot.state == "ready" or (slot.state in ("available", "unloading") and slot.was_ready)

    def device(self) -> tuple[str, str]:
        """Device of the models in use, and the reason for it."""
        for slot in self.pool.slots():
            if slot.device is not None:
                return slot.device.device, slot.device.device_reason
        return "cpu", "no model has been loaded yet"

    async def preload(self) -> None:
        """Load the best usable model of every capability, all at once."""
        slots: dict[str, Slot] = {}
        for capability in CAPABILITIES:
            try:
                spec = self.pool.resolve(capability.name)
            except SidecarError:
                continue  # warnings() names it
            slots[spec.id] = self.pool.slot(spec)
        self.refresh()
        await asyncio.gather(*(slot.ensure_ready() for slot in slots.values()), return_exceptions=True)

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """From the pool: to the listeners, and as a phase to the supervisor."""
        self.hub.publish(event, data)
        if event == "download":
            if data.get("total"):
                progress = {"item": data["model"], "done": data["done"], "total": data["total"], "unit": "bytes"}
                self._tell("phase", phase="loading" if self.phase == "starting" else self.phase, progress=progress)
        elif event == "progress":
            self._tell("phase", phase="loading", progress={k: data[k] for k in ("item", "done", "total", "unit")})
        else:
            self.refresh()

    def refresh(self) -> None:
        """Announce the phase if it has changed."""
        phase = {"starting": "loading", "healthy": "ready", "degraded": "degraded"}[self.status()]
        if phase != self.phase and not self.stopping:
            self.phase = phase
            device, reason = self.device()
            self._tell("phase", phase=phase, progress=None, device=device, device_reason=reason)
            self.hub.publish("phase", {"phase": phase})

    def arrived(self, spec: ModelSpec) -> None:
        """A download is complete: whatever it is best for, it takes over."""
        self.catalogue.refresh()
        self.pool.refresh(spec.capabilities)

    async def remove(self, spec: ModelSpec) -> int:
        """Delete a model's weights; returns the bytes freed. What it answered for falls back to the next best."""
        freed_bytes = await asyncio.to_thread(self.cache.remove, spec)
        self.catalogue.refresh()
        self.pool.forget(spec.id)
        return freed_bytes

    def request_shutdown(self) -> None:
        """Ask the supervisor to stop everything."""
        self._tell("shutdown_requested")

    def stop(self) -> None:
        """Readiness is gone; listeners are sent home."""
        if self.stopping:
            return
        self.stopping = True
        self.phase = "stopping"
        self.pool.refuse()
        self.hub.publish("phase", {"phase": "stopping"})
        self.hub.close()
