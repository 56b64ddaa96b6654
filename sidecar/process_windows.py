"""What a process of ours arranges with Windows. Same interface as process_posix."""

import os
import signal

import psutil


def die_with_parent() -> None:
    """Nothing to do: the supervisor's kill-on-close Job holds the whole tree."""


def leave_ending_to_parent() -> None:
    """Ignore Ctrl-C, which reaches every process of a console."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_file_limit() -> None:
    """Nothing to do: sockets are no C descriptors here."""


def yield_to_host() -> None:
    """Lower CPU priority than the host app."""
    psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)  # type: ignore[attr-defined,unused-ignore]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity() or []) or os.cpu_count() or 1
