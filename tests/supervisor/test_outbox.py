"""Output that may block."""

import threading
import time

from sidecar.supervisor.outbox import Outbox

DEADLINE_S = 5.0


def test_a_stuck_sink_holds_nobody_up_and_gets_the_newest() -> None:
    entered, release = threading.Event(), threading.Event()
    got: list[int] = []

    def sink(item: int) -> None:
        entered.set()
        release.wait(DEADLINE_S)
        got.append(item)

    outbox = Outbox(sink, keep=2, failed=lambda error: None)
    outbox.put(0)
    assert entered.wait(DEADLINE_S)
    for item in range(1, 1000):
        outbox.put(item)
    release.set()
    outbox.close(DEADLINE_S)
    assert got == [0, 998, 999]


def test_an_error_is_told_once_and_later_items_are_tried() -> None:
    told: list[OSError] = []
    got: list[int] = []

    def sink(item: int) -> None:
        if item < 3:
            raise BrokenPipeError
        got.append(item)

    outbox = Outbox(sink, keep=10, failed=told.append)
    for item in range(5):
        outbox.put(item)
    outbox.close(DEADLINE_S)
    assert got == [3, 4]
    assert len(told) == 1


def test_the_last_item_is_tried_until_it_is_out() -> None:
    told: list[OSError] = []
    got: list[int] = []
    out = threading.Event()
    tries = iter(range(3))

    def sink(item: int) -> None:
        if next(tries, None) is not None:
            raise OSError("no space left")
        got.append(item)
        out.set()

    outbox = Outbox(sink, keep=1, failed=told.append, retry_s=0.01)
    outbox.put(7)
    assert out.wait(DEADLINE_S)
    outbox.close(DEADLINE_S)
    assert got == [7] and len(told) == 1


def test_a_newer_item_takes_the_place_of_one_that_failed() -> None:
    got: list[int] = []
    failed = threading.Event()
    out = threading.Event()

    def sink(item: int) -> None:
        if item == 1:
            raise OSError("no space left")
        got.append(item)
        out.set()

    outbox = Outbox(sink, keep=1, failed=lambda _: failed.set(), retry_s=3600)
    outbox.put(1)
    assert failed.wait(DEADLINE_S)
    outbox.put(2)
    assert out.wait(DEADLINE_S)
    outbox.close(DEADLINE_S)
    assert got == [2]


def test_close_does_not_wait_for_another_try() -> None:
    def sink(item: int) -> None:
        raise OSError("no space left")

    failed = threading.Event()
    outbox = Outbox(sink, keep=1, failed=lambda _: failed.set(), retry_s=3600)
    outbox.put(1)
    assert failed.wait(DEADLINE_S)
    started = time.monotonic()
    outbox.close(DEADLINE_S)
    assert time.monotonic() - started < DEADLINE_S / 2


def test_close_gives_up_on_a_stuck_sink() -> None:
    release = threading.Event()

    def sink(item: int) -> None:
        release.wait(DEADLINE_S)

    outbox = Outbox(sink, keep=1, failed=lambda error: None)
    outbox.put(1)
    outbox.close(0.05)
    release.set()
