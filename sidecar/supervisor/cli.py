"""The command line roles `supervise`, `status`, `stop` and `logs`. Each `main_…` returns the exit code."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Sequence

from sidecar.errors import ConfigError, SidecarError
from sidecar.settings import Settings
from sidecar.supervisor.handshake import Handshake, HandshakeFile
from sidecar.supervisor.logs import LOG_NAME
from sidecar.supervisor.outbox import say
from sidecar.supervisor.probe import Endpoint

EXIT_NOT_RUNNING = 3  # as LSB init scripts answer `status`
EXIT_UNKNOWN = 4  # likewise
STOP_TIMEOUT_S = 20.0
ASK_TIMEOUT_S = 2.0
POLITE_S = 13.0  # drain and terms of an orderly stop; after that SIGTERM
HEARD_S = 1.0  # from the request to the phase `stopping` in the file
LAST_S = 2.0  # for the kernel to take away what was killed
POLL_S = 0.1


def main_supervise(argv: Sequence[str], *, command: Sequence[str] | None = None) -> int:
    """Run the supervisor, or attach to the one that runs. `command` replaces the server (tests)."""
    arguments = _supervise_parser().parse_args(argv)
    _claim_standard_descriptors()
    try:
        return _supervise_or_attach(arguments, command)
    except SidecarError as error:
        if arguments.events:  # the host reads stdout: the reason must be there, too
            from sidecar.supervisor.publisher import write_failure

            with contextlib.suppress(OSError):
                write_failure(error)
        if isinstance(error, ConfigError):
            raise
        say(f"ml-sidecar: {error.message}")
        return 1


def _supervise_or_attach(arguments: argparse.Namespace, command: Sequence[str] | None) -> int:
    settings = Settings.load(port=arguments.port, auth=arguments.auth)
    from sidecar.supervisor.lock import InstanceLock

    lock = InstanceLock(settings.lock_path)
    if lock.take():
        return _supervise(settings, arguments, command)
    from sidecar.supervisor import attach
    from sidecar.supervisor.publisher import write_event

    first = attach.take_or_attach(settings, lock)
    if first is None:
        return _supervise(settings, arguments, command)
    if difference := attach.difference(settings, first):
        say(f"ml-sidecar: already running with {difference}; `stop` it first to change that")
    if arguments.events:
        return attach.mirror(settings, first, arguments.watch_pid)
    with contextlib.suppress(OSError):
        write_event(first)
    return 0


def _supervise(settings: Settings, arguments: argparse.Namespace, command: Sequence[str] | None) -> int:
    from sidecar.supervisor.supervisor import Options, Supervisor

    options = Options(events=arguments.events, detach=arguments.detach, watch_pid=arguments.watch_pid)
    return Supervisor(settings, options, command=command).run()


def _supervise_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sidecar supervise", allow_abbrev=False)
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    parser.add_argument("--auth", choices=("on", "off"), help="off: legacy local clients send no token")
    parser.add_argument("--events", action="store_true", help="every handshake as one JSON line on stdout")
    parser.add_argument("--watch-pid", type=int, metavar="PID", help="end when this process ends")
    parser.add_argument("--detach", action="store_true", help="outlive the terminal and the end of stdin")
    return parser


def _claim_standard_descriptors() -> None:
    """A host may start us with 0, 1 or 2 closed; the socket must not become one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def main_status(argv: Sequence[str]) -> int:
    """Say what runs. 0: running, 3: not, 4: something that cannot be asked."""
    parser = argparse.ArgumentParser("sidecar status", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="the handshake (token included) as one JSON line, or null")
    arguments = parser.parse_args(argv)
    settings = Settings.load()
    handshake = HandshakeFile(settings.handshake_path).read()
    running = handshake is not None and handshake.supervisor.is_alive()
    shown = handshake if handshake is not None and (running or handshake.phase == "failed") else None
    if arguments.json:
        print(shown.to_json() if shown else "null")
    elif shown:
        print("\n".join(_describe(shown)))
    if not running and _is_hidden(settings):
        say(_hidden(settings))
        return EXIT_UNKNOWN
    if not (shown or arguments.json):
        print("not running")
    return 0 if running else EXIT_NOT_RUNNING


def _is_hidden(settings: Settings) -> bool:
    """Whether a supervisor holds the lock that shows no file."""
    if not settings.lock_path.exists():
        return False
    from sidecar.supervisor.lock import InstanceLock

    try:
        lock = InstanceLock(settings.lock_path)
    except ConfigError:  # a folder that we may only read: whoever runs there is not ours
        return False
    try:
        return not lock.take()
    finally:
        lock.release()


