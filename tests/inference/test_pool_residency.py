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
from sidecar.errors import ModelUnavailableError
from sidecar.inference import replica
from sidecar.inference.pool import Pool
from sidecar.inference.residency import expired
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
        await world.until(lambda: not world.resident())

    within(test, {"a": {}})


def test_what_a_request_said_of_keep_alive_ends_with_that_stay(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer(keep_alive_s=0)
        await world.until(lambda: not world.resident())
        await world.infer()
        assert not expired([world.pool.slots()[0].as_resident()], time.monotonic() + 299)
        await world.infer(keep_alive_s=-1)
        await world.pool.unload("a")
        assert world.pool.slots()[0].keep_alive_s == 300.0

    within(test, {"a": {}})


def test_who_waits_for_a_load_is_told_when_it_is_called_off(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        slot = world.pool.slot(world.pool.resolve("emotion"))
        loading = asyncio.ensure_future(slot.ensure_ready())
        await world.until(world.runners)
        await world.pool.unload("a")
        with pytest.raises(ModelUnavailableError, match="taken out of memory"):
            await asyncio.wait_for(loading, 20)
        (tmp_path / "go").touch()
        assert await world.infer() == "a"

    within(test, {"a": {"load": f"until:{tmp_path}/go"}})


def test_a_load_asked_for_while_the_runner_ends_is_a_new_one(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer()
        slot = world.pool.slots()[0]
        world.runners()[0].suspend()  # it takes a while to end
        leaving = asyncio.ensure_future(world.pool.unload("a"))
        await world.until(lambda: any(data.get("state") == "unloading" for _, data in world.events))
        runner = await slot.ensure_ready()
        assert leaving.done()
        assert slot.resident and slot.state == "ready" and slot.describe()["pid"] == runner.pid
        assert len(world.runners()) == 1

    within(test, {"a": {}})


def test_unload_lets_running_requests_finish_and_queued_ones_reload(
    within: Callable[..., None], tmp_path: Path
) -> None:
    async def test(world: World) -> None:
        await world.infer()
        running = [asyncio.ensure_future(world.infer(text=f"!until:{tmp_path}/go {n}")) for n in range(8)]
        await world.until(lambda: world.pool.queue_size() == 6)  # two are under way
        unloading = asyncio.ensure_future(world.pool.unload("a"))
        await world.until(lambda: world.pool.slots()[0].state == "unloading")
        (tmp_path / "go").touch()
        await unloading
        assert await asyncio.gather(*running) == ["a"] * 8
        states = [data["state"] for event, data in world.events if event == "model"]
        assert states[:5] == ["loading", "ready", "unloading", "available", "loading"]

    within(test, {"a": {"timeout_s": 30.0, "max_items": 1}})


def test_four_models_share_the_room_for_two(within: Callable[..., None]) -> None:
    names = ["a", "b", "c", "d"]

    async def test(world: World) -> None:
        peak_mb = one_mb = 0.0

        async def client(number: int) -> None:
            chance = random.Random(number)
            for name in chance.sample(names, 4):
                await world.infer(name)
                await asyncio.sleep(chance.random() * 0.2)

        async def watch() -> None:
            nonlocal peak_mb, one_mb
            while True:
                sizes = []
                for runner in world.runners():
                    try:
                        sizes.append(runner.memory_info().rss / MIB)
                    except psutil.Error:
                        continue
                peak_mb = max(peak_mb, sum(sizes))
                one_mb = max([one_mb, *sizes])
                await asyncio.sleep(0.05)

        watching = asyncio.ensure_future(watch())
        await asyncio.gather(*(client(number) for number in range(4)))
        watching.cancel()
        print(f"\npeak {peak_mb:.0f} MiB, one model {one_mb:.0f} MiB")
        assert {slot.spec.id for slot in world.pool.slots()} == set(names)
        # Two within the budget, and at most one more that is being loaded.
        assert peak_mb < 3 * one_mb + 30

    options = {"ballast_mb": BALLAST_MB, "memory_mb": 110}
    within(test, {name: options for name in names}, memory_budget_bytes=250 * MIB)


def test_models_of_unknown_size_do_not_crowd_the_room(within: Callable[..., None]) -> None:
    budget = 300 * MIB

    async def test(world: World) -> None:
        def held() -> int:
            return sum(slot.size_bytes() for slot in world.pool.slots() if slot.resident)

        await asyncio.gather(*(world.infer(name) for name in "abcdef"))
        await world.until(lambda: all(slot.measured_bytes for slot in world.pool.slots() if slot.resident))
        await world.until(lambda: held() < budget)
        assert 1 <= len(world.resident()) <= 2
        for name in "abcdef":  # their size is known by now
            await world.infer(name)
            assert held() < budget
        await world.pool.unload("f")
        assert next(slot for slot in world.pool.slots() if slot.spec.id == "f").size_bytes() > BALLAST_MB * MIB

    within(test, {name: {"ballast_mb": 80} for name in "abcdef"}, memory_budget_bytes=budget)


def test_a_model_that_grows_over_the_budget_stays_while_it_is_alone(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("small")
        await world.infer("large")
        await world.until(lambda: world.resident() == {"large"})
        await asyncio.sleep(1.5)  # housekeeping has been by
        assert world.resident() == {"large"}

    within(test, {"small": {}, "large": {"ballast_mb": 150, "memory_mb": 1}}, memory_budget_bytes=140 * MIB)


def test_beside_pinned_models_over_the_budget_there_is_room_for_one(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        for name in ("pinned", "other", "a", "pinned", "other"):
            await world.infer(name)
        await world.until(lambda: all(slot.measured_bytes for slot in world.pool.slots() if slot.resident))
        await asyncio.sleep(1.5)  # housekeeping has been by
        assert world.resident() == {"pinned", "other", "a"}
        await asyncio.gather(*(world.infer(name) for name in ("b", "a", "b", "pinned")))
        await world.until(lambda: len(world.resident()) == 3)

    pinned = {"more": "pinned = true", "ballast_mb": 80, "memory_mb": 130}
    within(test, {"pinned": pinned, "other": pinned, "a": {}, "b": {}}, memory_budget_bytes=150 * MIB)


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


def test_a_better_model_that_can_be_loaded_after_all_takes_over(
    within: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.2,) * 4)
    (tmp_path / "broken").touch()

    async def test(world: World) -> None:
        await world.infer()
        write_fake(tmp_path, id="better", preference=200, load=f"fail_while:{tmp_path}/broken", load_s=0.1)
        world.catalogue.refresh()
        world.pool.refresh(["emotion"])
        await world.until(lambda: any(data.get("state") == "failed" for _, data in world.events))
        assert await world.infer() == "old"
        (tmp_path / "broken").unlink()
        await world.until(lambda: world.pool.resolve("emotion").id == "better")

    within(test, {"old": {}})


def test_the_best_that_comes_while_a_better_one_loads_takes_over_after_it(
    within: Callable[..., None], tmp_path: Path
) -> None:
    async def test(world: World) -> None:
        await world.infer()
        for name, preference in (("better", 200), ("best", 300)):
            write_fake(tmp_path, id=name, preference=preference, load="slow", load_s=0.5)
            world.catalogue.refresh()
            world.pool.refresh(["emotion"])
            await asyncio.sleep(0.1)
        await world.until(lambda: world.pool.resolve("emotion").id == "best")
        assert [data["to"] for event, data in world.events if event == "upgrade"] == ["better", "best"]

    within(test, {"old": {}})


def test_a_group_is_switched_under_load(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.pool.switch("one")
        answers: list[list[str]] = [[] for _ in range(16)]  # more than the runner takes: some always wait

        async def steady(mine: list[str]) -> None:
            while len(mine) < 5 or mine[-1] != "b":
                mine.append(await world.infer())

        clients = [asyncio.ensure_future(steady(mine)) for mine in answers]
        await world.until(lambda: all(len(mine) >= 3 for mine in answers))
        await world.pool.switch("two")
        await asyncio.wait_for(asyncio.gather(*clients), 20)
        for mine in answers:
            assert sum(x != y for x, y in itertools.pairwise(mine)) == 1 and mine[0] == "a"
        await world.until(lambda: world.resident() == {"b"})
        [old] = [slot for slot in world.pool.slots() if slot.spec.id == "a"]
        assert old.loads == 1, "who waited for it was answered before it left"

    options = {"item_s": 0.01, "max_items": 1}
    within(test, {"a": {"more": 'group = "one"', **options}, "b": {"more": 'group = "two"', **options}})


def test_runners_killed_at_any_point_of_a_switch_fail_no_request(within: Callable[..., None]) -> None:
    chance = random.Random(7)

    async def test(world: World) -> None:
        await world.pool.switch("one")
        answers: list[str] = []
        over = asyncio.Event()

        async def steady() -> None:
            while not over.is_set():
                answers.append(await world.infer())

        clients = [asyncio.ensure_future(steady()) for _ in range(3)]
        for group, model in (("two", "b"), ("one", "a")) * 4:
            switching = asyncio.ensure_future(world.pool.switch(group))
            await asyncio.sleep(chance.random() * 0.8)
            for runner in chance.sample(world.runners(), 1):
                runner.kill()
            await switching
            count = len(answers)
            await world.until(lambda count=count, model=model: model in answers[count:])  # type: ignore[misc]
        over.set()
        await asyncio.gather(*clients)
        await world.until(lambda: world.resident() == {"a"})

    within(test, {"a": {"more": 'group = "one"', "item_s": 0.01}, "b": {"more": 'group = "two"', "item_s": 0.01}})


def test_what_was_switched_to_stays_when_something_better_comes(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert await world.infer() == "a"
        await world.pool.switch("two")
        write_fake(tmp_path, id="best", preference=900)
        world.catalogue.refresh()
        world.pool.refresh(["emotion"])
        assert await world.infer("a") == "a" and await world.infer() == "b"
        assert "best" not in world.resident()

    within(test, {"a": {"preference": 200}, "b": {"more": 'group = "two"'}})


def test_members_of_a_group_come_together(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("a")
        await world.until(lambda: world.resident() == {"a", "b"})

    within(test, {"a": {"more": 'group = "g"'}, "b": {"more": 'group = "g"'}, "c": {"more": 'group = "h"'}})


def test_replicas_share_the_requests(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.infer()
        await world.until(lambda: len(world.runners()) == 2)
        slot = world.pool.slots()[0]
        await world.until(lambda: slot.batcher.parallel == 2)
        # Each holds what it has got until both are at it.
        items = [asyncio.ensure_future(world.infer(text=f"!until:{tmp_path}/go {n}")) for n in range(8)]
        await world.until(lambda: sum(replica.load for replica in slot._replicas) == 3)  # one of them hides the pipe
        assert all(replica.load for replica in slot._replicas)
        (tmp_path / "go").touch()
        await asyncio.gather(*items)

    within(test, {"a": {"more": "replicas = 2", "timeout_s": 30.0, "max_items": 1}})


def test_what_another_environment_takes_to_the_gpu_needs_memory_there(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        spec = world.catalogue.get("a").model_copy(update={"memory_mb": 100})
        settings = Settings.load(device="auto")
        for python, need in ((None, 0), (Path("python"), 100 * MIB)):
            pool = Pool(world.catalogue, settings, lambda *_: None, lambda line: None, lambda *_: python)
            assert pool.slot(spec).vram_need_bytes() == need
            await pool.close()

    within(test, {"a": {}})


def test_after_running_out_of_memory_the_smaller_variant_answers(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert await world.infer() == "large"
        with pytest.raises(Exception, match="over its limit"):
            await world.infer(text="!eat:3000")
        await world.until(lambda: world.pool.resolve("emotion").id == "small")
        assert await world.infer() == "small"
        await world.pool.unload("large")  # whoever does so wants another try
        await world.infer("large")
        await world.until(lambda: world.pool.resolve("emotion").id == "large")

    within(
        test,
        {
            "large": {"more": 'smaller = "small"', "memory_limit_mb": 120, "timeout_s": 20.0},
            "small": {"preference": 50},
            "other": {"preference": 60},
        },
    )


def test_loading_one_model_delays_nobody_else(within: Callable[..., None], tmp_path: Path) -> None:
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

        calm = await latencies(0.5)
        loading = [asyncio.ensure_future(world.infer(name)) for name in "bcde"]
        busy = await latencies(2.0)
        assert not any(each.done() for each in loading)
        (tmp_path / "go").touch()
        await asyncio.gather(*loading)
        # The four loads take the cores from a two-core machine; what must not be there is a wait for a load's end.
        assert busy[len(busy) // 2] < 0.5, (calm[-1], busy[-1])

    load = f"until:{tmp_path}/go"
    within(test, {name: {"load": load} if name != "a" else {} for name in "abcde"})
