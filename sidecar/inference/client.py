"""The server's end of one runner: one process, from spawn to death."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from sidecar import wire
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import (
    ModelLoadError,
    OutOfMemoryError,
    RunnerCrashedError,
    RunnerTimeoutError,
    SidecarError,
    WireError,
    from_wire,
)
from sidecar.inference.batcher import NotStartedError, RunnerKilledError
from sidecar.inference.child import spawn
from sidecar.inference.lastwords import LastWords, exit_text
from sidecar.inference.poison import Input
from sidecar.inference.terms import Terms
from sidecar.settings import role_command, runner_environment

_CLOSE_S = 1.0
_LAST_WORDS_S = 0.5
_SIGKILL, _SIGTERM = 9, 15

# Chunks of a stream that may wait for its reader: enough to hide the pipe, little enough to stay small.
_STREAM_CREDIT = 8
# With streams, others take their turns between two chunks: silence of one is not yet silence of the runner.
_STREAM_PATIENCE = 4


@dataclass(eq=False, slots=True)
class _Flight:
    capability: str
    items: list[Any]
    future: asyncio.Future[list[Any]]
    timeout_s: float
    deadline: asyncio.TimerHandle | None = None
    """Set while the runner is at it."""
    chunks: asyncio.Queue[Any] | None = None
    """Of a stream: what has come and was not yet read; ends with _END."""
    credit: int = 0
    """Of a stream: chunks that the runner may still send. With none its silence is its reader's fault."""
    begun_at: float = 0.0
    """When the deadline was first set since its last sign of life."""


_END = object()


