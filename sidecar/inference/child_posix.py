"""A child process on the event loop of a POSIX system. Same interface as child_windows.

Not the loop's own `subprocess_exec`: uvloop forks. To copy the page tables of a server of 120 MiB holds its loop for
7 ms, after which every page that it writes to is copied, too. `subprocess` uses vfork where it can: 0.6 ms, no copies.
"""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any


async def spawn(
    make_protocol: Callable[[], asyncio.SubprocessProtocol], argv: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Start `argv` with pipes as its stdin, stdout and stderr. Raises OSError if that cannot be done."""
    pipe = subprocess.PIPE
    # On the loop's thread: a child may have asked to die with the thread that spawned it.
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0)
    child = _Child(process, make_protocol())
    connecting = asyncio.ensure_future(child.connect())
    try:
        await asyncio.shield(connecting)
    except BaseException:
        await asyncio.wait([connecting])  # a pipe that is half connected cannot be closed
        child.close()
        raise
    finally:
        child.watch()


class _Child(asyncio.SubprocessTransport):
    """The pipes are transports of the loop; a thread waits for the exit, as asyncio's own child watcher does."""

    def __init__(self, process: subprocess.Popen[bytes], protocol: asyncio.SubprocessProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._protocol = protocol
        self._pipes: dict[int, asyncio.BaseTransport] = {}
        self._open = {0, 1, 2}
        self._exited = False

    async def connect(self) -> None:
        process = self._process
        self._pipes[0], _ = await self._loop.connect_write_pipe(lambda: _Pipe(self, 0), process.stdin)
        # First of all: what is read may already be the end.
        self._protocol.connection_made(self)
        self._pipes[1], _ = await self._loop.connect_read_pipe(lambda: _Pipe(self, 1), process.stdout)
        self._pipes[2], _ = await self._loop.connect_read_pipe(lambda: _Pipe(self, 2), process.stderr)

    def watch(self) -> None:
        """Have the exit told. The thread ends with the process."""
        threading.Thread(target=self._wait, name=f"exit-of-{self.get_pid()}", daemon=True).start()

    def _wait(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            self._loop.call_soon_threadsafe(self._on_exit)

    def _on_exit(self) -> None:
        self._exited = True
        self._protocol.process_exited()
        if stdin := self._pipes.get(0):
            stdin.close()
        self._end()

    def received(self, fd: int, data: bytes) -> None:
        self._protocol.pipe_data_received(fd, data)

    def lost(self, fd: int, error: Exception | None) -> None:
        self._open.discard(fd)
        self._protocol.pipe_connection_lost(fd, error)
        self._end()

    def _end(self) -> None:
        if self._exited and not self._open:
            self._protocol.connection_lost(None)

    # asyncio.SubprocessTransport

    def get_pid(self) -> int:
        return self._process.pid

    def get_returncode(self) -> int | None:
        return self._process.returncode

    def get_pipe_transport(self, fd: int) -> Any:
        return self._pipes.get(fd)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        self.kill()


class _Pipe(asyncio.Protocol):
    def __init__(self, child: _Child, fd: int) -> None:
        self._child = child
        self._fd = fd

    def data_received(self, data: bytes) -> None:
        self._child.received(self._fd, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._child.lost(self._fd, exc)
