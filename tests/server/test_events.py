"""What a listener of /events is told, and in which order."""

import asyncio
from contextlib import aclosing
from typing import Any, cast

from sidecar.server.events import EventHub


def test_nothing_is_missed_between_the_present_state_and_the_first_event() -> None:
    async def test() -> list[bytes]:
        hub, state = EventHub(), {"state": "loading"}

        def become(value: str) -> None:
            state["state"] = value
            hub.publish("model", dict(state))

        async with aclosing(cast(Any, hub.stream(lambda: [("model", dict(state))]))) as frames:
            become("ready")  # the response exists, and nobody has read from it
            told = [await anext(frames)]
            become("unloading")
            return [*told, await anext(frames), await anext(frames)]

    retry, present, event = asyncio.run(test())
    assert retry == b"retry: 1000\n\n"
    assert b"ready" in present and b"unloading" in event and event.startswith(b"id: 2\n")


def test_who_reads_slowly_loses_the_oldest_and_holds_nobody_up() -> None:
    async def test() -> list[bytes]:
        hub = EventHub()
        async with aclosing(cast(Any, hub.stream(list))) as frames:
            told = [await anext(frames)]
            for number in range(1000):
                hub.publish("model", {"number": number})
            hub.close()
            return told + [frame async for frame in frames]

    frames = asyncio.run(test())
    assert len(frames) == 256 and b"999" in frames[-1]
