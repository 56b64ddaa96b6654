"""Room: the memory that all models share. Who wants in asks here; who holds too much leaves."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

import psutil

from sidecar import process
from sidecar.inference.residency import Plan, Resident, Vram, make_room, preempt
from sidecar.inference.slot import Slot
from sidecar.settings import Settings

_LOOK_S = 0.1
_LOADING_LOOK_S = 0.02
# How long a busy model may stay in memory while another one waits for its place: long enough that work outweighs loads.
_QUANTUM_S = 2.0
_LOAD_TURN_S = 3.0
_BUDGET_SHARE = 0.6
_VRAM_SHARE = 0.9


class Room:
    """Over `slots`, by id. Admits one at a time, in the order of asking, so that nobody starves."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        retiring: Collection[Slot],
        settings: Settings,
        ask_vram: Callable[[], Awaitable[Vram]] | None,
    ) -> None:
        self.budget_bytes = settings.memory_budget_bytes or int(psutil.virtual_memory().total * _BUDGET_SHARE)
        self._vram_budget_bytes = settings.vram_budget_bytes
        self._slots = slots
        self._retiring = retiring
        self._ask_vram = ask_vram
        self._vram: Vram | None = None
        self._door = asyncio.Lock()
        self._loads_at_once = max(1, process.usable_cores() // 2)

    async def admit(self, slot: Slot) -> None:
        """Return when there is room for `slot`."""
        async with self._door:
            while not await self._try_admit(slot):
                await asyncio.sleep(_LOOK_S)
            # Loads take whole cores: those who do not wait for one shall not feel it. A load that takes long, or
            # hangs, is not waited for.
            deadline = time.monotonic() + _LOAD_TURN_S
            while self._loading(slot) >= self._loads_at_once and time.monotonic() < deadline:
                await asyncio.sleep(_LOADING_LOOK_S)

    def surplus(self) -> tuple[str, ...]:
        """Idle models that have to leave because those in memory have turned out larger than was thought."""
        residents = [slot.as_resident() for slot in self._slots.values() if slot.resident]
        newest = max((each for each in residents if not each.pinned), key=lambda each: each.used_at, default=None)
        if newest is None:
            return ()
        others = [each for each in residents if each is not newest]
        return self._plan(others, newest.size_bytes, newest.group, newest.vram_bytes).evict

    async def measure_vram(self) -> None:
        """Ask the driver, if a model is on the GPU."""
        if self._ask_vram and any(slot.on_gpu for slot in self._slots.values()):
            self._vram = await self._ask_vram()
            for slot in self._slots.values():
                slot.measure_vram(self._vram.by_process)

    async def _try_admit(self, slot: Slot) -> bool:
        if slot.vram_need_bytes() and self._vram is None and self._ask_vram is not None:
            self._vram = await self._ask_vram()
        others = {each.spec.id: each for each in self._slots.values() if each.resident and each is not slot}
        residents = [each.as_resident() for each in others.values()]
        # Those that retire answer whom they have, and leave by themselves: they are waited for, nobody can hasten them.
        retiring = [each.as_resident() for each in self._retiring if each.resident]
        residents += [
            replace(each, model_id=f"retiring {each.model_id}", busy=True, pinned=False, group=None)
            for each in retiring
        ]
        plan = self._plan(residents, slot.size_bytes(), slot.spec.group, slot.vram_need_bytes())
        await asyncio.gather(*(others[model_id].unload("evicted") for model_id in plan.evict))
        if plan.fits:
            return True
        since = {name: each.ready_since for name, each in others.items() if each.state == "ready"}
        victim = preempt(plan.in_the_way, since, time.monotonic(), _QUANTUM_S)
        if victim is not None:
            await others[victim].unload("evicted")
        return False

    def _plan(self, residents: list[Resident], need_bytes: int, group: str | None, need_vram_bytes: int) -> Plan:
        total_bytes = self._vram.total_bytes if self._vram else 0
        return make_room(
            residents,
            need_bytes,
            self.budget_bytes,
            group,
            need_vram_bytes=need_vram_bytes,
            # Without a GPU there is nothing to share out.
            vram_budget_bytes=self._vram_budget_bytes or total_bytes * _VRAM_SHARE or math.inf,
        )

    def _loading(self, newcomer: Slot) -> int:
        return sum(each.resident and each.state == "loading" for each in self._slots.values() if each is not newcomer)
