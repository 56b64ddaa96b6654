"""The instance that is examined: the one that runs, else one of our own for as long as it takes."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.errors import SidecarError
from sidecar.settings import Settings, role_command
from sidecar.supervisor.handshake import Handshake, HandshakeFile
from sidecar.supervisor.lock import InstanceLock
from sidecar.supervisor.probe import Endpoint

READY_S = 120.0
STOP_S = 20.0
HEALTH_S = 5.0
POLL_S = 0.1
TURN_S = 300.0
USABLE = ("ready", "degraded")


class NoInstanceError(SidecarError):
    """There is nothing to examine: none runs, and none could be started."""

    code = "no_instance"


@contextmanager
def examined(settings: Settings) -> Iterator[tuple[Handshake, bool]]:
    """(handshake, whether it was started for this). Raises NoInstanceError with the evidence."""
    file = HandshakeFile(settings.handshake_path)
    with _alone(settings):
        if file.read_live() is not None:
            yield _answering(file, lambda: file.read_live() is not None), False
            return
        with _started(settings) as process:
            # It ends at once where somebody else's has come up meanwhile, which is then the one to examine.
            yield _answering(file, lambda: process.poll() is None or file.read_live() is not None), True


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One doctor at a time: what one has started would end under the other, and figures of both would be wrong."""
    lock = InstanceLock(settings.run_dir / "doctor.lock")
    deadline = time.monotonic() + TURN_S
    try:
        if not lock.take():
            print("ml-sidecar: another doctor is at work here; waiting for it", file=sys.stderr, flush=True)
            while not lock.take():
                if time.monotonic() > deadline:
                    raise NoInstanceError(f"another doctor has been at work here for {TURN_S:g} s")
                time.sleep(POLL_S)
        yield
    finally:
        lock.release()


@contextmanager
def _started(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    log = settings.log_dir / "doctor.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            role_command("supervise"),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=settings.as_environment(),
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the order to end
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answering(file: HandshakeFile, alive: Callable[[], bool]) -> Handshake:
    deadline = time.monotonic() + READY_S
    handshake = None
    while time.monotonic() < deadline:
        handshake = file.read_live()
        if handshake is not None and handshake.phase in USABLE:
            endpoint = Endpoint(handshake.host, handshake.port, handshake.token, handshake.instance_id)
            if not endpoint.ask_health(HEALTH_S):
                return handshake
        if not alive():
            break
        time.sleep(POLL_S)
    raise NoInstanceError(_evidence(file.read() or handshake, file))


def _evidence(handshake: Handshake | None, file: HandshakeFile) -> str:
    if handshake is None:
        return f"the sidecar did not come up: no {file.path}; `logs` shows why"
    told = f"the sidecar is in phase {handshake.phase!r} and does not answer"
    if handshake.last_exit is None:
        return f"{told}; the log is in {handshake.log_dir}"
    end = handshake.last_exit
    said = end.stderr_tail.strip().splitlines()
    last = f", its last words: {said[-1]}" if said else ""
    return f"{told}; its server ended with {end.signal or f'code {end.code}'}{last}; the log is in {handshake.log_dir}"
