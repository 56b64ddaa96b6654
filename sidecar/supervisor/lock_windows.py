"""File lock by the C runtime's _locking."""

import importlib
from typing import Any


def try_lock(fd: int, msvcrt: Any = None) -> bool:
    """Take the exclusive lock without waiting; False when another process holds it. Raises OSError when locks fail."""
    msvcrt = msvcrt or importlib.import_module("msvcrt")
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True