class RunnerClient(asyncio.SubprocessProtocol):
    """Frames to and from one runner process. Everything happens in callbacks of the event loop; there is no lock.

    `ready` resolves once, to the READY message or an error. `dead` resolves when the process is gone and its pipes are
    drained.
    """

    def __init__(
        self,
        model_id: str,
        ready_timeout_s: float,
        on_death: Callable[["RunnerClient"], None],
        on_progress: Callable[[wire.Progress], None],
        on_log: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.model_id = model_id
        self.ready: asyncio.Future[wire.Ready] = loop.create_future()
        self.dead: asyncio.Future[None] = loop.create_future()
        self.served = False
        self.suspects: list[Input] = []
        """Once it is dead: what it may have died of, if that was its own fault."""
        self._loop = loop
        self._ready_timeout_s = ready_timeout_s
        self._on_death = on_death
        self._on_progress = on_progress
        self._words = LastWords(on_log)
        self._decoder = wire.Decoder()
        self._flights: OrderedDict[int, _Flight] = OrderedDict()
        self._next_id = 1
        self._parallel = 1
        self._heard_at = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self.verdict: SidecarError | None = None
        self._ended = False

    @classmethod
    async def start(
        cls,
        spec: ModelSpec,
        terms: Terms,
        on_death: Callable[["RunnerClient"], None],
        on_progress: Callable[[wire.Progress], None],
        on_log: Callable[[str], None],
    ) -> "RunnerClient":
        """Spawn the runner of `spec`; cancelling leaves none behind. Raises ModelLoadError if it cannot be started."""
        client = cls(spec.id, terms.ready_timeout_s, on_death, on_progress, on_log)
        try:
            argv = role_command("run", spec.id, python=terms.interpreter(spec, terms.device))
            await spawn(lambda: client, argv, runner_environment())
        except ModelLoadError:
            raise
        except (OSError, SidecarError) as error:
            raise ModelLoadError(f"cannot start the runner of {spec.id}: {error}") from None
        device = "cpu" if spec.device == "cpu" else terms.device
        client._write(wire.Load(spec.model_dump(mode="json"), terms.threads, device))
        return client

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base classes, hence casts and no isinstance.
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self._stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        self._arm(self._ready_timeout_s)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._words.feed(data)
            return
        try:
            for message in self._decoder.feed(data):
                self._receive(message)
        except WireError as error:
            self.kill(RunnerCrashedError(f"the runner of {self.model_id} broke the protocol: {error.message}"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        # A runner whose stdout is gone cannot answer any more. Mostly it has just died; its exit status is the better
        # evidence, so it gets a moment.
        if fd == 1 and self._transport.get_returncode() is None:
            self._disarm()
            self._deadline = self._loop.call_later(_CLOSE_S, self.kill, None)

    def process_exited(self) -> None:
        # Its last words are still in the pipes; but a child of the runner may hold them open for ever.
        self._disarm()
        self._deadline = self._loop.call_later(_LAST_WORDS_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended and all pipes are closed."""
        self._end()

    def _end(self) -> None:
        if self.dead.done():
            return
        self._disarm()
        for fd in (0, 1, 2):
            if pipe := self._transport.get_pipe_transport(fd):
                pipe.close()
        self._transport.close()
        error = self.verdict or self._cause_of_death()
        if not self.ready.done():
            self.ready.set_exception(
                error if isinstance(error, ModelLoadError) else ModelLoadError(f"{error.message}{self._words}")
            )
            self.ready.exception()  # retrieved: nobody need be waiting
        begun = self._begun()
        if not isinstance(error, RunnerKilledError):
            self.suspects = [(flight.capability, item) for flight in begun for item in flight.items]
        self._on_death(self)
        flights, self._flights = self._flights, OrderedDict()
        for flight in flights.values():
            if flight.deadline:
                flight.deadline.cancel()
            if not flight.future.done():
                flight.future.set_exception(error if flight in begun else NotStartedError())
            if flight.chunks is not None:
                flight.chunks.put_nowait(_END)
        self.dead.set_result(None)

    @property
    def killed_from_outside(self) -> bool:
        """Whether somebody else ended the process: a person, or the system when memory ran out."""
        return not self._ended and self._transport.get_returncode() in (-_SIGKILL, -_SIGTERM)

    def _cause_of_death(self) -> SidecarError:
        kind = RunnerKilledError if self.killed_from_outside else RunnerCrashedError
        return kind(f"the runner of {self.model_id} {self.exit_text()}")

    # To the pool

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    @property
    def in_flight(self) -> int:
        """Batches sent and not yet answered."""
        return len(self._flights)

    async def infer(self, capability: str, items: list[Any], timeout_s: float) -> list[Any]:
        """Run one batch; `timeout_s` is counted from when the runner can begin it.

        Raises what the runner reported, RunnerCrashedError, RunnerTimeoutError or NotStartedError.
        """
        batch_id, flight = await self._send_off(capability, items, timeout_s)
        try:
            return await flight.future
        except asyncio.CancelledError:
            self._cancel(batch_id)
            raise

    async def stream(self, capability: str, item: Any, timeout_s: float) -> AsyncGenerator[Any, None]:
        """The pieces of one streamed output. Closing it tells the runner. Raises as `infer`."""
        batch_id, flight = await self._send_off(capability, [item], timeout_s, _STREAM_CREDIT)
        assert flight.chunks is not None
        taken = 0
        try:
            while (chunk := await flight.chunks.get()) is not _END:
                yield chunk
                taken += 1
                if taken == _STREAM_CREDIT // 2:
                    self._write(wire.Credit(batch_id, taken))
                    flight.credit += taken
                    taken = 0
                    if flight.deadline is None and batch_id in self._flights:
                        self._watch(flight)
            await flight.future
        finally:
            self._cancel(batch_id)

    async def _send_off(
        self, capability: str, items: list[Any], timeout_s: float, credit: int = 0
    ) -> tuple[int, _Flight]:
        if self.dead.done() or self._stdin.is_closing() or self.verdict:
            await asyncio.wait([self.dead])
            raise NotStartedError
        batch_id = self._next_id
        self._next_id += 1
        frame = wire.frame(wire.Infer(batch_id, capability, items, credit))
        chunks: asyncio.Queue[Any] | None = asyncio.Queue() if credit else None
        flight = _Flight(capability, items, self._loop.create_future(), timeout_s, chunks=chunks, credit=credit)
        self._flights[batch_id] = flight
        self._watch_begun()
        self._put(frame)
        return batch_id, flight

    def _cancel(self, batch_id: int) -> None:
        """Nobody waits for it any more. It stays in the books until the runner says that it is done with it."""
        if batch_id in self._flights:
            self._write(wire.Cancel(batch_id))

    def _write(self, message: wire.Message) -> None:
        if not self._stdin.is_closing():
            self._put(wire.frame(message))

    def _put(self, frame: wire.Parts) -> None:
        # Not joined, nor `writelines`, which joins: large parts leave from where they lie.
        for part in frame:
            self._stdin.write(part)

    def kill(self, verdict: SidecarError | None) -> None:
        """End the process now; `verdict` is what its requests are told, unless an earlier one stands."""
        self.verdict = self.verdict or verdict
        self._ended = True
        try:
            self._transport.kill()
        except ProcessLookupError:
            return  # already gone; connection_lost follows

    async def close(self) -> None:
        """Ask it to end by closing its stdin, then insist."""
        self._stdin.close()
        await asyncio.wait([self.dead], timeout=_CLOSE_S)
        if not self.dead.done():
            self.kill(None)
            await asyncio.wait([self.dead], timeout=_CLOSE_S)

    def exit_text(self) -> str:
        """How the process ended, for people."""
        return exit_text(self._transport.get_returncode())

    # Inside

    def _receive(self, message: wire.Message) -> None:
        match message:
            case wire.Result(id=batch_id, outputs=outputs):
                self.served = True
                self._finish(batch_id, outputs, None)
            case wire.Chunk(id=batch_id, output=output) if batch_id in self._flights:
                self.served = True
                self._stream_on(self._flights[batch_id], output)
            case wire.Error(id=0, code=code, message=text):
                reported = from_wire(code, text)
                self.verdict = (
                    reported if isinstance(reported, ModelLoadError) else ModelLoadError(f"{self.model_id}: {text}")
                )
            case wire.Error(id=batch_id, code=code, message=text):
                self._finish(batch_id, None, from_wire(code, text))
            case wire.Ready() if not self.ready.done():
                self._disarm()
                self._parallel = message.parallel
                self.ready.set_result(message)
            case wire.Progress() if not self.ready.done():
                self._arm(self._ready_timeout_s)
                self._on_progress(message)
            case _:
                raise WireError(f"unexpected {type(message).__name__}")

    def _finish(self, batch_id: int, outputs: list[Any] | None, error: SidecarError | None) -> None:
        flight = self._flights.pop(batch_id, None)
        if flight is None:
            raise WireError(f"answer to unknown batch {batch_id}")
        if flight.deadline:
            flight.deadline.cancel()
        self._heard_at = self._loop.time()
        self._watch_begun()
        if flight.future.done():
            return
        if error is not None:
            flight.future.set_exception(error)
            flight.future.exception()  # retrieved: a stream's reader may have gone
        else:
            flight.future.set_result(outputs or [])
        if flight.chunks is not None:
            flight.chunks.put_nowait(_END)

    def _stream_on(self, flight: _Flight, output: Any) -> None:
        assert flight.chunks is not None
        flight.chunks.put_nowait(output)
        flight.credit -= 1
        flight.begun_at = 0.0
        self._heard_at = self._loop.time()
        if flight.deadline:
            flight.deadline.cancel()
            flight.deadline = None
        if flight.credit > 0:
            self._watch(flight)
        else:  # parked: what comes after it begins now
            self._watch_begun()

    def _watch(self, flight: _Flight) -> None:
        flight.begun_at = flight.begun_at or self._loop.time()
        flight.deadline = self._loop.call_later(flight.timeout_s, self._silent, flight)

    def _silent(self, flight: _Flight) -> None:
        now = self._loop.time()
        streaming = any(each.chunks is not None for each in self._flights.values())
        heard = now - self._heard_at < flight.timeout_s
        if streaming and heard and now - flight.begun_at < _STREAM_PATIENCE * flight.timeout_s:
            flight.deadline = self._loop.call_later(flight.timeout_s, self._silent, flight)
        else:
            self._expire(flight.timeout_s)

    def _watch_begun(self) -> None:
        for flight in self._computing():
            if flight.deadline is None:
                self._watch(flight)

    def _computing(self) -> list[_Flight]:
        """Batches begin in the order of sending; a stream that waits for its reader takes nobody's place."""
        running = (each for each in self._flights.values() if each.chunks is None or each.credit > 0)
        return list(islice(running, self._parallel))

    def _begun(self) -> list[_Flight]:
        """Whatever it may be at. Beside a stream that runs everything gets its turn, wherever it is in the queue."""
        flights = list(self._flights.values())
        if any(each.chunks is not None and each.credit > 0 for each in flights):
            return [each for each in flights if each.chunks is None or each.credit > 0 or each.begun_at]
        computing = self._computing()
        return [each for each in flights if each in computing or each.begun_at]

    def _arm(self, timeout_s: float) -> None:
        self._disarm()
        self._deadline = self._loop.call_later(timeout_s, self._expire, timeout_s)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self, timeout_s: float) -> None:
        if self.ready.done():
            self.kill(RunnerTimeoutError(f"the runner of {self.model_id} gave no sign of life for {timeout_s:g} s"))
        else:
            what = f"the runner of {self.model_id} did not get ready and showed no progress for {timeout_s:g} s"
            self.kill(ModelLoadError(what))

    def out_of_memory(self, rss_bytes: int, limit_bytes: int) -> None:
        """End it because it passed its memory limit."""
        self.kill(
            OutOfMemoryError(
                f"the runner of {self.model_id} used {rss_bytes >> 20} MiB, over its limit of {limit_bytes >> 20} MiB"
            )
        )
