import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sidecar.catalogue.catalogue import BatchLimits
from sidecar.errors import InferenceError, OverloadedError, PoisonInputError, RunnerCrashedError, SidecarError
from sidecar.inference.batcher import Batcher, Job, NotStartedError, Priority, RunnerKilledError, cut


class Runner:
    """Records batches; `misbehave(items)` may raise; each batch waits for `gate` when there is one."""

    def __init__(self, misbehave: Callable[[list[str]], None] = lambda items: None, gated: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()
        self._misbehave = misbehave

    async def __call__(self, capability: str, items: list[str]) -> list[str]:
        self.batches.append(items)
        await self.gate.wait()
        self._misbehave(items)
        return [item.upper() for item in items]


def make(runner: Runner, queue_size: int = 100, **limits: Any) -> Batcher:
    return Batcher(runner, BatchLimits(**limits), queue_size, asyncio.get_running_loop().time)


def submit(batcher: Batcher, *items: str, priority: Priority = Priority.INTERACTIVE) -> list["asyncio.Future[Any]"]:
    return [batcher.submit("emotion", item, len(item), priority) for item in items]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 10)

    asyncio.run(bounded())


def job(
    cost: int, at: float = 0.0, priority: Priority = Priority.INTERACTIVE, crashes: int = 0, name: str = "e"
) -> Job:
    loop = asyncio.new_event_loop()
    try:
        return Job(name, f"{cost}@{at}", cost, priority, at, loop.create_future(), crashes)
    finally:
        loop.close()


def cut_costs(queue: list[Job], now: float = 0.0, **limits: Any) -> list[int]:
    return [each.cost for each in cut(queue, BatchLimits(**limits), now)]


def test_cut_takes_everything_that_fits() -> None:
    assert cut_costs([job(5, 1), job(3, 2), job(9, 3)]) == [3, 5, 9]


def test_cut_keeps_the_padded_token_budget() -> None:
    queue = [job(10, 0), *(job(10, 1 + i) for i in range(9)), job(100, 20)]
    costs = cut_costs(queue, max_padded_tokens=60)
    assert costs == [10] * 6


def test_cut_prefers_neighbours_in_length_to_the_oldest() -> None:
    queue = [job(50, 0), job(48, 5), job(52, 6), job(1, 1), job(200, 2)]
    assert cut_costs(queue, max_padded_tokens=110) == [48, 50]


def test_cut_keeps_padding_within_its_share() -> None:
    queue = [job(10, 0), job(11, 1), job(12, 2), job(30, 3), job(2, 4)]
    assert cut_costs(queue, max_padding=0.1) == [10, 11, 12]
    assert cut_costs(queue, max_padding=0.0) == [10]
    assert cut_costs([job(7, 0), job(7, 1)], max_padding=0.0) == [7, 7]
    assert len(cut_costs(queue, max_padding=1.0)) == 5


def test_cut_always_holds_the_oldest_even_over_budget() -> None:
    assert cut_costs([job(500, 0), job(1, 1)], max_padded_tokens=100) == [500]


def test_cut_takes_interactive_before_bulk_until_bulk_has_waited_long() -> None:
    queue = [job(1, 0, Priority.BULK), job(2, 1)]
    assert cut_costs(queue, now=1.5, max_items=1) == [2]
    assert cut_costs(queue, now=2.5, max_items=1) == [1]


def test_cut_never_mixes_capabilities() -> None:
    assert cut_costs([job(1, 0, name="a"), job(2, 1, name="b"), job(3, 2, name="a")]) == [1, 3]


def test_cut_sends_a_job_alone_whose_runner_died() -> None:
    assert cut_costs([job(1, 0, crashes=1), job(2, 1)]) == [1]
    assert cut_costs([job(1, 1, crashes=1), job(2, 0), job(3, 2)]) == [2, 3]


