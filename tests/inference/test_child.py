"""Children on the event loop: their output, their exit, and what is left of those whose start is given up."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import psutil
import pytest

from sidecar.inference.child import spawn

uvloop = pytest.importorskip("uvloop")

Run = Callable[[Coroutine[Any, Any, None]], None]


class Heard(asyncio.SubprocessProtocol):
    """Writes down what it is told, in order."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.output = {1: b"", 2: b""}
        self.told: list[str] = []
        self.exited = asyncio.Event()
        self.over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.told.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output[fd] += data

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.told.append(f"lost {fd}")

    def process_exited(self) -> None:
        self.told.append("exited")
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("over")
        self.over.set()


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda test: request.param(asyncio.wait_for(test, 20))


async def python(code: str) -> Heard:
    heard = Heard()
    await spawn(lambda: heard, [sys.executable, "-c", code], {"MARK": "ours"})
    return heard


def test_what_it_reads_writes_and_exits_with(run: Run) -> None:
    code = "import os, sys; sys.stderr.write(os.environ['MARK']); print(sys.stdin.read()[::-1], end=''); sys.exit(3)"

    async def test() -> None:
        heard = await python(code)
        assert psutil.pid_exists(heard.transport.get_pid())
        assert heard.transport.get_returncode() is None
        heard.transport.get_pipe_transport(0).write(b"abc" * 100_000)
        heard.transport.get_pipe_transport(0).close()
        await heard.over.wait()
        assert heard.output == {1: b"cba" * 100_000, 2: b"ours"}
        assert heard.transport.get_returncode() == 3
        assert heard.told[0] == "made" and heard.told[-1] == "over"
        assert sorted(heard.told[1:-1]) == ["exited", "lost 0", "lost 1", "lost 2"]

    run(test())


def test_one_that_is_killed(run: Run) -> None:
    async def test() -> None:
        heard = await python("import time; time.sleep(60)")
        heard.transport.kill()
        await heard.over.wait()
        assert heard.transport.get_returncode() == -signal.SIGKILL
        heard.transport.kill()  # of one that is gone: nothing

    run(test())


def test_the_exit_is_told_though_a_grandchild_holds_the_pipes(run: Run) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0).pid)"

    async def test() -> None:
        heard = await python(code)
        await heard.exited.wait()
        assert "over" not in heard.told
        # Its stdin was ours as well.
        heard.transport.close()
        await heard.over.wait()

    run(test())


def test_a_program_that_is_not_there(run: Run) -> None:
    async def test() -> None:
        with pytest.raises(FileNotFoundError):
            await spawn(Heard, ["/no/such/program"], {})

    run(test())


def test_a_start_that_is_given_up_leaves_no_process(run: Run) -> None:
    async def test() -> None:
        before = set(psutil.Process().children())
        start = asyncio.ensure_future(python("import time; time.sleep(60)"))
        await asyncio.sleep(0)  # now it has the process, and waits for its pipes
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        for process in set(psutil.Process().children()) - before:
            await asyncio.to_thread(process.wait, 10)

    run(test())
