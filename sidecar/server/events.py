"""Server-sent events: what happens inside, told to whoever listens on /events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

_BACKLOG = 256
_KEEP_ALIVE_S = 15.0


class EventHub:
    """Fans events out to subscribers. A slow one loses its oldest events rather than holding up the server."""

    def __init__(self) -> None:
        self._subscribers: set[asyncio.Queue[bytes | None]] = set()
        self._next_id = 1

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """Send to everybody who listens now."""
        frame = b"id: %d\nevent: %s\ndata: %s\n\n" % (self._next_id, event.encode(), msgspec.json.encode(data))
        self._next_id += 1
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(frame)

    def close(self) -> None:
        """End every stream, so that shutdown need not wait for listeners."""
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    async def stream(self, first: Callable[[], list[tuple[str, dict[str, Any]]]]) -> AsyncIterator[bytes]:
        """SSE frames: the present state (`first`), then every event after it, with comments as keep-alive."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_BACKLOG)
        self._subscribers.add(queue)
        present = first()  # in the same moment: what happens from here on is in the queue
        try:
            yield b"retry: 1000\n\n"
            for event, data in present:
                yield b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(data))
            while True:
                try:
                    frame = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
                except asyncio.TimeoutError:
                    frame = b": keep-alive\n\n"
                if frame is None:
                    return
                yield frame
        finally:
            self._subscribers.discard(queue)
