"""A server's process tree on POSIX: its process group."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import threading
from typing import Any

STOP_SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
HANGUP_SIGNALS: tuple[int, ...] = (signal.SIGHUP,)
MAX_WAIT_S = 86_400.0  # a signal interrupts the queue's wait, so that it may be long


class Tree:
    """One server and all it starts.

    The server leads a group of its own: a Ctrl-C at the terminal reaches only the supervisor, and killpg reaches the
    runners too.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._fd = listener.fileno()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def spawn_options(self) -> dict[str, Any]:
        """Keyword arguments of Popen."""
        return {"start_new_session": True, "pass_fds": (self._fd,)}

    def environment(self) -> dict[str, str]:
        """Variables by which the server finds the listening socket."""
        return {"SIDECAR_LAUNCH_SOCKET_FD": str(self._fd)}

    def adopt(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Take charge of the spawned server. Returns the first control message, if it needs one."""
        self._process = process
        return None

    def wait(self) -> int:
        """Wait for the server, kill whatever it left in its group, reap it; returns Popen's returncode."""
        process = self._process
        assert process is not None
        if hasattr(os, "waitid"):
            # Not reaped yet, a dead leader still holds the group's number: the sweep cannot hit a stranger.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                return self._sweep(process)
        process.wait()  # macOS before Python 3.13 has no waitid
        with self._lock:
            return self._sweep(process)

    def _sweep(self, process: subprocess.Popen[bytes]) -> int:
        self._signal(signal.SIGKILL)
        self._process = None
        return process.wait()

    def terminate(self) -> None:
        """Ask the whole tree to end."""
        with self._lock:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole tree."""
        with self._lock:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            # PermissionError: macOS, when only zombies are left in the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def prepare_listener(listener: socket.socket) -> None:
    """Options to set before bind: a port in TIME_WAIT may be taken again."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def holds_private(fd: int) -> bool:
    """Whether the file system kept the mode 0600 of this file (FAT and some network mounts do not)."""
    return stat.S_IMODE(os.fstat(fd).st_mode) & 0o077 == 0


def exit_evidence(returncode: int) -> tuple[int | None, str | None]:
    """(exit code, None) or (None, signal name) of a Popen returncode."""
    if returncode >= 0:
        return returncode, None
    try:
        return None, signal.Signals(-returncode).name
    except ValueError:  # real-time signals have no name
        return None, f"SIG{-returncode}"
