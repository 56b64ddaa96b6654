"""Loads that keep failing, hang, or end in a runner that ends again: real processes, counted by themselves."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from sidecar.catalogue.catalogue import Catalogue
from sidecar.errors import ModelLoadError, PoisonInputError, RunnerCrashedError
from sidecar.inference import replica
from sidecar.inference.batcher import Priority
from sidecar.inference.pool import Pool
from sidecar.inference.slot import Slot
from sidecar.settings import Settings
from tests.product import write_fake


class World:
    """A pool over one fake model that writes a line at each of its loads."""

    def __init__(self, folder: Path, tally: Path, **settings: Any) -> None:
        self.pool = Pool(Catalogue([folder]), Settings.load(**settings), lambda *_: None, lambda line: None)
        self.slot: Slot = self.pool.slot(self.pool.resolve("emotion"))
        self._tally = tally

    async def infer(self) -> Any:
        return await self.pool.infer(self.slot.spec, "emotion", "x", 10)

    def loads(self) -> int:
        return len(self._tally.read_text().splitlines()) if self._tally.exists() else 0

    def kill(self) -> None:
        """The runner that began to load last, as a person would."""
        psutil.Process(int(self._tally.read_text().splitlines()[-1])).kill()

    async def until(self, condition: Callable[[], Any], deadline_s: float = 15.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, "not in time"
            await asyncio.sleep(0.01)


Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def within(tmp_path: Path) -> Callable[..., None]:
    def start(test: Test, settings: dict[str, Any] | None = None, more: str = "", **options: Any) -> None:
        tally = tmp_path / "tally"
        folder = write_fake(tmp_path / "cat", more_options=f'tally = "{tally}"\n{more}', **options)

        async def bounded() -> None:
            world = World(folder, tally, **(settings or {}))
            try:
                await asyncio.wait_for(test(world), 40)
            finally:
                await world.pool.close()

        uvloop.run(bounded())

    return start


def test_an_open_breaker_refuses_at_once_and_starts_nothing(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))

    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError, match="told to fail"):
            await world.infer()
        waits = []
        for _ in range(300):
            with pytest.raises(ModelLoadError, match="told to fail") as caught:
                await asyncio.wait_for(world.infer(), 5)
            waits.append(caught.value.retry_after_s or 0.0)
        assert waits == sorted(waits, reverse=True) and 60.0 >= waits[0] > waits[-1] > 0, "what is left, not what was"
        assert world.loads() == 1
        assert world.slot.breaker["open"] and world.slot.breaker["failures"] == 1 and world.slot.state == "failed"

    within(test, load="fail")


def test_after_four_failures_it_rests_until_asked(within: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.01, 0.02, 0.03, 0.5))

    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError):
            await world.infer()
        await world.until(lambda: world.slot.breaker["failures"] == 4 and not world.slot.breaker["open"])
        assert world.loads() == 4 and world.slot.state == "failed" and world.slot.error
        assert world.slot.breaker["retry_after_s"] is None, "nobody has asked"
        await asyncio.sleep(0.7)  # longer than any of the delays: a fifth try would have come by now
        assert world.loads() == 4
        for asked, rest_s in ((5, 3.0), (6, 60.0)):  # one try each, however many ask
            monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.01, 0.02, 0.03, rest_s))
            results = await asyncio.gather(*(world.infer() for _ in range(20)), return_exceptions=True)
            assert all(isinstance(result, ModelLoadError) for result in results)
            assert world.loads() == asked
            if asked == 5:
                await world.until(lambda: not world.slot.breaker["open"])
        await world.slot.unload()
        assert world.slot.state == "available" and world.slot.breaker["failures"] == 0
        assert world.slot.load_failures == 6, "the count for /metrics goes on"

    within(test, load="fail")


def test_a_load_that_succeeds_again_closes_the_breaker(within: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "broken").touch()

    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError):
            await world.infer()
        (tmp_path / "broken").unlink()
        await world.until(lambda: world.slot.state == "ready")
        assert world.slot.breaker == {"open": False, "failures": 0, "retry_after_s": None}
        assert world.slot.error is None and world.slot.loads == 1
        assert world.slot.load_failures == world.loads() - 1 >= 1
        assert await world.infer()

    within(test, load=f"fail_while:{tmp_path}/broken")


def test_one_that_is_killed_while_it_loads_is_loaded_once_more_at_once(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))

    async def test(world: World) -> None:
        answer = asyncio.ensure_future(world.infer())
        await world.until(lambda: world.loads() == 1)
        world.kill()
        (tmp_path / "go").touch()
        assert await answer
        assert world.loads() == 2 and world.slot.load_failures == 0 and world.slot.restarts == 1
        assert not world.slot.breaker["open"] and world.slot.error is None

    within(test, load=f"until:{tmp_path}/go")


def test_one_that_is_killed_twice_while_it_loads_has_failed(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))

    async def test(world: World) -> None:
        answer = asyncio.ensure_future(world.infer())
        for load in (1, 2):
            await world.until(lambda load=load: world.loads() == load)  # type: ignore[misc]
            assert not answer.done()
            world.kill()
        with pytest.raises(ModelLoadError, match="SIGKILL"):
            await answer
        assert world.loads() == 2 and world.slot.load_failures == 1 and world.slot.breaker["open"]

    within(test, load="slow", load_s=30.0)


def test_one_that_grows_over_its_limit_while_it_loads_is_not_tried_again_at_once(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))

    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError, match="over its limit"):
            await world.infer()
        assert world.slot.restarts == 0 and world.slot.load_failures == 1
        assert world.slot.out_of_memory and world.slot.breaker["open"]

    within(test, load="slow", load_s=30.0, ballast_mb=200, memory_limit_mb=150)


def test_a_runner_that_ends_again_and_again_has_failed_to_load(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(RunnerCrashedError):
            await asyncio.wait_for(world.infer(), 20)
        await world.until(lambda: world.slot.state == "failed")
        assert world.slot.error and "again and again" in world.slot.error.message
        assert world.slot.breaker["open"] and world.slot.load_failures == 0
        loads = world.loads()
        with pytest.raises(ModelLoadError, match="again and again") as caught:
            await asyncio.wait_for(world.infer(), 0.5)
        assert caught.value.retry_after_s and world.loads() == loads <= 6

    # It never lives long enough to answer.
    within(test, more="live_s = 1.5\nbatch_s = 20.0")


def test_the_next_best_answers_while_runners_of_the_best_keep_dying(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.05,) * 4)
    write_fake(tmp_path / "cat", id="second", preference=50)

    async def test(world: World) -> None:
        async def ask(text: str) -> str:
            spec, _ = await world.pool.infer_by_best("emotion", None, text, 10, Priority.INTERACTIVE, None)
            return spec.id

        for number in range(2):  # retried once, and perhaps it was the input
            with pytest.raises(RunnerCrashedError):
                await ask(f"text {number}")
        for number in range(2, 9):
            assert await asyncio.wait_for(ask(f"text {number}"), 5) == "second"
            await asyncio.sleep(0.1)  # so that some find it ready again
        assert world.slot.load_failures == 0 and world.slot.restarts >= 4
        (tmp_path / "broken").unlink()
        while await ask("as before") != "fake":
            await asyncio.sleep(0.05)
        assert world.slot.breaker == {"open": False, "failures": 0, "retry_after_s": None}

    (tmp_path / "broken").touch()
    within(test, more=f'dies_while = "{tmp_path}/broken"')


def test_one_input_that_kills_is_no_reason_to_leave_the_model(within: Callable[..., None], tmp_path: Path) -> None:
    write_fake(tmp_path / "cat", id="second", preference=50)

    async def test(world: World) -> None:
        async def ask(text: str) -> str:
            spec, _ = await world.pool.infer_by_best("emotion", None, text, 10, Priority.INTERACTIVE, None)
            return spec.id

        for error in (RunnerCrashedError, RunnerCrashedError, PoisonInputError, PoisonInputError):
            with pytest.raises(error):
                await ask("!crash")
        assert await ask("x") == "fake"

    within(test)


def test_a_failed_model_holds_no_place_and_its_breaker_outlasts_others_needs(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))
    for name in ("one", "two"):
        write_fake(tmp_path / "cat", id=name, preference=50, memory_mb=110, ballast_mb=60)

    async def test(world: World) -> None:
        for model in (None, "one", None, "two", None, "one"):
            await world.pool.infer_by_best("emotion", model, "x", 10, Priority.INTERACTIVE, None)
        assert world.loads() == 1 and world.slot.breaker["open"] and not world.slot.resident

    within(test, settings={"memory_budget_bytes": 150 << 20}, load="fail", memory_mb=110)


def test_a_failed_model_waits_for_room_before_it_is_tried_again(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.3,))
    (tmp_path / "broken").touch()
    write_fake(tmp_path / "cat", id="other", preference=50, memory_mb=110, ballast_mb=60, item_s=1.5)

    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError):
            await world.infer()
        other = world.pool.slot(world.pool.resolve("emotion", "other"))
        busy = asyncio.ensure_future(world.pool.infer(other.spec, "emotion", "x", 10))
        (tmp_path / "broken").unlink()
        await world.until(lambda: not world.slot.breaker["open"])
        waiting = asyncio.ensure_future(world.infer())
        assert await busy and world.loads() == 1
        assert await waiting
        assert not other.resident and world.slot.resident

    within(
        test,
        settings={"memory_budget_bytes": 150 << 20},
        load=f"fail_while:{tmp_path}/broken",
        load_s=0.1,
        memory_mb=110,
        ballast_mb=60,
    )


def test_the_next_best_answers_until_the_best_can_be_loaded_again(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (0.01, 0.02, 0.03, 0.05))
    (tmp_path / "broken").touch()
    write_fake(tmp_path / "cat", id="second", preference=50)
    write_fake(tmp_path / "cat", id="third", preference=40)

    async def test(world: World) -> None:
        pool = world.pool

        async def ask(model: str | None = None) -> str:
            spec, _ = await pool.infer_by_best("emotion", model, "x", 10, Priority.INTERACTIVE, None)
            return spec.id

        assert pool.resolve("emotion").id == "fake"
        assert await ask() == "second", "the request that finds out is answered, too"
        assert pool.wanted("emotion").id == "fake" and pool.active_for("second") == ["emotion"]
        assert not pool.active_for("fake")
        with pytest.raises(ModelLoadError, match="told to fail"):
            await ask("fake")
        await world.until(lambda: world.slot.resting)
        rested = world.loads()
        assert await ask() == "second"
        await world.until(lambda: world.slot.resting and world.loads() > rested)
        assert world.loads() == rested + 1, "one try for a request, behind its back"
        (tmp_path / "broken").unlink()
        assert await ask() == "second"
        await world.until(lambda: world.slot.state == "ready")
        assert await ask() == "fake" and pool.active_for("fake") == ["emotion"]

    within(test, load=f"fail_while:{tmp_path}/broken")


def test_when_nothing_can_be_loaded_the_best_ones_error_is_told(
    within: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica, "_LOAD_DELAYS_S", (60.0,))
    write_fake(tmp_path / "cat", id="second", preference=50, load="crash")

    async def test(world: World) -> None:
        for _ in range(2):
            with pytest.raises(ModelLoadError, match="told to fail"):
                await world.pool.infer_by_best("emotion", None, "x", 10, Priority.INTERACTIVE, None)
        assert world.loads() == 1

    within(test, load="fail")
