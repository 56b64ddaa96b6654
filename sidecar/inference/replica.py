"""Replica: one runner process kept alive. One owner task decides; everybody else awaits `ready`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, TypedDict

from sidecar import wire
from sidecar.catalogue.profiles import OWN, repair
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import (
    EnvironmentBrokenError,
    ModelLoadError,
    ModelUnavailableError,
    SidecarError,
)
from sidecar.inference.client import RunnerClient
from sidecar.inference.poison import Fingerprint, Input, fingerprint
from sidecar.inference.terms import Terms

State = Literal["stopped", "loading", "ready", "failed"]

_LOAD_DELAYS_S = (1.0, 5.0, 15.0, 60.0)
# Ends in a row, over different inputs or none, without an answer between them, that say: it does not work.
_DEATHS = 3


def delay_s(delays: tuple[float, ...], failures: int) -> float:
    """Delay before try number `failures` + 1 after that many failures in a row."""
    return delays[min(failures, len(delays)) - 1] if failures else 0.0


class Breaker(TypedDict):
    """What keeps a model that cannot be loaded from being tried all the time."""

    open: bool
    """Requests are refused at once, without a try."""
    failures: int
    """Failed loads in a row, and runners among them that could not be kept alive."""
    retry_after_s: float | None
    """When the next try comes; None when that is at the next request."""


class Replica:
    """Loads, watches, loads again. A load that keeps failing, or a runner that keeps dying, opens a breaker, for longer
    each time; after four failures in a row it rests until asked, and then tries once. Once it has failed its memory is
    others', and it waits for `readmit` before it loads.
    """

    def __init__(
        self,
        spec: ModelSpec,
        terms: Terms,
        readmit: Callable[[], Awaitable[None]],
        on_change: Callable[["Replica"], None],
        on_progress: Callable[[wire.Progress], None],
        accuse: Callable[[Iterable[Input]], None],
        log: Callable[[str], None],
    ) -> None:
        self.state: State = "stopped"
        self.error: SidecarError | None = None
        self.device: wire.Ready | None = None
        self.client: RunnerClient | None = None
        self.restarts = 0
        self.load_failures = 0
        self._failures = 0
        self._deaths: list[frozenset[Fingerprint]] = []
        """Of runners in a row that answered nothing: what each may have died of."""
        self._retry_at: float | None = None
        self._refusing = False
        self._spec = spec
        self._terms = terms
        self._readmit = readmit
        self._on_change = on_change
        self._on_progress = on_progress
        self._accuse = accuse
        self._log = log
        self._ready: asyncio.Future[RunnerClient] = asyncio.get_running_loop().create_future()
        self._owner: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the runner, or None while there is none."""
        return self.client.pid if self.client and not self.client.dead.done() else None

    @property
    def failures(self) -> int:
        """Failed loads in a row, and runners among them that could not be kept alive."""
        return 0 if self.client and self.client.served else self._failures

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
        breaker = self.breaker
        if breaker["open"] and self.error is not None:
            # One of their own: what is left of the wait differs from request to request.
            raise type(self.error)(self.error.message, retry_after_s=breaker["retry_after_s"])
        return await asyncio.shield(self._ready)

    @property
    def breaker(self) -> Breaker:
        left_s = None if self._retry_at is None else max(0.0, round(self._retry_at - time.monotonic(), 3))
        refused = left_s is not None and self._ready.done()
        return {"open": refused, "failures": self.failures, "retry_after_s": left_s}

    def refuse(self, error: SidecarError) -> bool:
        """Load no more. True if nothing was ready: who waits for it is told `error`."""
        self._refusing = True
        waiting = not self._ready.done()
        self._fail(error)
        return waiting

    async def stop(self) -> None:
        """End the process and give its memory back."""
        owner, self._owner = self._owner, None
        if owner:
            owner.cancel()
            await asyncio.wait([owner])
        if self.client:
            await self.client.close()
            self.client = None
        self._fail(ModelUnavailableError(f"{self._spec.id} was taken out of memory before it was ready"))
        self._renew()
        self.error = None
        self._failures = 0
        self._deaths = []
        self._retry_at = None
        self._set("stopped")

    async def _own(self) -> None:
        while not self._refusing:
            if self.state == "failed":
                await self._readmit()
            self._set("loading")
            client = await self._load()
            if client is not None:
                await self._live(client)
            if self.state == "failed" and self._failures >= len(_LOAD_DELAYS_S):
                return

    async def _load(self) -> RunnerClient | None:
        """The runner that has got ready, or None after a failed load has cooled down."""
        for attempt in (1, 2):
            self.client = None
            try:
                self.client = await RunnerClient.start(
                    self._spec, self._terms, self._died, self._on_progress, self._log
                )
                self.device = await asyncio.shield(self.client.ready)
                return self.client
            except ModelLoadError as error:
                if attempt == 1 and self.client is not None and self.client.killed_from_outside:
                    # Once it says nothing about the model; twice it does: the system may be short of memory.
                    self.restarts += 1
                    self._log(f"{error.message}; loading once more")
                    continue
                self.load_failures += 1
                await self._cool_down(self._with_cure(error))
                break
        return None

    async def _live(self, client: RunnerClient) -> None:
        """Until it ends, and a while longer if it is to be left alone."""
        # It may have died, or we are to stop, in this very moment.
        if not client.dead.done() and not self._ready.done():
            if not self._deaths:
                self._failures = 0
            self.error = None
            self._ready.set_result(client)
            self._set("ready")
            await asyncio.shield(client.dead)
            self.restarts += 1
        if client.served:
            self._deaths = []
            self._failures = 0
        suspects = frozenset(fingerprint(*each) for each in client.suspects)
        # An input that kills it a second time has not said more than it did the first time.
        if not suspects or not (self._terms.blames_inputs or suspects in self._deaths):
            self._deaths.append(suspects)
        if len(self._deaths) < _DEATHS:
            self._log(f"runner {client.exit_text()}; restarting")
            return
        what = f"the runner of {self._spec.id} {client.exit_text()}, again and again, without an answer in between"
        await self._cool_down(ModelLoadError(what))

    def _with_cure(self, error: ModelLoadError) -> ModelLoadError:
        """A runner that lacks a module has a broken environment; one that dies without a word, too, if not in ours."""
        wordless = self._spec.profile != OWN and self.client is not None and self.client.verdict is None
        if not (wordless or isinstance(error, EnvironmentBrokenError)):
            return error
        return EnvironmentBrokenError(f"{error.message} (cure: {repair(self._spec.profile)})")

    async def _cool_down(self, error: ModelLoadError) -> None:
        """Tell those who wait, refuse newcomers at once for a while, then start afresh."""
        self._failures += 1
        pause_s = delay_s(_LOAD_DELAYS_S, self._failures)
        self._log(f"load failed: {error.message}; next try in {pause_s:g} s")
        self.error = error
        error.retry_after_s = pause_s
        self._retry_at = time.monotonic() + pause_s
        self._fail(error)
        self._set("failed")
        await asyncio.sleep(pause_s)
        self._retry_at = None
        self._renew()

    def _died(self, client: RunnerClient) -> None:
        self._accuse(client.suspects)
        if client is not self.client:
            return  # of one that was slow to end: its successor may be ready
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
