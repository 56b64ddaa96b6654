"""A second start: it takes part in the instance that runs already instead of starting another."""

import queue
import time

from sidecar.errors import SidecarError
from sidecar.settings import Settings
from sidecar.supervisor import parent
from sidecar.supervisor.events import Event
from sidecar.supervisor.handshake import Handshake, HandshakeFile
from sidecar.supervisor.lock import InstanceLock
from sidecar.supervisor.publisher import write_event

HANDSHAKE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
MIRROR_POLL_S = 0.25


class InstanceBusyError(SidecarError):
    """Another supervisor holds the lock and does not say where it is."""

    code = "instance_busy"


def take_or_attach(settings: Settings, lock: InstanceLock) -> Handshake | None:
    """None: the lock is ours, start. Else the handshake of the instance that runs.

    One that just starts gets 10 s to publish it, one that is stopping 20 s to go. Raises InstanceBusyError.
    """
    file = HandshakeFile(settings.handshake_path)
    started = time.monotonic()
    while not lock.take():
        handshake = file.read_live()
        stopping = handshake is not None and handshake.phase in ("stopping", "failed")
        if handshake is not None and not stopping:
            return handshake
        if time.monotonic() - started > (STOP_TIMEOUT_S if stopping else HANDSHAKE_TIMEOUT_S):
            raise InstanceBusyError(
                f"another sidecar holds {settings.lock_path} but shows no usable {file.path.name}; end it, or point "
                "SIDECAR_HOME to another folder"
            )
        time.sleep(POLL_S)
    return None


def difference(settings: Settings, first: Handshake) -> str:
    """What this start asked for and the running instance does otherwise, or ""."""
    parts = []
    if settings.port not in (0, first.port):
        parts.append(f"port {first.port}")
    if (settings.auth == "on") != (first.token is not None):
        parts.append(f"auth {'off' if first.token is None else 'on'}")
    return " and ".join(parts)


def mirror(settings: Settings, first: Handshake, host_pid: int | None = None) -> int:
    """Repeat the first one's changes as NDJSON until it, our stdin or the host ends, or nobody reads.

    Returns the exit code.
    """
    file = HandshakeFile(settings.handshake_path)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    parent.watch_stdin(events.put)
    for pid in filter(None, (first.supervisor.pid, host_pid)):
        parent.watch_pid(pid, events.put)
    seen: str | None = None
    try:
        while True:
            ended = _wait(events)
            handshake = file.read()
            if handshake is not None and handshake.instance_id == first.instance_id and handshake.to_json() != seen:
                write_event(handshake)
                seen = handshake.to_json()
            if ended:
                return 0
    except OSError:  # whoever read our stdout is gone
        return 0


def _wait(events: "queue.SimpleQueue[Event]") -> bool:
    """Whether an event, which can only be somebody's end, came before the next look at the file."""
    try:
        events.get(timeout=MIRROR_POLL_S)
    except queue.Empty:
        return False
    return True
