"""The runner process, spoken to over its pipes as the server does."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidecar import wire
from sidecar.catalogue.catalogue import read_spec
from tests.product import ROOT, alive, until, write_fake

STREAMING = ROOT / "tests" / "fixtures" / "streaming_runner.py"


class Worker:
    """One runner of a fake model."""

    def __init__(self, spec: dict[str, Any], threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(STREAMING), "run", spec["id"]],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._decoder = wire.Decoder()
        self._messages: list[wire.Message] = []
        self.send(wire.Load(spec, threads))

    def send(self, *messages: wire.Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(map(wire.encode, messages)))
        self.process.stdin.flush()

    def next(self) -> Any:
        assert self.process.stdout is not None
        while not self._messages:
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, self.process.communicate()[1].decode()
            self._messages += self._decoder.feed(data)
        return self._messages.pop(0)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=[0, 1], ids=["own threads", "threads in turns"])
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Worker]]:
    """A model with the threads of all cores is called by one thread only; one with a single thread, by several."""
    running = []

    def start(spec: dict[str, Any] | None = None, **options: Any) -> Worker:
        fake = read_spec(write_fake(tmp_path, **options) / "fake.toml").model_dump(mode="json")
        running.append(Worker(spec or fake, request.param))
        return running[-1]

    yield start
    for each in running:
        each.close()


def test_ready_then_answers_in_order(worker: Callable[..., Worker]) -> None:
    one = worker()
    ready = one.next()
    assert isinstance(ready, wire.Ready) and ready.device == "cpu" and ready.load_ms >= 0
    one.send(wire.Infer(1, "emotion", ["a", "bb"]), wire.Infer(2, "emotion", ["ccc"]))
    assert [(answer.id, len(answer.outputs)) for answer in (one.next(), one.next())] == [(1, 2), (2, 1)]


def test_a_raising_model_becomes_an_error_value(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    one.send(wire.Infer(1, "emotion", ["!fail"]), wire.Infer(2, "emotion", ["!oom"]), wire.Infer(3, "none", ["x"]))
    codes = [(answer.id, answer.code) for answer in (one.next(), one.next(), one.next())]
    assert codes == [(1, "inference_failed"), (2, "out_of_memory"), (3, "inference_failed")]
    one.send(wire.Infer(4, "emotion", ["fine"]))
    assert isinstance(one.next(), wire.Result)


def test_a_cancelled_batch_is_not_computed(worker: Callable[..., Worker]) -> None:
    one = worker(item_s=1.0)  # all three are in one reading
    one.next()
    one.send(wire.Infer(1, "emotion", ["slow"]), wire.Infer(2, "emotion", ["!crash"]), wire.Cancel(2))
    assert one.next().id == 1
    assert one.next().code == "cancelled"


def test_prints_reach_stderr_and_never_the_frames(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    one.send(wire.Infer(1, "emotion", ["!print"]))
    assert one.next().id == 1
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.stdin = None
    assert b"raw rubbish on descriptor 1" in one.process.communicate(timeout=10)[1]


@pytest.mark.parametrize("text", ["idle", "!hang"])
def test_end_of_stdin_is_the_end(worker: Callable[..., Worker], text: str) -> None:
    one = worker()
    one.next()
    if text == "!hang":
        one.send(wire.Infer(1, "emotion", [text]))
    process = psutil.Process(one.process.pid)
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.stdin = None
    until(lambda: not alive(process), "the runner is gone", 10.0)


def test_rubbish_on_stdin_is_the_end_too(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    assert one.process.stdin is not None
    one.process.stdin.write(b"\xff\xff\xff\xff rubbish")
    one.process.stdin.flush()
    assert one.process.wait(10) == 1


def test_stop_signals_are_left_to_the_parent(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    one.process.terminate()
    one.send(wire.Infer(1, "emotion", ["still here"]))
    assert one.next().id == 1


def test_a_load_that_fails_is_told(worker: Callable[..., Worker]) -> None:
    error = worker(load="fail").next()
    assert (error.id, error.code) == (0, "model_load_failed") and "told to fail" in error.message


def test_what_is_no_model_is_told(worker: Callable[..., Worker]) -> None:
    error = worker(spec={"id": "nobody"}).next()
    assert (error.id, error.code) == (0, "model_load_failed") and "title" in error.message


def test_end_of_stdin_ends_a_load_too(worker: Callable[..., Worker]) -> None:
    one = worker(load="hang")
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.stdin = None
    assert one.process.wait(10) == 0


def _chunks(one: Worker, until_id: int) -> list[tuple[int, Any]]:
    """Chunks until the end of stream `until_id`."""
    seen = []
    while not isinstance(message := one.next(), wire.Result | wire.Error) or message.id != until_id:
        if isinstance(message, wire.Chunk):
            seen.append((message.id, message.output))
    return seen


def test_streams_advance_side_by_side(worker: Callable[..., Worker]) -> None:
    one = worker(more="threads = 1")
    one.next()
    one.send(wire.Infer(1, "count", [10**9], credit=10**9), wire.Infer(2, "count", [20], credit=100))
    order = _chunks(one, 2)
    assert [number for stream, number in order if stream == 2] == list(range(20))
    one.send(wire.Cancel(1))


def test_a_stream_without_credit_waits_and_costs_nobody(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    one.send(wire.Infer(1, "count", [100], credit=3))
    assert [one.next().output for _ in range(3)] == [0, 1, 2]
    one.send(wire.Infer(2, "emotion", ["meanwhile"]))
    assert one.next().id == 2, "a chunk came that nobody had given credit for"
    one.send(wire.Credit(1, 98))
    assert [number for _, number in _chunks(one, 1)] == list(range(3, 100))


@pytest.mark.parametrize("credit", [2, 10**6])
def test_a_cancelled_stream_ends_and_gives_back_what_it_holds(
    worker: Callable[..., Worker], credit: int, tmp_path: Path
) -> None:
    one = worker()
    one.next()
    closed = tmp_path / "closed"
    one.send(wire.Infer(1, "count", [[10**9, str(closed)]], credit=credit))
    one.next(), one.next()
    one.send(wire.Cancel(1))
    while not isinstance(message := one.next(), wire.Error):
        pass
    assert (message.id, message.code) == (1, "cancelled")
    assert closed.exists()


def test_a_long_piece_can_be_ended_in_its_middle_and_holds_nobody_up(
    worker: Callable[..., Worker], tmp_path: Path
) -> None:
    one = worker()
    one.next()
    closed = tmp_path / "closed"
    one.send(wire.Infer(1, "count", [[0, str(closed)]], credit=4), wire.Infer(2, "emotion", ["meanwhile"]))
    assert one.next().id == 2, "answered between two steps, of which none is sent"
    one.send(wire.Cancel(1))
    assert (ended := one.next()).id == 1 and ended.code == "cancelled"
    assert closed.exists()


def test_a_stream_that_raises_ends_with_the_error(worker: Callable[..., Worker]) -> None:
    one = worker()
    one.next()
    one.send(wire.Infer(1, "count", [-1], credit=4))
    error = one.next()
    assert (error.id, error.code) == (1, "inference_failed") and "-1" in error.message


def test_every_batch_is_answered_once_whichever_thread_took_it(worker: Callable[..., Worker]) -> None:
    one = worker(more="threads = 1")
    one.next()
    count = 3000
    for first in range(1, count, 100):
        one.send(*(wire.Infer(number, "emotion", ["x"]) for number in range(first, first + 100)))
        one.send(*(wire.Cancel(number) for number in range(first, first + 100, 7)))
    answers = [one.next() for _ in range(count)]
    assert sorted(answer.id for answer in answers) == list(range(1, count + 1))
    assert all(isinstance(answer, wire.Result) or answer.code == "cancelled" for answer in answers)
    # And while one computes, another still reads: the end of the pipe is noticed.
    one.send(wire.Infer(count + 1, "emotion", ["!hang"]), wire.Cancel(count + 1))
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.process.stdin = None
    assert one.process.wait(10) == 0
