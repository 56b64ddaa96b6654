"""Models that are dropped, retired or slow to end in the middle of something, with real runner processes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sidecar.errors import ModelUnavailableError, ShuttingDownError
from sidecar.inference import client, slot
from tests.inference.test_pool_residency import BALLAST_MB, MIB, World, within
from tests.product import write_fake

__all__ = ["within"]

ROOM_FOR_ONE = (BALLAST_MB + 90) * MIB


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is dropped is not given half a minute for what it has begun."""
    monkeypatch.setattr(slot, "_DRAIN_S", 0.0)


async def freeze(world: World) -> psutil.Process:
    """The one runner, stopped: it does not see the end of its pipe."""
    [process] = world.runners()
    process.suspend()
    await world.until(lambda: process.status() == psutil.STATUS_STOPPED)
    return process


def test_one_that_is_dropped_while_another_makes_room_for_it_leaves_nothing_half_done(
    within: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        await world.infer("a")
        await freeze(world)  # its end takes as long as it is given
        leaving = world.pool.slots()[0]
        waiting = asyncio.ensure_future(world.infer("b"))
        await world.until(lambda: leaving.state == "unloading")
        world.pool.drop("b")
        with pytest.raises(ShuttingDownError):
            await asyncio.wait_for(waiting, 20)
        await world.until(lambda: not leaving.resident)
        assert leaving.state == "available" and not world.runners()
        assert await asyncio.wait_for(world.infer("c"), 20) == "c"

    models = {name: {"ballast_mb": BALLAST_MB, "memory_mb": BALLAST_MB + 30} for name in "abc"}
    within(test, models, memory_budget_bytes=ROOM_FOR_ONE)


def test_one_that_waits_for_room_and_is_dropped_says_so_and_the_next_upgrade_comes(
    within: Callable[..., None], tmp_path: Path
) -> None:
    options = {"ballast_mb": BALLAST_MB, "memory_mb": BALLAST_MB + 30}

    async def test(world: World) -> None:
        await world.infer("old")
        running = asyncio.ensure_future(world.infer("old", text=f"!until:{tmp_path}/go"))
        await world.until(lambda: world.pool.slots()[0].busy)
        write_fake(tmp_path, id="better", preference=200, **options)
        world.catalogue.refresh()
        asked = asyncio.ensure_future(world.pool.slot(world.catalogue.get("better")).ensure_ready())
        world.pool.refresh(["emotion"])
        await world.until(lambda: world.pool._upgrades)
        world.pool.drop("better")
        with pytest.raises(ModelUnavailableError, match="taken away before there was room"):
            await asyncio.wait_for(asked, 20)
        (tmp_path / "better.toml").unlink()
        write_fake(tmp_path, id="best", preference=300, **options)
        world.catalogue.refresh()
        world.pool.refresh(["emotion"])
        (tmp_path / "go").touch()
        await running
        await world.until(lambda: world.pool.resolve("emotion").id == "best")

    within(test, {"old": {**options, "timeout_s": 60.0}}, memory_budget_bytes=ROOM_FOR_ONE)


def test_one_that_ends_late_does_not_disturb_its_successor(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CLOSE_S", 0.05)

    async def test(world: World) -> None:
        await world.infer()
        [replica] = world.pool.slots()[0]._replicas
        late = replica.client
        assert late is not None
        monkeypatch.setattr(late, "kill", lambda verdict: None)  # as where the kernel holds it
        process = await freeze(world)
        await world.pool.unload("a")
        await world.infer()
        process.resume()
        await asyncio.wait_for(asyncio.shield(late.dead), 20)
        assert replica.state == "ready"
        await asyncio.wait_for(world.infer(), 20)

    within(test, {"a": {}})


def test_one_that_retires_is_watched_told_and_ended(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "_DRAIN_S", 60.0)

    async def test(world: World) -> None:
        running = asyncio.ensure_future(world.infer(text="!hang"))
        await world.until(lambda: world.pool.slots() and world.pool.slots()[0].resident)
        retiring = world.pool.slots()[0]
        await world.until(lambda: any(replica.load for replica in retiring._replicas))
        world.pool.drop("a")
        assert world.pool.slots() == []
        await world.until(lambda: retiring.measured_bytes)
        # What is left of the budget is too little for another one.
        other = asyncio.ensure_future(world.infer("b"))
        await asyncio.sleep(0.5)
        assert not other.done() and world.resident() == set()
        world.pool.refuse()
        world.pool.give_up()
        for asked in (running, other):
            with pytest.raises(ShuttingDownError):
                await asyncio.wait_for(asked, 20)
        await world.pool.close()
        assert not world.runners()

    models = {name: {"ballast_mb": BALLAST_MB, "memory_mb": BALLAST_MB + 30, "timeout_s": 60.0} for name in "ab"}
    within(test, models, memory_budget_bytes=ROOM_FOR_ONE)


def test_one_replica_that_fails_leaves_the_other_to_answer(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        asked = asyncio.ensure_future(world.infer())
        await world.until(lambda: len(world.runners()) == 2)
        model = world.pool.slots()[0]
        first = model._replicas[0]

        def kill() -> bool:
            if first.state == "loading" and first.client is not None:
                first.client.kill(None)
            return first.state == "failed"

        await world.until(kill)
        assert model.state == "loading" and not model.failing
        behind = asyncio.ensure_future(world.infer())
        (tmp_path / "go").touch()
        await asyncio.wait_for(asyncio.gather(asked, behind), 20)

    within(test, {"a": {"more": "replicas = 2", "load": f"until:{tmp_path}/go"}})
