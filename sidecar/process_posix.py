"""What a process of ours arranges with a POSIX system. Same interface as process_windows."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

ENVIRONMENT_PYTHON = "bin/python"
"""A virtual environment's interpreter, relative to its folder."""

_PR_SET_PDEATHSIG = 1
_NICE = 5
_FILES = 65536


def die_with_parent() -> None:
    """Have the kernel kill us when our parent dies: a bonus to stdin EOF, for a process that hangs holding the GIL.

    Linux only, and tied to the *thread* that spawned us, which in supervisor and server is the main one.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def end_tree(pid: int) -> None:
    """Ask a child that knows how to end its own children to end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def leave_ending_to_parent() -> None:
    """Ignore the signals that a whole process group gets when it is to stop: the server lets requests finish first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_file_limit() -> None:
    """Many connections need many descriptors; apps started from a macOS desktop begin with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def limit_memory(limit_bytes: int) -> None:
    """Have allocations fail beyond this, so that they fail one request and not the computer.

    Private memory, not address space, of which allocators and thread stacks reserve gigabytes. macOS ignores it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit_bytes if hard == resource.RLIM_INFINITY else min(hard, limit_bytes)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def readable_by_child(descriptor: int) -> str | None:
    """A path by which a child can open this very file, whatever its name leads to by then; None where there is none."""
    return f"/proc/{os.getpid()}/fd/{descriptor}" if sys.platform == "linux" else None


def yield_to_host() -> None:
    """Lower CPU priority than the host app, and the first to go when the machine runs out of memory."""
    os.nice(_NICE)
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            print("oom_score_adj cannot be set here", file=sys.stderr)


def usable_cores() -> int:
    """Cores that this process may use: affinity and cgroup quota, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
    return cores