def _hidden(settings: Settings) -> str:
    return (
        f"ml-sidecar: a sidecar holds {settings.lock_path} but shows no usable {settings.handshake_path.name}: it just "
        "starts, or cannot write it (a full disk?); ask again, or end that process"
    )


def _describe(handshake: Handshake) -> list[str]:
    lines = [
        f"phase       {handshake.phase}",
        f"address     {handshake.base_url}",
        f"supervisor  pid {handshake.supervisor.pid}, version {handshake.app_version}",
        f"server      {f'pid {handshake.server.pid}' if handshake.server else 'none'}",
        f"device      {handshake.device or 'unknown'}"
        + (f" ({handshake.device_reason})" if handshake.device_reason else ""),
        f"restarts    {handshake.restarts.count} within {handshake.restarts.window_s:g} s",
        f"log         {os.path.join(handshake.log_dir, LOG_NAME)}",
    ]
    if handshake.progress:
        progress = handshake.progress
        total = f" of {progress.total:g}" if progress.total is not None else ""
        left = f", {progress.eta_s:,.0f} s left" if progress.eta_s is not None else ""
        lines.insert(1, f"progress    {progress.item}: {progress.done:g}{total} {progress.unit}{left}")
    if handshake.last_exit:
        end = handshake.last_exit
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end.at))
        lines.append(f"last exit   {end.signal or f'code {end.code}'} at {when}")
        lines += [f"            | {line}" for line in end.stderr_tail.strip().splitlines()[-5:]]
    return lines


def main_stop(argv: Sequence[str]) -> int:
    """Stop what runs, and wait until it is gone. 0: nothing runs any more, 1: it would not go."""
    argparse.ArgumentParser("sidecar stop", allow_abbrev=False).parse_args(argv)
    settings = Settings.load()
    file = HandshakeFile(settings.handshake_path)
    handshake = file.read_live()
    if handshake is None:
        if _is_hidden(settings):
            say(_hidden(settings))
            return 1
        print("not running")
        return 0
    deadline = time.monotonic() + STOP_TIMEOUT_S
    _ask_to_stop(handshake)
    heard = _until(lambda: _is_stopping(file, handshake), time.monotonic() + HEARD_S)
    if not heard or not _until(lambda: not handshake.supervisor.is_alive(), time.monotonic() + POLITE_S):
        import psutil

        with contextlib.suppress(psutil.Error):  # verified by its start time a moment ago
            supervisor = psutil.Process(handshake.supervisor.pid)
            supervisor.resume()  # a stopped process takes no SIGTERM
            supervisor.terminate()
            if not _until(lambda: not handshake.supervisor.is_alive(), deadline):
                supervisor.kill()  # its server ends with the pipe between them
                deadline += LAST_S
    if _until(lambda: not handshake.supervisor.is_alive(), deadline):
        print("stopped")
        return 0
    say(f"ml-sidecar: pid {handshake.supervisor.pid} is still there after {STOP_TIMEOUT_S:g} s; see `logs`")
    return 1


def _ask_to_stop(handshake: Handshake) -> None:
    """A lost answer means nothing: the server may have gone on to stop before it was out."""
    endpoint = Endpoint(handshake.host, handshake.port, handshake.token, handshake.instance_id)
    with contextlib.suppress(OSError, ValueError):
        endpoint.request("POST", "/shutdown", ASK_TIMEOUT_S)


def _is_stopping(file: HandshakeFile, handshake: Handshake) -> bool:
    now = file.read()
    return now is None or now.instance_id != handshake.instance_id or now.phase == "stopping"


def _until(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def main_logs(argv: Sequence[str]) -> int:
    """Print the end of the log, and with -f what is added to it."""
    parser = argparse.ArgumentParser("sidecar logs", allow_abbrev=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    parser.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="lines to begin with (100)")
    arguments = parser.parse_args(argv)
    from sidecar.supervisor.follow import follow, last_lines

    path = Settings.load().log_dir / LOG_NAME
    if not arguments.follow and not path.exists():
        say(f"ml-sidecar: no log at {path}")
        return 1
    try:
        text, offset = last_lines(path, arguments.lines)
        _emit(text)
        if arguments.follow:
            follow(path, offset, _emit)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0
    return 0


def _emit(data: bytes) -> None:
    from sidecar.supervisor.outbox import write_all

    write_all(1, data)


__all__ = ["main_logs", "main_status", "main_stop", "main_supervise"]
