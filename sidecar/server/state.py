"""What the server knows about itself: one object, made by the composition root, read by the routes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from starlette.requests import HTTPConnection

from sidecar.capabilities import BY_NAME, CAPABILITIES
from sidecar.capabilities.align import Align
from sidecar.capabilities.asr import Asr
from sidecar.capabilities.speech_emotion import SpeechEmotion
from sidecar.capabilities.vad import Vad
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.profiles import CUDA, OWN, Profiles
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ProfileBusyError, ProfileNeededError, SidecarError
from sidecar.inference.pool import Pool
from sidecar.inference.slot import Slot
from sidecar.server.decoder import Decoder
from sidecar.server.downloads import Downloads
from sidecar.server.events import EventHub
from sidecar.server.gpu import Gpu
from sidecar.server.installs import Installs
from sidecar.server.metrics import Metrics
from sidecar.settings import Settings

log = logging.getLogger("sidecar.server")

# Those that hear recordings, which the decoder may have to read first.
LISTENING = frozenset(each.name for each in (Asr, Align, SpeechEmotion, Vad))

# Those of which one model answers whoever names none.
ANSWERING = tuple(capability for capability in CAPABILITIES if not capability.addressed)

Status = Literal["starting", "healthy", "degraded"]

# States in which a download or an installation no longer shows in the handshake.
_ENDS = ("available", "installed", "absent", "failed")


# What clients of /health have always called it.
_HEALTH_NAMES = {"align": "aligner"}


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
        settings: Settings,
        gpu: Gpu,
        profiles: Profiles,
    ) -> None:
        self.instance_id = instance_id
        self.settings = settings
        self.catalogue = catalogue
        self.cache = cache
        self.downloads = Downloads(cache, self.publish, self.arrived)
        self.profiles = profiles
        self.installs = Installs(self.publish, self.profiles_changed, lambda name: profiles.state(name) == "installed")
        self.pool = pool
        self.decoder = Decoder(pool)
        self.hub = hub
        self.metrics = metrics
        self.started_at = time.monotonic()
        self.phase = "starting"
        self._shows_progress = False
        self.stopping = False
        self.gpu = gpu
        self._tell = tell
        self._told: set[str] = set()

    def warnings(self) -> list[str]:
        """What cannot work and why, and what works otherwise than it was asked for."""
        return self.faults() + [
            f"{slot.spec.id}: {slot.device.device_reason}"
            for slot in self.pool.slots()
            if slot.device is not None and slot.device.device == "cpu" and slot.asked_device not in ("auto", "cpu")
        ]

    def faults(self) -> list[str]:
        """What cannot work, and why."""
        lines = [fault.reason for fault in self.catalogue.faults] + self.catalogue.unanswered_places()
        if unknown := set(self.settings.preload) - BY_NAME.keys():
            lines.append(f"SIDECAR_PRELOAD names {', '.join(sorted(unknown))}; there are: {', '.join(BY_NAME)}")
        for capability in ANSWERING:
            try:
                wanted, answering = self.pool.wanted(capability.name), self.pool.resolve(capability.name)
            except SidecarError as error:
                lines.append(f"{capability.name}: {error.message}")
                continue
            slots = {spec.id: self.pool.slot(spec) for spec in (wanted, answering)}
            instead = f" ({answering.id} answers in its place)" if wanted.id != answering.id else ""
            for slot in slots.values():
                if slot.error is not None:
                    lines.append(f"{capability.name}: {slot.error.message}{instead if slot.spec is wanted else ''}")
        return lines

    def failing(self) -> list[dict[str, Any]]:
        """Models whose runner cannot be brought up, whether they are the ones that should answer or not."""
        return [
            {"id": slot.spec.id, "state": slot.state, "error": slot.error.message, "breaker": slot.breaker}
            for slot in self.pool.slots()
            if slot.error is not None
        ]

    def models_loaded(self) -> dict[str, bool]:
        """Per capability, whether a runner is ready to answer it now."""
        ready = {name for slot in self.pool.slots() if slot.state == "ready" for name in slot.spec.capabilities}
        return {_HEALTH_NAMES.get(each.name, each.name): each.name in ready for each in CAPABILITIES}

    def status(self) -> Status:
        """`starting` until the first model answers, `degraded` while something enabled cannot."""
        if self.faults():
            return "degraded"
        return "healthy" if self.can_answer_all() else "starting"

    def can_answer_all(self) -> bool:
        """Whether a request to any capability would be answered, and at once where its model is kept ready."""
        try:
            slots = {each.name: self.pool.slot(self.pool.resolve(each.name)) for each in ANSWERING}
        except SidecarError:
            return False
        return all(
            # One that has left memory after its keep-alive comes back on demand: that is no fault.
            slot.state == "ready" or (slot.state in ("available", "unloading") and slot.was_ready)
            if name in self.settings.preload
            else slot.state != "failed"
            for name, slot in slots.items()
        )

    def can_answer(self, spec: ModelSpec) -> bool:
        """Whether a request to this very model would be answered: it is in memory, or would be loaded for it."""
        slot = next((each for each in self.pool.slots() if each.spec.id == spec.id), None)
        if slot is not None and slot.state in ("loading", "failed"):
            return False
        return (slot is not None and slot.state == "ready") or not self.catalogue.obstacles(spec)

    def device(self) -> tuple[str, str]:
        """Device of the models in use, and the reason for it."""
        # What a model is made for says nothing of the computer, so such a one speaks last.
        for slot in sorted(self.pool.slots(), key=lambda slot: slot.spec.device == "cpu"):
            if slot.device is not None:
                made_for_it = slot.spec.device == "cpu" != self.settings.device
                reason = f"{slot.spec.id} is made for the CPU" if made_for_it else slot.device.device_reason
                return slot.device.device, reason
        return "cpu", "no model has been loaded yet"

    async def preload(self) -> None:
        """Load the best usable model of every capability that is kept ready; the others load on demand."""
        self._tell_faults()
        slots: dict[str, Slot] = {}
        while True:
            begun = set(slots)
            for name in self.settings.preload:
                with contextlib.suppress(SidecarError):  # faults() names it
                    spec = self.pool.resolve(name)
                    slots[spec.id] = self.pool.slot(spec)
            if slots.keys() == begun:
                break
            self.refresh()
            # One that cannot be loaded leaves its place to the next best.
            await asyncio.gather(*(slots[each].ensure_ready() for each in slots.keys() - begun), return_exceptions=True)
        if LISTENING & set(self.settings.preload):
            with contextlib.suppress(SidecarError):  # told to whoever sends a file
                await self.decoder.slot.ensure_ready()

    def _tell_faults(self) -> None:
        """Log what is newly wrong with the catalogue."""
        faults = {fault.reason for fault in self.catalogue.faults} | set(self.catalogue.unanswered_places())
        for reason in sorted(faults - self._told):
            log.warning("%s", reason)
        self._told = faults

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """From the pool: to the listeners, and as a phase to the supervisor."""
        self.hub.publish(event, data)
        if event in ("download", "profile"):
            self._tell_of_background(data.get("model") or data["profile"], data)
        elif event == "progress":
            # A load on demand takes nothing from being ready: who waits for that would wait for ever.
            phase = "loading" if self.phase == "starting" else self.phase
            self._shows_progress = True
            self._tell("phase", phase=phase, progress={k: data[k] for k in ("item", "done", "total", "unit")})
        else:
            self.refresh()
            if self._shows_progress and data.get("state") != "loading" and not self.stopping:
                self._shows_progress = False
                self._tell("phase", phase=self.phase, progress=None)

    def _tell_of_background(self, item: str, data: dict[str, Any]) -> None:
        phase = "loading" if self.phase == "starting" else self.phase
        if data.get("total"):
            progress = {"item": item, "done": data["done"], "total": data["total"], "unit": data.get("unit", "bytes")}
            progress |= {"rate": data.get("rate"), "eta_s": data.get("eta_s")}
            self._tell("phase", phase=phase, progress=progress)
        elif data.get("state") in _ENDS:
            self._tell("phase", phase=phase, progress=None)

    def describe_phase(self) -> dict[str, Any]:
        """For /events. `restarts` are the server's: whoever listened to the one before has seen the stream end."""
        return {"phase": self.phase, "restarts": self.metrics.server_restarts}

    def refresh(self) -> None:
        """Announce the phase if it has changed."""
        phase = {"starting": "loading", "healthy": "ready", "degraded": "degraded"}[self.status()]
        if phase != self.phase and not self.stopping:
            self.phase = phase
            device, reason = self.device()
            self._tell("phase", phase=phase, progress=None, device=device, device_reason=reason)
            self.hub.publish("phase", self.describe_phase())

    def arrived(self, spec: ModelSpec) -> None:
        """A download is complete: whatever it is best for, it takes over."""
        self.catalogue.refresh()
        self.pool.refresh(spec.capabilities)

    async def remove(self, spec: ModelSpec) -> int:
        """Delete a model's weights; returns the bytes freed. What it answered for falls back to the next best."""
        freed_bytes = await asyncio.to_thread(self.cache.remove, spec)
        self.catalogue.refresh()
        self.pool.drop(spec.id)  # who asked meanwhile has loaded it again
        return freed_bytes

    async def catalogue_changed(self) -> None:
        """An entry of the user's own came, went or changed, or a download ended beside us: the models follow, live."""
        names = [capability.name for capability in CAPABILITIES]
        before = {spec.id for name in names for spec in self.catalogue.for_capability(name)}
        await asyncio.to_thread(self.catalogue.refresh)
        self._tell_faults()
        after = {spec.id for name in names for spec in self.catalogue.for_capability(name)}
        for model_id in before - after:
            self.pool.drop(model_id)
        self.pool.refresh(capability.name for capability in ANSWERING)
        self.refresh()

    async def profiles_changed(self) -> None:
        """An environment came or went, by us or by a launcher beside us: the models that need it follow, live."""
        before = self.catalogue.profiles
        await asyncio.to_thread(self.catalogue.refresh)
        changed = before ^ self.catalogue.profiles
        specs = [spec for spec in self.catalogue.specs.values() if spec.profile in changed]
        gone = [spec.id for spec in specs if spec.profile in before]
        for model_id in gone:
            self.pool.forget(model_id)
        self.pool.refresh({capability for spec in specs for capability in spec.capabilities})
        # What runs in base and would run in CUDA's, or the other way round, does so from its next load.
        moved = [slot.spec.id for slot in self.pool.slots() if CUDA in changed and self._may_move(slot.spec)]
        await asyncio.gather(*(self.pool.let_go(model_id) for model_id in (*gone, *moved)))
        self.refresh()

    def _may_move(self, spec: ModelSpec) -> bool:
        return spec.profile == OWN and spec.runtime == "onnx" and spec.device != "cpu"

    async def remove_profile(self, name: str) -> int:
        """Delete a profile's environments; returns the bytes freed.

        Raises ProfileNeededError, ProfileBusyError, ProfileError.
        """
        if name == OWN:
            raise ProfileNeededError("base is what everything runs in; it goes with the whole sidecar")
        if self.profiles.state(name) == "installed":
            await self.installs.settled(name)  # it only tidies up after itself
        if self.installs.progress(name) is not None:
            raise ProfileBusyError(
                f"the profile {name!r} is being installed; wait for it, or stop it first: POST /profiles/{name}/cancel"
            )
        if name in self.profiles.leaving:
            raise ProfileBusyError(f"the profile {name!r} is being removed already")
        self.profiles.leaving.add(name)
        try:
            await self.profiles_changed()
            freed_bytes = await self.installs.remove(name)
        finally:
            self.profiles.leaving.discard(name)
            await self.profiles_changed()
        self.publish("profile", {"profile": name, "state": "absent"})
        return freed_bytes

    def keep_setting(self, name: str, value: float) -> None:
        """Changed while we run: should this server crash, the next one begins with it."""
        self._tell("setting", name=name, value=value)

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
        self.hub.publish("phase", self.describe_phase())
        self.hub.close()


def state_of(connection: HTTPConnection) -> ServerState:
    """The server's state, for a route."""
    state: ServerState = connection.app.state.sidecar
    return state
