"""File lock by flock(2)."""

import fcntl


def try_lock(fd: int) -> bool:
    """Take the exclusive lock without waiting; False when another process holds it. Raises OSError when locks fail."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