def test_an_idle_runner_starts_at_once_and_the_rest_gathers() -> None:
    async def test() -> None:
        runner = Runner(gated=True)
        batcher = make(runner)
        answers = submit(batcher, "a", "b", "c", "d")
        await asyncio.sleep(0)
        # Two flights: one that runs, one that hides the pipe; the others wait for the next batch.
        assert runner.batches == [["a"], ["b"]] and len(batcher) == 2
        runner.gate.set()
        assert await asyncio.gather(*answers) == ["A", "B", "C", "D"]
        assert runner.batches[2:] == [["c", "d"]]
        assert not batcher.busy

    run(test)


def test_a_failing_item_fails_alone() -> None:
    def refuse(items: list[str]) -> None:
        if "bad" in items:
            raise InferenceError("no")

    async def test() -> None:
        runner = Runner(refuse, gated=True)
        batcher = make(runner)
        names = ["x", "y", *(f"n{i}" for i in range(7)), "bad", *(f"m{i}" for i in range(6))]
        answers = submit(batcher, *names)
        await asyncio.sleep(0)
        runner.gate.set()
        results = await asyncio.gather(*answers, return_exceptions=True)
        for name, result in zip(names, results, strict=True):
            assert isinstance(result, InferenceError) if name == "bad" else result == name.upper()

    run(test)


def test_a_crash_is_retried_once_and_alone() -> None:
    crashes = 1

    def crash_once(items: list[str]) -> None:
        nonlocal crashes
        if len(items) > 1 and crashes:
            crashes -= 1
            raise RunnerCrashedError("died")

    async def test() -> None:
        runner = Runner(crash_once, gated=True)
        batcher = make(runner)
        answers = submit(batcher, "a", "b", "c", "d", "e")
        await asyncio.sleep(0)
        runner.gate.set()
        assert await asyncio.gather(*answers) == ["A", "B", "C", "D", "E"]
        assert sorted(runner.batches[3:]) == [["c"], ["d"], ["e"]]
        assert batcher.stats.retried == 3

    run(test)


def test_an_input_that_kills_the_runner_fails_alone_and_becomes_poison() -> None:
    batcher: Batcher

    def poison(items: list[str]) -> None:
        if "venom" in items:
            batcher.poison.accuse(("emotion", item) for item in items)
            raise RunnerCrashedError("died")

    async def test() -> None:
        nonlocal batcher
        runner = Runner(poison)
        batcher = make(runner)
        results = await asyncio.gather(*submit(batcher, "a", "venom", "b", "c"), return_exceptions=True)
        assert [type(result) for result in results] == [str, RunnerCrashedError, str, str]
        with pytest.raises(RunnerCrashedError):  # two crashes so far, this is the third and fourth
            await submit(batcher, "venom")[0]
        count = len(runner.batches)
        with pytest.raises(PoisonInputError):
            submit(batcher, "venom")
        assert len(runner.batches) == count
        assert await submit(batcher, "fine")[0] == "FINE"

    run(test)


def test_a_batch_that_never_began_is_not_blamed() -> None:
    deaths = 5

    def never_began(items: list[str]) -> None:
        nonlocal deaths
        if deaths:
            deaths -= 1
            raise NotStartedError

    async def test() -> None:
        batcher = make(Runner(never_began))
        assert await submit(batcher, "a")[0] == "A"
        assert batcher.stats.retried == 0

    run(test)


def test_a_full_queue_is_refused_with_a_time_computed_from_service() -> None:
    async def test() -> None:
        runner = Runner(gated=True)
        batcher = make(runner, queue_size=4)
        answers = submit(batcher, *"abcdef")
        batcher.stats.item_s = 2.0
        with pytest.raises(OverloadedError) as caught:
            submit(batcher, "g")
        assert caught.value.retry_after_s == pytest.approx(8.0)
        runner.gate.set()
        assert await asyncio.gather(*answers) == list("ABCDEF")

    run(test)


