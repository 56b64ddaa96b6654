"""What the run loop is told. Threads and signal handlers only put these; every decision is the loop's.

`launch` numbers the server process that an event speaks of, so that a late word about an earlier one is recognised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServerExited:
    """The server is reaped, the rest of its process tree is killed, and its output is read to the end."""

    launch: int
    returncode: int


@dataclass(frozen=True)
class StatusReported:
    """One JSON object that the server wrote on its stdout."""

    launch: int
    message: dict[str, Any]


@dataclass(frozen=True)
class Probed:
    """One hang probe ended; `detail` says why when it was not `alive`."""

    launch: int
    alive: bool
    detail: str = ""


@dataclass(frozen=True)
class HostGone:
    """The host app has ended: nothing may be left 2 s from now."""

    reason: str


@dataclass(frozen=True)
class StopRequested:
    """Somebody who is still there asked for an orderly end."""

    reason: str


@dataclass(frozen=True)
class Due:
    """The deadline of this name has passed."""

    deadline: str


Event = ServerExited | StatusReported | Probed | HostGone | StopRequested | Due
Put = Callable[[Event], None]
