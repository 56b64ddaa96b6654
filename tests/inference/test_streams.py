"""Streams through the pool, from real runner processes that die, hang and are read slowly."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from sidecar.catalogue.catalogue import Catalogue
from sidecar.errors import (
    OverloadedError,
    PoisonInputError,
    RunnerCrashedError,
    RunnerTimeoutError,
    ShuttingDownError,
)
from sidecar.inference.pool import Pool
from sidecar.settings import Settings
from tests.product import ROOT, write_fake


class World:
    def __init__(self, folder: Path, python: Path, **settings: Any) -> None:
        self.lines: list[str] = []
        self.pool = Pool(
            Catalogue([folder]),
            Settings.load(**settings),
            lambda *_: None,
            self.lines.append,
            lambda spec, device: python,
        )
        self.spec = self.pool.resolve("emotion")

    def count(self, item: Any) -> Any:
        return self.pool.stream(self.spec, "count", item)

    async def all(self, item: Any) -> list[int]:
        return [number async for number in self.count(item)]


Test = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def within(tmp_path: Path) -> Callable[..., None]:
    """Run an async test against a pool whose runners can stream numbers."""
    python = tmp_path / "python"
    runner = ROOT / "tests" / "fixtures" / "streaming_runner.py"
    python.write_text(f'#!/bin/sh\nexec /usr/bin/env "{sys.executable}" "{runner}" "$@"\n')
    python.chmod(0o755)

    def start(test: Test, settings: dict[str, Any] | None = None, **options: Any) -> None:
        folder = write_fake(tmp_path / "cat", **options)

        async def bounded() -> None:
            world = World(folder, python, **(settings or {}))
            try:
                await asyncio.wait_for(test(world), 30)
            finally:
                await world.pool.close()

        uvloop.run(bounded())

    return start


def test_pieces_come_in_order_and_side_by_side_with_batches(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        streams = [world.all(300) for _ in range(6)]
        batches = [world.pool.infer(world.spec, "emotion", "x" * n, 10) for n in range(20)]
        *counted, answers = await asyncio.gather(*streams, asyncio.gather(*batches))
        assert counted == [list(range(300))] * 6 and len(answers) == 20

    within(test)


def test_a_slow_reader_is_waited_for_and_keeps_nobody_waiting(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        slow = world.count(10**9)
        assert [await anext(slow) for _ in range(3)] == [0, 1, 2]
        runner = await world.pool.slot(world.spec).ensure_ready()
        assert await world.all(100) == list(range(100))
        # Past the silence that counts as a hang (1.5 s here), for a reader that is merely slow.
        await asyncio.sleep(3.0)
        assert await anext(slow) == 3
        await slow.aclose()
        assert not runner.dead.done()
        assert not world.pool.slot(world.spec).busy

    within(test, timeout_s=1.5)


def test_a_hang_behind_a_stream_that_waits_for_its_reader_is_noticed(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        slow = world.count(10**9)
        assert await anext(slow) == 0
        assert len(await world.all(100)) == 100, "long after the slow one has used up its credit"
        with pytest.raises(RunnerTimeoutError):
            await asyncio.wait_for(world.pool.infer(world.spec, "emotion", "!hang", 10), 10)
        with pytest.raises(RunnerCrashedError, match="over another request"):
            async for _ in slow:
                pass
        assert await world.all(3) == [0, 1, 2], "the next stream finds a new runner"

    within(test, timeout_s=1.5)


def test_closing_the_generator_ends_the_work(within: Callable[..., None], tmp_path: Path) -> None:
    async def test(world: World) -> None:
        mark = tmp_path / "closed"
        stream = world.count([10**9, str(mark)])
        await anext(stream)
        await stream.aclose()
        runner = await world.pool.slot(world.spec).ensure_ready()
        while runner.in_flight:
            await asyncio.sleep(0.01)
        assert mark.exists()

    within(test)


@pytest.mark.parametrize(("mark", "error"), [("crash", RunnerCrashedError), ("hang", RunnerTimeoutError)])
def test_a_death_after_the_first_piece_is_told_and_not_repeated(
    within: Callable[..., None], mark: str, error: type[Exception]
) -> None:
    async def test(world: World) -> None:
        seen = []
        with pytest.raises(error):
            async for number in world.count([10, mark]):
                seen.append(number)
        assert seen == [0, 1, 2, 3, 4]
        assert await world.all(3) == [0, 1, 2], "the next stream finds a new runner"
        with pytest.raises(error):
            await world.all([10, mark])
        with pytest.raises(error):
            await world.all([10, mark])
        with pytest.raises(PoisonInputError):
            await world.all([10, mark])

    within(test, timeout_s=1.5)


def test_a_stream_is_not_blamed_for_the_batch_beside_it(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async def read(begun: asyncio.Event) -> None:
            async for _ in world.count([10**9, "slow"]):
                begun.set()

        for n in range(3):
            begun = asyncio.Event()
            reading = asyncio.ensure_future(read(begun))
            await begun.wait()
            with pytest.raises(RunnerCrashedError):
                await world.pool.infer(world.spec, "emotion", f"!crash {n}", 10)
            with pytest.raises(RunnerCrashedError):
                await reading
        stream = world.count([10**9, "slow"])
        assert await anext(stream) == 0
        await stream.aclose()

    within(test)


def test_a_stream_that_kills_is_found_among_what_runs_beside_it(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        for n in range(3):
            other = world.count([40, "slow"])
            await anext(other)
            stream = asyncio.ensure_future(world.all([10, "crash"]))
            batches = [world.pool.infer(world.spec, "emotion", f"{n} {m}", 10) for m in range(6)]
            assert len(await asyncio.gather(*batches)) == 6
            with pytest.raises(RunnerCrashedError):
                await stream
            with pytest.raises(RunnerCrashedError):
                async for _ in other:
                    pass
            assert len(await world.all([40, "slow"])) == 40, "what was beside it is asked again, and answered"
        with pytest.raises(PoisonInputError):
            await world.all([10, "crash"])

    within(test, max_items=1, item_s=0.05)


def test_a_kill_from_outside_is_nobodys_fault(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        for _ in range(4):
            stream = world.count(10**9)
            await anext(stream)
            psutil.Process((await world.pool.slot(world.spec).ensure_ready()).pid).kill()
            with pytest.raises(RunnerCrashedError):
                async for _ in stream:
                    pass
        assert await world.all(3) == [0, 1, 2]

    within(test)


def test_a_death_before_the_first_piece_is_tried_again(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        slot = world.pool.slot(world.spec)
        (await slot.ensure_ready()).kill(None)
        assert await world.all(5) == list(range(5))

    within(test)


def test_more_streams_than_places_wait_and_too_many_are_refused(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        async def crowd() -> float | None:
            held = [world.count(10**9) for _ in range(4)]
            for stream in held:
                await anext(stream)
            waiting = [asyncio.ensure_future(world.all(2)) for _ in range(3)]
            while world.pool.slot(world.spec).waiting < 3:
                await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError) as caught:
                await world.all(1)
            waiting[0].cancel()
            for stream in held:
                await stream.aclose()
            assert await asyncio.gather(*waiting[1:]) == [[0, 1]] * 2
            return caught.value.retry_after_s

        assert await crowd() == 3 * 5.0 / 4, "none has been measured yet"
        for _ in range(20):
            await world.all(1)
        assert await crowd() == 1.0, "they take no time"
        streams = world.pool.slot(world.spec).streams
        assert streams.ended == 24 and streams.failed == 0

    within(test, settings={"queue_size": 3})


def test_a_model_has_time_to_spare_beside_one_stream_and_not_before_it_is_done_with_others(
    within: Callable[..., None],
) -> None:
    async def test(world: World) -> None:
        slot = world.pool.slot(world.spec)
        assert slot.spare, "whoever asks first has it loaded"
        held = [world.count(10**9) for _ in range(2)]
        await anext(held[0])
        assert slot.spare
        await anext(held[1])
        assert not slot.spare
        for stream in held:
            await stream.aclose()
        assert not slot.spare, "the runner has yet to be told"
        runner = await slot.ensure_ready()
        while runner.in_flight:
            assert slot.spare == (runner.in_flight < 2)
            await asyncio.sleep(0.001)
        assert slot.spare

    within(test)


def test_unloading_lets_streams_end_and_those_that_wait_find_the_model_again(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        stream = world.count(50)
        seen = [await anext(stream)]
        unloading = asyncio.ensure_future(world.pool.unload(world.spec.id))
        late = asyncio.ensure_future(world.all(4))
        seen += [number async for number in stream]
        await unloading
        assert seen == list(range(50)) and await late == [0, 1, 2, 3]

    within(test)


def test_at_the_end_those_that_wait_are_told(within: Callable[..., None]) -> None:
    async def test(world: World) -> None:
        held = [world.count(10**9) for _ in range(4)]
        for stream in held:
            await anext(stream)
        waiting = asyncio.ensure_future(world.all(2))
        while not world.pool.slot(world.spec).waiting:
            await asyncio.sleep(0.01)
        world.pool.give_up()
        with pytest.raises(ShuttingDownError):
            await waiting
        for stream in held:
            await stream.aclose()

    within(test)
