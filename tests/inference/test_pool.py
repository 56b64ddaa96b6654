"""Slots around real runner processes that crash, hang, print, eat memory and die while loading."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from sidecar.catalogue.catalogue import Catalogue, ModelSpec
from sidecar.errors import (
    InferenceError,
    ModelLoadError,
    ModelNotFoundError,
    ModelUnavailableError,
    OutOfMemoryError,
    PoisonInputError,
    RunnerCrashedError,
    RunnerTimeoutError,
    ShuttingDownError,
)
from sidecar.inference.client import RunnerClient
from sidecar.inference.pool import Pool
from sidecar.inference.replica import delay_s
from sidecar.inference.terms import Terms
from sidecar.settings import Settings
from tests.product import ROOT, alive, until, write_fake


class World:
    """A pool over one fake model."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        catalogue = Catalogue([folder])
        self.pool = Pool(
            catalogue,
            Settings.load(**settings),
            lambda event, data: self.events.append((event, data)),
            self.lines.append,
        )

    @property
    def spec(self) -> ModelSpec:
        return self.pool.resolve("emotion")

    async def infer(self, text: str) -> Any:
        return await self.pool.infer(self.spec, "emotion", text, 10)

    def pid(self) -> int:
        pid = self.pool.slot(self.spec).describe()["pid"]
        assert isinstance(pid, int)
        return pid


Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run an async test against a pool with these fake options."""

    def start(test: Test, settings: dict[str, Any] | None = None, **options: Any) -> None:
        folder = write_fake(tmp_path / "cat", **options)
        monkeypatch.setenv("SIDECAR_CATALOGUE", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

        async def bounded() -> None:
            world = World(folder, **(settings or {}))
            try:
                await asyncio.wait_for(test(world), 30)
            finally:
                await world.pool.close()

        uvloop.run(bounded())  # as in production

    return start


def test_load_on_demand_and_answer(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        answers = await asyncio.gather(*(world.infer("x" * n) for n in range(1, 20)))
        assert all(len(answer) == 7 for answer in answers)
        assert [data["state"] for event, data in world.events if event == "model"] == ["loading", "ready"]

    within(test)


def test_a_crash_is_answered_by_the_next_runner(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.infer("hello")
        first = world.pid()
        answers = await asyncio.gather(*(world.infer(f"x !once:{tmp_path}/crashed") for _ in range(4)))
        assert len(answers) == 4 and world.pid() != first

    within(test)


def test_a_crashing_input_fails_alone_and_is_then_refused(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        results = await asyncio.gather(
            *(world.infer(text) for text in ("a", "b", "!crash", "c", "d")), return_exceptions=True
        )
        assert [isinstance(result, RunnerCrashedError) for result in results] == [False, False, True, False, False]
        assert "SIGSEGV" in str(results[2])
        with pytest.raises(RunnerCrashedError):
            await world.infer("!crash")
        with pytest.raises(PoisonInputError):
            await world.infer("!crash")
        assert await world.infer("still here")

    within(test)


def test_one_bad_item_fails_alone(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("warm")
        pid = world.pid()
        texts = [f"t{i}" for i in range(9)]
        texts.insert(5, "!fail")
        results = await asyncio.gather(*(world.infer(text) for text in texts), return_exceptions=True)
        assert [isinstance(result, InferenceError) for result in results] == [text == "!fail" for text in texts]
        assert world.pid() == pid

    within(test)


def test_a_library_that_panics_takes_no_thread_along(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("warm")
        pid = world.pid()
        for _ in range(5):  # more than it has threads
            with pytest.raises(InferenceError, match="told to panic"):
                await world.infer("!panic")
        assert await world.infer("still here") and world.pid() == pid

    within(test, more="threads = 1", timeout_s=30.0)


def test_a_hang_is_ended_and_the_others_are_answered(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("warm")
        results = await asyncio.gather(
            *(world.infer(text) for text in ("a", "!hang", "b", "c")), return_exceptions=True
        )
        assert [type(result) for result in results] == [list, RunnerTimeoutError, list, list]

    within(test, timeout_s=1.5)


def test_what_a_library_prints_harms_nothing(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("one !print")
        pid = world.pid()
        assert await world.infer("two") and world.pid() == pid
        assert any("rubbish on stdout" in line for line in world.lines)

    within(test)


def test_rubbish_on_the_frame_stream_ends_the_runner(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(RunnerCrashedError, match="broke the protocol"):
            await world.infer("!garbage")
        assert await world.infer("next")

    within(test)


def test_running_out_of_memory_is_said_and_survived(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        results = await asyncio.gather(*(world.infer(t) for t in ("a", "!oom", "b")), return_exceptions=True)
        assert [type(result) for result in results] == [list, OutOfMemoryError, list]

    within(test)


def test_a_runner_that_eats_memory_is_ended_at_its_limit(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("warm")
        with pytest.raises(OutOfMemoryError, match="over its limit of 120 MiB"):
            await world.infer("!eat:3000")
        assert await world.infer("next")
        assert psutil.Process(world.pid()).memory_info().rss < 120 << 20

    within(test, memory_limit_mb=120, timeout_s=20.0)


@pytest.mark.parametrize(("load", "said"), [("crash", "SIGSEGV"), ("fail", "told to fail"), ("garbage", "protocol")])
def test_dying_while_loading_is_a_clear_error(load: str, said: str, within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError, match=said) as caught:
            await world.infer("x")
        assert caught.value.retry_after_s == 1.0
        assert world.pool.slot(world.spec).state == "failed"
        # While it cools down nobody waits for it, and no storm of processes is started.
        with pytest.raises(ModelLoadError):
            await world.infer("y")

    within(test, load=load)


def test_a_load_that_hangs_is_ended(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(ModelLoadError, match="no progress for 1 s"):
            await world.infer("x")

    within(test, settings={"runner_ready_timeout_s": 1.0}, load="hang")


def test_progress_extends_the_deadline_of_a_load(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert await world.infer("x")
        assert any(event == "progress" and data["item"] == "weights" for event, data in world.events)

    # Long enough for a Python to start on a busy machine; the load takes longer.
    within(test, settings={"runner_ready_timeout_s": 4.0}, load="slow", load_s=5.0)


def test_resolve_pins_or_says_why_not(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        assert world.pool.resolve("emotion", "fake").id == "fake"
        with pytest.raises(ModelNotFoundError):
            world.pool.resolve("emotion", "other")
        with pytest.raises(ModelNotFoundError, match="does not offer"):
            world.pool.resolve("asr", "fake")
        with pytest.raises(ModelUnavailableError):
            world.pool.resolve("asr")

    within(test)


def test_close_ends_every_process(within: Callable[..., None]) -> None:
    pids = []

    async def test(world: World) -> None:
        await world.infer("x")
        pids.append(world.pid())
        waiting = [asyncio.ensure_future(world.infer("!hang")) for _ in range(3)]
        await asyncio.sleep(0.1)
        await world.pool.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, Exception) for result in results)
        with pytest.raises(ShuttingDownError):
            await world.infer("late")

    within(test)
    until(lambda: not psutil.pid_exists(pids[0]) or not alive(psutil.Process(pids[0])), "it is gone")


def test_one_that_is_called_off_while_it_is_started_leaves_no_process(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        def nothing(*_: Any) -> None: ...

        before = set(psutil.Process().children())
        for turns in range(1, 6):
            start = RunnerClient.start(world.spec, Terms(30.0), nothing, nothing, nothing)
            starting = asyncio.ensure_future(start)
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled():
                await starting.result().close()
            deadline = time.monotonic() + 10
            while set(psutil.Process().children()) - before:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    within(test)


def test_a_runner_is_polite_and_knows_no_secret(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("x")
        runner = psutil.Process(world.pid())
        assert runner.nice() > psutil.Process(os.getpid()).nice()
        assert "SIDECAR_LAUNCH_TOKEN" not in runner.environ()

    within(test)


def test_delays_grow_and_stay_at_the_last() -> None:
    assert [delay_s((0.0, 1.0, 5.0), n) for n in range(6)] == [0.0, 0.0, 1.0, 5.0, 5.0, 5.0]


def test_a_child_that_holds_the_pipes_does_not_hide_the_death(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.infer("!child:40")
        first = world.pid()
        assert await asyncio.wait_for(world.infer(f"!once:{tmp_path}/crashed"), 20)
        assert world.pid() != first

    within(test)


def test_stopping_while_loading_answers_those_who_wait(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        waiting = [asyncio.ensure_future(world.infer(f"t{n}")) for n in range(5)]
        await asyncio.sleep(0.2)
        world.pool.refuse()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(result) for result in results] == [ShuttingDownError] * 5

    within(test, load="slow", load_s=25.0)


def test_giving_up_answers_what_runs(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        await world.infer("warm")
        running = [asyncio.ensure_future(world.infer("!hang")) for _ in range(3)]
        await asyncio.sleep(0.1)
        world.pool.refuse()
        assert not any(each.done() for each in running), "what runs may still be answered"
        world.pool.give_up()
        results = await asyncio.gather(*running, return_exceptions=True)
        assert [type(result) for result in results] == [ShuttingDownError] * 3

    within(test, timeout_s=20.0)


def test_a_batch_that_nobody_waits_for_is_not_computed(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        slow = asyncio.ensure_future(world.infer(f"!until:{tmp_path}/go"))
        behind = asyncio.ensure_future(world.infer("!crash"))
        runner = await world.pool.slot(world.spec).ensure_ready()
        while runner.in_flight < 2:  # one computed, one already in the pipe
            await asyncio.sleep(0.01)
        behind.cancel()
        for _ in range(10):
            await asyncio.sleep(0)  # turns of the loop, in which the runner is told
        (tmp_path / "go").touch()
        await slow
        await world.infer("next")
        assert not runner.dead.done() and runner.in_flight == 0

    within(test, timeout_s=30.0, max_items=1)
