"""Residency with real runner processes: room, keep-alive, live upgrade, group switch, replicas."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from sidecar.catalogue.catalogue import Catalogue
from sidecar.inference.pool import Pool
from sidecar.settings import Settings
from tests.product import ROOT, write_fake

BALLAST_MB = 60
MIB = 1 << 20


class World:
    """A pool over the fakes of a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.catalogue = Catalogue([folder])
        loaded = Settings.load(**settings)
        self.pool = Pool(
            self.catalogue, loaded, lambda event, data: self.events.append((event, data)), lambda line: None
        )

    async def infer(self, model: str | None = None, text: str = "x", keep_alive_s: float | None = None) -> str:
        spec = self.pool.resolve("emotion", model)
        await self.pool.infer(spec, "emotion", text, 10, keep_alive_s=keep_alive_s)
        return spec.id

    def resident(self) -> set[str]:
        return {slot.spec.id for slot in self.pool.slots() if slot.resident}

    def runners(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it may be ending just now
                if "run" in child.cmdline():
                    found.append(child)
        return found

    async def until(self, condition: Callable[[], Any], deadline_s: float = 10.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, "not in time"
            await asyncio.sleep(0.02)


Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run an async test against a pool over fakes with these ids and options."""
    monkeypatch.setenv("SIDECAR_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def start(test: Test, models: dict[str, dict[str, Any]], **settings: Any) -> None:
        for name, options in models.items():
            write_fake(tmp_path, **{"id": name, **options})

        async def bounded() -> None:
            world = World(tmp_path, **settings)
            try:
                await asyncio.wait_for(test(world), 60)
            finally:
                await world.pool.close()

        uvloop.run(bounded())

    return start


def test_an_idle_model_leaves_and_comes_back(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer()
        assert world.runners()
        await world.until(lambda: not world.resident())
        assert not world.runners(), "its memory is really given back"
        assert await world.infer() == "a"

    within(test, {"a": {}}, keep_alive="1s")


def test_a_request_says_how_long_the_model_stays(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer(keep_alive_s=0)
        await world.until(lambda: not world.resident(), 3.0)

    within(test, {"a": {}})


def test_unload_lets_running_requests_finish_and_queued_ones_reload(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer()
        running = [asyncio.ensure_future(world.infer(text=f"t{n}")) for n in range(8)]
        await asyncio.sleep(0.1)
        await world.pool.unload("a")
        assert await asyncio.gather(*running) == ["a"] * 8
        states = [data["state"] for event, data in world.events if event == "model"]
        assert states[:5] == ["loading", "ready", "unloading", "available", "loading"]

    within(test, {"a": {"item_s": 0.2, "max_items": 1}})


def test_four_models_share_the_room_for_two(within: Callable[..., None]) -> None:
    names = ["a", "b", "c", "d"]

    async def test(world: World) -> None:
        chance = random.Random(4)
        peak_mb = one_mb = 0.0
        end = time.monotonic() + 12

        async def client() -> int:
            count = 0
            while time.monotonic() < end:
                await world.infer(chance.choice(names))
                count += 1
                await asyncio.sleep(chance.random() * 0.2)
            return count

        async def watch() -> None:
            nonlocal peak_mb, one_mb
            while time.monotonic() < end:
                sizes = []
                for runner in world.runners():
                    try:
                        sizes.append(runner.memory_info().rss / MIB)
                    except psutil.Error:
                        continue
                peak_mb = max(peak_mb, sum(sizes))
                one_mb = max([one_mb, *sizes])
                await asyncio.sleep(0.05)

        *counts, _ = await asyncio.gather(*(client() for _ in range(4)), watch())
        print(f"\n{sum(counts)} requests, peak {peak_mb:.0f} MiB, one model {one_mb:.0f} MiB")
        assert sum(counts) > 20
        assert {slot.spec.id for slot in world.pool.slots()} == set(names)
        # Two within the budget, and at most one more that is being loaded.
        assert peak_mb < 3 * one_mb + 30

    options = {"ballast_mb": BALLAST_MB, "memory_mb": 110}
    within(test, {name: options for name in names}, memory_budget_bytes=250 * MIB)


def test_a_better_model_takes_over_between_two_requests(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        answers = []

        async def steady() -> None:
            while len(answers) < 5 or answers[-1] != "better":
                answers.append(await world.infer())

        first = asyncio.ensure_future(steady())
        await world.until(lambda: len(answers) >= 3)
        write_fake(tmp_path, id="better", preference=200, load="slow", load_s=0.5)
        world.catalogue.refresh()
        world.pool.refresh(["emotion"])
        await asyncio.wait_for(first, 20)
        assert sum(a != b for a, b in itertools.pairwise(answers)) == 1
        assert ("upgrade", {"capability": "emotion", "from": "old", "to": "better"}) in world.events
        assert {"old", "better"} <= world.resident()

    within(test, {"old": {"item_s": 0.01}})


def test_a_better_model_that_cannot_load_changes_nothing(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.infer()
        write_fake(tmp_path, id="broken", preference=200, load="fail")
        world.catalogue.refresh()
        world.pool.refresh(["emotion"])
        await world.until(lambda: any(data.get("state") == "failed" for _, data in world.events))
        assert await world.infer() == "old"

    within(test, {"old": {}})


def test_a_group_is_switched_under_load(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.pool.switch("one")
        answers = []

        async def steady() -> None:
            while len(answers) < 5 or answers[-1] != "b":
                answers.append(await world.infer())

        first = asyncio.ensure_future(steady())
        await world.until(lambda: len(answers) >= 3)
        await world.pool.switch("two")
        await asyncio.wait_for(first, 20)
        assert sum(x != y for x, y in itertools.pairwise(answers)) == 1 and answers[0] == "a"
        await world.until(lambda: world.resident() == {"b"})

    within(test, {"a": {"more": 'group = "one"', "item_s": 0.01}, "b": {"more": 'group = "two"', "item_s": 0.01}})


def test_replicas_share_the_requests(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer()
        await world.until(lambda: len(world.runners()) == 2)
        await world.until(lambda: world.pool.slots()[0].batcher.parallel == 2)
        started = time.monotonic()
        await asyncio.gather(*(world.infer(text=f"t{n}") for n in range(8)))
        assert time.monotonic() - started < 8 * 0.3 * 0.75

    within(test, {"a": {"more": "replicas = 2", "item_s": 0.3, "max_items": 1}})


def test_after_running_out_of_memory_the_smaller_variant_answers(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert await world.infer() == "large"
        with pytest.raises(Exception, match="over its limit"):
            await world.infer(text="!eat:3000")
        await world.until(lambda: world.pool.resolve("emotion").id == "small")
        assert await world.infer() == "small"

    within(
        test,
        {
            "large": {"more": 'smaller = "small"', "memory_limit_mb": 120, "timeout_s": 20.0},
            "small": {"preference": 50},
            "other": {"preference": 60},
        },
    )


def test_loading_one_model_delays_nobody_else(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("a")

        async def latencies(seconds: float) -> list[float]:
            taken = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                started = time.perf_counter()
                await world.infer("a")
                taken.append(time.perf_counter() - started)
                await asyncio.sleep(0.01)
            return sorted(taken)

        calm = await latencies(2.0)
        loading = [asyncio.ensure_future(world.infer(name)) for name in "bcde"]
        busy = await latencies(2.0)
        await asyncio.gather(*loading)
        # The four loads take the cores from a two-core machine; what must not be there is a wait for a load's end.
        assert busy[-1] < 0.5, (calm[-1], busy[-1])

    within(test, {name: {"load": "slow", "load_s": 1.0} if name != "a" else {} for name in "abcde"})
