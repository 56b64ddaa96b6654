"""What a listener of /events is told, and in which order."""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from typing import Any, cast

from sidecar.server.events import EventHub
from tests.product import Product, until


def told(product: Product, connection: http.client.HTTPConnection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of the events as they come."""
    connection.request("GET", "/events", headers={"Authorization": f"Bearer {product.token}"})
    response = connection.getresponse()
    name = ""
    while line := response.readline().decode():
        key, _, value = line.rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def listening(product: Product) -> Any:
    return closing(http.client.HTTPConnection("127.0.0.1", product.port, timeout=30))


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


def test_a_replica_that_dies_beside_a_ready_one_is_told(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(more="replicas = 2")
    both = 'sidecar_model_loads_total{model="fake"} 2.0'
    until(lambda: both in product.call("GET", "/metrics").body.decode(), "both are ready")
    with listening(product) as connection:
        ours = (data for name, data in told(product, connection) if name == "model" and data["id"] == "fake")
        assert next(ours)["restarts"] == 0
        runner = product.runner("fake")
        assert runner is not None
        runner.kill()
        event = next(ours)
    assert (event["state"], event["restarts"]) == ("ready", 1)


def test_restarts_of_the_server_are_told(launch: Callable[..., Product]) -> None:
    product = launch()
    with listening(product) as connection:
        assert next(told(product, connection))[1]["restarts"] == 0
    product.server().kill()
    until(lambda: product.handshake["phase"] == "ready" and product.handshake["restarts"]["count"] == 1, "it is back")
    with listening(product) as connection:
        name, data = next(told(product, connection))
    assert (name, data) == ("phase", {"phase": "ready", "restarts": 1, "status": "healthy"})
