"""What a process of ours arranges with Windows. Same interface as process_posix."""

import contextlib
import os
import signal

import psutil

ENVIRONMENT_PYTHON = "Scripts/python.exe"
"""A virtual environment's interpreter, relative to its folder."""


def die_with_parent() -> None:
    """Nothing to do: the supervisor's kill-on-close Job holds the whole tree."""


def end_tree(pid: int) -> None:
    """End a child and its children: there is no signal that it could pass on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def leave_ending_to_parent() -> None:
    """Ignore Ctrl-C, which reaches every process of a console."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_file_limit() -> None:
    """Nothing to do: sockets are no C descriptors here."""


def limit_memory(limit_bytes: int) -> None:
    """Nothing to do: the server watches how much its children take, and ends one that takes too much."""


def readable_by_child(descriptor: int) -> str | None:
    """None: a handle has no path."""
    return None


def yield_to_host() -> None:
    """Lower CPU priority than the host app."""
    psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)  # type: ignore[attr-defined,unused-ignore]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity() or []) or os.cpu_count() or 1
