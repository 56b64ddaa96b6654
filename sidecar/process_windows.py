"""What a process of ours arranges with Windows. Same interface as process_posix."""

import os

import psutil


def die_with_parent() -> None:
    """Nothing to do: the supervisor's kill-on-close Job holds the whole tree."""


def yield_to_host() -> None:
    """Lower CPU priority than the host app."""
    psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)  # type: ignore[attr-defined,unused-ignore]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity() or []) or os.cpu_count() or 1
