"""Noticing that the host app has died, however it died."""

import contextlib
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable

from sidecar.supervisor.events import HostGone, Put
from sidecar.supervisor.handshake import Process

POLL_S = 0.5


def is_host_pipe(fd: int) -> bool:
    """Whether this descriptor can be a host's end: a pipe or socket, not a terminal, file or /dev/null."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def watch_stdin(put: Put, fd: int = 0) -> bool:
    """Report the end of the host's pipe. Returns False, and watches nothing, if stdin is no pipe."""
    if not is_host_pipe(fd):
        return False
    _start(lambda: _until_eof(fd), put, "the host closed our stdin", "stdin")
    return True


def watch_pid(pid: int, put: Put) -> None:
    """Report the end of process `pid`. Its start time is taken now: the same pid used again is another process."""
    host = Process.of(pid)
    if host is None:
        put(HostGone(f"process {pid} is gone already"))
    else:
        _start(lambda: _until_process_ends(host), put, f"process {pid} ended", "watch-pid")


def _start(wait: Callable[[], None], put: Put, reason: str, name: str) -> None:
    def run() -> None:
        wait()
        put(HostGone(reason))

    threading.Thread(target=run, daemon=True, name=name).start()


def _until_eof(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass  # nothing is asked for on this pipe; its end is the message
    except OSError:  # a reset socket, a pipe broken on Windows
        pass


def _until_process_ends(host: Process) -> None:
    pidfd = None
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # an old libc or kernel, a sandbox, or gone by now
            pidfd = os.pidfd_open(host.pid)
    try:
        if not host.is_alive():  # the pid may have changed hands before we opened it
            return
        if sys.platform == "win32" or pidfd is None:
            while host.is_alive():
                time.sleep(POLL_S)
        else:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
    finally:
        if pidfd is not None:
            os.close(pidfd)
