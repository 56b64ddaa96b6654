"""Replica: one runner process kept alive. One owner task decides; everybody else awaits `ready`."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from sidecar import wire
from sidecar.catalogue.catalogue import ModelSpec
from sidecar.errors import ModelLoadError, SidecarError
from sidecar.inference.client import RunnerClient

State = Literal["stopped", "loading", "ready", "failed"]

_LOAD_DELAYS_S = (1.0, 5.0, 15.0, 60.0)
_CRASH_DELAYS_S = (0.0, 0.0, 1.0, 5.0, 15.0)


def delay_s(delays: tuple[float, ...], failures: int) -> float:
    """Delay before try number `failures` + 1 after that many failures in a row."""
    return delays[min(failures, len(delays)) - 1] if failures else 0.0


class Replica:
    """Loads, watches, loads again. A load that keeps failing opens a breaker: after four it rests until asked."""

    def __init__(
        self,
        spec: ModelSpec,
        ready_timeout_s: float,
        on_change: Callable[["Replica"], None],
        on_progress: Callable[[wire.Progress], None],
        log: Callable[[str], None],
    ) -> None:
        self.state: State = "stopped"
        self.error: SidecarError | None = None
        self.device: wire.Ready | None = None
        self.client: RunnerClient | None = None
        self.restarts = 0
        self._refusing = False
        self._spec = spec
        self._ready_timeout_s = ready_timeout_s
        self._on_change = on_change
        self._on_progress = on_progress
        self._log = log
        self._ready: asyncio.Future[RunnerClient] = asyncio.get_running_loop().create_future()
        self._owner: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the runner, or None while there is none."""
        return self.client.pid if self.client and not self.client.dead.done() else None

    @property
    def load(self) -> int:
        """Batches on their way through it."""
        return self.client.in_flight if self.client else 0

    def start(self) -> None:
        """Begin to load, unless it is at it."""
        if self._owner is None or self._owner.done():
            self._owner = asyncio.get_running_loop().create_task(self._own(), name=f"replica-{self._spec.id}")

    async def ready(self) -> RunnerClient:
        """The ready runner. Raises ModelLoadError, at once while a failed load cools down."""
        if not self._refusing:
            self.start()
        return await asyncio.shield(self._ready)

    def refuse(self, error: SidecarError) -> bool:
        """Load no more. True if nothing was ready: who waits for it is told `error`."""
        self._refusing = True
        waiting = not self._ready.done()
        self._fail(error)
        return waiting

    async def stop(self) -> None:
        """End the process and give its memory back."""
        if self._owner:
            self._owner.cancel()
            self._owner = None
        if self.client:
            await self.client.close()
            self.client = None
        self._renew()
        self.error = None
        self._set("stopped")

    async def _own(self) -> None:
        load_failures = crashes = 0
        while load_failures < len(_LOAD_DELAYS_S) and not self._refusing:
            self._set("loading")
            try:
                client = self.client = await RunnerClient.start(
                    self._spec.id, self._ready_timeout_s, self._died, self._on_progress, self._log
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
            self._ready.set_result(client)
            self._set("ready")
            await asyncio.shield(client.dead)
            self.restarts += 1
            crashes = 1 if client.served else crashes + 1
            self._log(f"runner {client.exit_text()}; restarting")
            await asyncio.sleep(delay_s(_CRASH_DELAYS_S, crashes))

    async def _cool_down(self, error: ModelLoadError, pause_s: float) -> None:
        """Tell those who wait, refuse newcomers at once for a while, then start afresh."""
        self._log(f"load failed: {error.message}; next try in {pause_s:g} s")
        self.error = error
        error.retry_after_s = pause_s
        self._fail(error)
        self._set("failed")
        await asyncio.sleep(pause_s)
        self._renew()

    def _died(self, client: RunnerClient) -> None:
        # Before the client fails its requests: their retries must wait for the next runner, not find this one.
        if self._ready.done() and not self._ready.cancelled() and not self._ready.exception():
            self._renew()
            self._set("loading")

    def _fail(self, error: SidecarError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # retrieved: nobody need be waiting

    def _renew(self) -> None:
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()

    def _set(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._on_change(self)

    def describe(self) -> dict[str, Any]:
        """For /models."""
        return {"state": self.state, "pid": self.pid, "restarts": self.restarts}