def test_clients_that_left_are_not_computed() -> None:
    async def test() -> None:
        runner = Runner(gated=True)
        batcher = make(runner)
        answers = submit(batcher, *"abcdef")
        await asyncio.sleep(0)
        for answer in answers[2:5]:
            answer.cancel()
        await asyncio.sleep(0)
        assert len(batcher) == 1 and batcher.stats.dropped == 3
        runner.gate.set()
        assert await answers[5] == "F"
        assert runner.batches == [["a"], ["b"], ["f"]]

    run(test)


def test_fail_all_ends_who_waits() -> None:
    async def test() -> None:
        batcher = make(Runner(gated=True))
        answers = submit(batcher, *"abcd")
        batcher.fail_all(SidecarError("over"))
        with pytest.raises(SidecarError, match="over"):
            await answers[3]

    run(test)


def test_service_time_counts_overlapping_flights_once() -> None:
    now = 0.0

    async def slow(capability: str, items: list[str]) -> list[str]:
        await lock.acquire()
        nonlocal now
        now += 1.0
        lock.release()
        return items

    async def test() -> None:
        batcher = Batcher(slow, BatchLimits(max_items=1), 1000, lambda: now)
        await asyncio.gather(*submit(batcher, *(f"t{i}" for i in range(300))))
        assert batcher.stats.item_s == pytest.approx(1.0, rel=0.05)

    lock = asyncio.Lock()
    run(test)


def test_service_time_follows_what_is_measured() -> None:
    async def test() -> None:
        batcher = make(Runner())
        for _ in range(200):
            batcher.stats.served(4, 0.4)
        assert batcher.stats.item_s == pytest.approx(0.1, rel=0.01)
        assert batcher.stats.sizes == {4: 200}

    run(test)


def test_crashes_count_as_poison_only_in_a_row() -> None:
    batcher: Batcher
    crash = iter([True, False] * 20)

    def now_and_then(items: list[str]) -> None:
        if next(crash):
            batcher.poison.accuse([("emotion", items[0])])
            raise RunnerCrashedError("died")

    async def test() -> None:
        nonlocal batcher
        batcher = make(Runner(now_and_then))
        for _ in range(10):
            assert await submit(batcher, "ok, see you tomorrow")[0] == "OK, SEE YOU TOMORROW"

    run(test)


def test_a_runner_killed_from_outside_is_not_blamed_on_its_input() -> None:
    def killed(items: list[str]) -> None:
        raise RunnerKilledError("killed by SIGKILL")

    async def test() -> None:
        batcher = make(Runner(killed))
        for _ in range(5):
            with pytest.raises(RunnerKilledError):
                await submit(batcher, "innocent")[0]

    run(test)


def test_a_bug_in_a_flight_leaves_nobody_waiting() -> None:
    async def wrong_count(capability: str, items: list[str]) -> list[str]:
        return items[1:]

    async def raises(capability: str, items: list[str]) -> list[str]:
        raise KeyError("bug")

    async def test() -> None:
        for broken in (wrong_count, raises):
            batcher = Batcher(broken, BatchLimits(), 100, asyncio.get_running_loop().time)
            results = await asyncio.gather(*submit(batcher, *"abcde"), return_exceptions=True)
            assert all(isinstance(result, InferenceError) for result in results)
            assert not batcher.busy

    run(test)


def test_the_suspect_of_a_crash_runs_with_nothing_beside_it() -> None:
    running: set[str] = set()
    company: list[set[str]] = []
    crashed = False

    async def parallel(capability: str, items: list[str]) -> list[str]:
        nonlocal crashed
        running.update(items)
        company.append(set(running))
        await asyncio.sleep(0.001)
        running.difference_update(items)
        if "suspect" in items and not crashed:
            crashed = True
            raise RunnerCrashedError("died")
        return items

    async def test() -> None:
        batcher = Batcher(parallel, BatchLimits(max_items=1), 100, asyncio.get_running_loop().time)
        batcher.set_parallel(3)
        await asyncio.gather(*submit(batcher, "a", "suspect", *"bcdefgh"))
        assert max(len(each) for each in company) == 4, "three at once, and one to hide the pipe"
        assert [each for each in company if "suspect" in each][-1] == {"suspect"}

    run(test)
