"""Streams of one model: outputs that come in pieces, side by side with the batches."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from sidecar.errors import OutOfMemoryError, OverloadedError, RunnerCrashedError, RunnerTimeoutError, SidecarError
from sidecar.inference.batcher import MAX_ATTEMPTS, NotStartedError
from sidecar.inference.histogram import Histogram
from sidecar.inference.poison import PoisonLedger

# How long a stream takes before one has been measured, and the weight of each in the average.
_GUESSED_S = 5.0
_WEIGHT = 0.2
_DEATHS = (RunnerCrashedError, RunnerTimeoutError, OutOfMemoryError, NotStartedError)


class Streams:
    """Admits as many as the runners take; the rest wait their turn, boundedly.

    `run(capability, item)` opens one stream on a ready runner and yields its pieces.
    """

    def __init__(
        self, run: Callable[[str, Any], AsyncGenerator[Any, None]], queue_size: int, limit: int, poison: PoisonLedger
    ) -> None:
        self._run = run
        self._queue_size = queue_size
        self._limit = limit
        self._poison = poison
        self._open = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._held = False
        self._stopped: SidecarError | None = None
        self._landed = asyncio.Event()
        self.ended = self.failed = 0
        self._stream_s = _GUESSED_S
        self.queued = Histogram()
        """Time from the arrival of a stream until it was let in (s)."""

    def __len__(self) -> int:
        """Those that wait."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """Those that run."""
        return self._open

    @property
    def busy(self) -> bool:
        return bool(self._open or self._waiting)

    async def stream(self, capability: str, item: Any) -> AsyncGenerator[Any, None]:
        """Yield the pieces of one output; closing the generator ends the work.

        A runner that dies before the first piece is tried once more; later its death is the reader's, who has a part
        already. Raises OverloadedError, PoisonInputError, or what the runner reported.
        """
        self._poison.check(capability, item)
        arrived = time.monotonic()
        await self._enter()
        began = time.monotonic()
        self.queued.observe(began - arrived)
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                begun = False
                pieces = self._run(capability, item)
                try:
                    async for piece in pieces:
                        begun = True
                        yield piece
                except _DEATHS as error:
                    if begun or attempt == MAX_ATTEMPTS:
                        raise _told(error, begun) from None
                else:
                    self._poison.absolve(capability, item)
                    self.ended += 1
                    self._stream_s += _WEIGHT * (time.monotonic() - began - self._stream_s)
                    return
                finally:
                    await pieces.aclose()
        except SidecarError:
            self.failed += 1
            raise
        finally:
            self._leave()

    async def hold(self) -> None:
        """Open no further stream, and return when the open ones have ended."""
        self._held = True
        while self._open:
            self._landed.clear()
            await self._landed.wait()

    def release(self) -> None:
        """Undo `hold`."""
        self._held = False
        self._admit()

    def fail_all(self, error: SidecarError) -> None:
        """Refuse those that wait, and whatever comes."""
        self._stopped = error
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)

    async def _enter(self) -> None:
        if self._stopped:
            raise self._stopped
        if len(self._waiting) >= self._queue_size:
            wait_s = max(1.0, len(self._waiting) * self._stream_s / self._limit)
            raise OverloadedError(
                f"{len(self._waiting)} streams wait already; retry in {wait_s:.0f} s", retry_after_s=wait_s
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()  # admitted and cancelled in the same moment
            raise

    def _admit(self) -> None:
        while self._waiting and self._open < self._limit and not self._held:
            turn = self._waiting.pop(0)
            if not turn.done():
                self._open += 1
                turn.set_result(None)

    def _leave(self) -> None:
        self._open -= 1
        self._landed.set()
        self._admit()


def _told(error: BaseException, begun: bool) -> SidecarError:
    if isinstance(error, SidecarError):
        return error
    # One that waited for its reader when the runner died was not what it died of.
    return RunnerCrashedError(
        "the runner died over another request, in the middle of this one"
        if begun
        else "the runner died before it came to this request, twice"
    )
