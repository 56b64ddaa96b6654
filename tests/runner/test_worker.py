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
from tests.product import ROOT, alive, until, write_fake


class Worker:
    """One runner of a fake model."""

    def __init__(self, folder: Path, model_id: str = "fake") -> None:
        env = {**os.environ, "SIDECAR_CATALOGUE": str(folder), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "run", model_id],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._decoder = wire.Decoder()
        self._messages: list[wire.Message] = []

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


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    running = []

    def start(model_id: str = "fake", **options: Any) -> Worker:
        running.append(Worker(write_fake(tmp_path, **options), model_id))
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
    one = worker(item_s=0.3)
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
    until(lambda: not alive(process), "the runner is gone", 2.0)


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
    unknown = worker(model_id="nobody").next()
    assert (unknown.id, unknown.code) == (0, "model_not_found")
