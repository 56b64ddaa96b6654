"""The server's end of one runner: one process, from spawn to death."""

import asyncio
import signal
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from sidecar import wire
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
from sidecar.settings import role_command, runner_environment

_STDERR_TAIL_BYTES = 4096
_CLOSE_S = 1.0
_LAST_WORDS_S = 0.5
_SIGKILL, _SIGTERM = 9, 15


@dataclass(slots=True)
class _Flight:
    future: asyncio.Future[list[Any]]
    timeout_s: float
    deadline: asyncio.TimerHandle | None = None
    """Set while the runner is at it."""


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
        self._loop = loop
        self._ready_timeout_s = ready_timeout_s
        self._on_death = on_death
        self._on_progress = on_progress
        self._on_log = on_log
        self._decoder = wire.Decoder()
        self._flights: OrderedDict[int, _Flight] = OrderedDict()
        self._next_id = 1
        self._parallel = 1
        self._deadline: asyncio.TimerHandle | None = None
        self.verdict: SidecarError | None = None
        self._stderr_tail = b""
        self._stderr_line = b""

    @classmethod
    async def start(cls, model_id: str, *args: Any, command: list[str] | None = None) -> "RunnerClient":
        """Spawn the runner of `model_id`. Raises ModelLoadError if the process cannot even be started."""
        client = cls(model_id, *args)
        argv = command or role_command("run", model_id)
        try:
            await client._loop.subprocess_exec(lambda: client, *argv, env=runner_environment())
        except OSError as error:
            raise ModelLoadError(f"cannot start the runner of {model_id}: {error}") from None
        return client

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base classes, hence casts and no isinstance.
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self._stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        self._arm(self._ready_timeout_s)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._log(data)
            return
        try:
            for message in self._decoder.feed(data):
                self._receive(message)
        except WireError as error:
            self.kill(RunnerCrashedError(f"the runner of {self.model_id} broke the protocol: {error.message}"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        # A runner whose stdout is gone cannot answer any more. Mostly it has just died; its exit status is the better
        # evidence, so it gets a moment.
        if fd == 1:
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
                error if isinstance(error, ModelLoadError) else ModelLoadError(f"{error.message}{self._tail_text()}")
            )
            self.ready.exception()  # retrieved: nobody need be waiting
        self._on_death(self)
        flights, self._flights = self._flights, OrderedDict()
        for position, flight in enumerate(flights.values()):
            if flight.deadline:
                flight.deadline.cancel()
            if not flight.future.done():
                flight.future.set_exception(error if position < self._parallel else NotStartedError())
        self.dead.set_result(None)

    def _cause_of_death(self) -> SidecarError:
        killed = self._transport.get_returncode() in (-_SIGKILL, -_SIGTERM)
        kind = RunnerKilledError if killed else RunnerCrashedError
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
        if self.dead.done() or self._stdin.is_closing() or self.verdict:
            await asyncio.wait([self.dead])
            raise NotStartedError
        batch_id = self._next_id
        self._next_id += 1
        frame = wire.encode(wire.Infer(batch_id, capability, items))
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._flights[batch_id] = _Flight(future, timeout_s)
        self._watch_begun()
        self._stdin.write(frame)
        return await future

    def kill(self, verdict: SidecarError | None) -> None:
        """End the process now; `verdict` is what its requests are told, unless an earlier one stands."""
        self.verdict = self.verdict or verdict
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
        code = self._transport.get_returncode()
        if code is not None and code < 0:
            try:
                return f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                return f"was killed by signal {-code}"
        return f"ended with exit code {code}"

    # Inside

    def _receive(self, message: wire.Message) -> None:
        match message:
            case wire.Result(id=batch_id, outputs=outputs):
                self.served = True
                self._finish(batch_id, outputs, None)
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
        self._watch_begun()
        if flight.future.done():
            return
        if error is not None:
            flight.future.set_exception(error)
        else:
            flight.future.set_result(outputs or [])

    def _watch_begun(self) -> None:
        """Batches begin in the order of sending, as many at a time as the runner computes at once."""
        for flight in islice(self._flights.values(), self._parallel):
            if flight.deadline is None:
                flight.deadline = self._loop.call_later(flight.timeout_s, self._expire, flight.timeout_s)

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
            self.kill(
                ModelLoadError(
                    f"the runner of {self.model_id} did not get ready and showed no progress for {timeout_s:g} s"
                )
            )

    def _log(self, data: bytes) -> None:
        self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]
        *lines, self._stderr_line = (self._stderr_line + data).split(b"\n")
        if len(self._stderr_line) > _STDERR_TAIL_BYTES:
            lines.append(self._stderr_line)
            self._stderr_line = b""
        for line in lines:
            self._on_log(line.decode("utf-8", "replace").rstrip())

    def _tail_text(self) -> str:
        lines = self._stderr_tail.decode("utf-8", "replace").strip().splitlines()
        return f"; it last said: {lines[-1]}" if lines else ""

    def out_of_memory(self, rss_bytes: int, limit_bytes: int) -> None:
        """End it because it passed its memory limit."""
        self.kill(
            OutOfMemoryError(
                f"the runner of {self.model_id} used {rss_bytes >> 20} MiB, over its limit of {limit_bytes >> 20} MiB"
            )
        )
