"""The supervisor: one loop that owns all state. Threads and signal handlers put events; only the loop decides.

Order at the start: lock, socket, server, and then everything else, so that the server loads while we still set up.
"""

import contextlib
import os
import queue
import random
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sidecar import __version__
from sidecar.settings import Settings, role_command
from sidecar.supervisor import listener, parent, proctree, restart
from sidecar.supervisor.child import Child, describe_exit, launch_environment
from sidecar.supervisor.events import Due, Event, HostGone, Probed, ServerExited, StatusReported, StopRequested
from sidecar.supervisor.handshake import (
    SERVER_PHASES,
    Handshake,
    HandshakeFile,
    LastExit,
    Process,
    Progress,
    Restarts,
)
from sidecar.supervisor.logs import LOG_NAME, RotatingLog
from sidecar.supervisor.outbox import say
from sidecar.supervisor.probe import Endpoint, ProbeThread
from sidecar.supervisor.publisher import Publisher

PROGRESS_INTERVAL_S = 0.5
SPAWN_FAILED_CODE = 127  # what a shell answers for a command that it cannot start


@dataclass(frozen=True)
class Options:
    """What the command line says beyond the settings."""

    events: bool = False
    detach: bool = False
    watch_pid: int | None = None


@dataclass
class State:
    """What the loop knows. `_snapshot` shows it to clients."""

    phase: str = "starting"
    progress: Progress | None = None
    device: str | None = None
    device_reason: str | None = None
    server: Process | None = None
    last_exit: LastExit | None = None
    crashes: tuple[float, ...] = ()
    launches: int = 0
    spawned_at: float = 0.0
    healthy_since: float | None = None
    hang: restart.HangWatch = field(default_factory=restart.HangWatch)
    hung: str = ""
    stop_steps: list[restart.StopStep] | None = None
    host_gone: bool = False
    announced: bool = False
    exit_code: int | None = None


class Supervisor:
    """Runs servers one after the other on one socket until it is told to stop or gives up.

    The caller holds the instance lock.
    """

    def __init__(
        self, settings: Settings, options: Options | None = None, *, command: Sequence[str] | None = None
    ) -> None:
        """Bind the socket. Raises ConfigError."""
        self._settings = settings
        self._options = options or Options()
        self._command = list(command or role_command("serve"))
        self._policy = restart.RestartPolicy.of(settings)
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._deadlines: dict[str, float] = {}
        self._listener = listener.listen(settings.host, settings.port)
        token = secrets.token_hex(32) if settings.auth == "on" else None
        host, port = self._listener.getsockname()[:2]
        self._endpoint = Endpoint(host, port, token, secrets.token_hex(16))
        self._log = RotatingLog(settings.log_dir / LOG_NAME, max_bytes=settings.log_max_bytes, files=settings.log_files)
        file = HandshakeFile(settings.handshake_path)
        file.sweep()
        self._publisher = Publisher(file, self._log, events=self._options.events)
        self._state = State()
        self._child: Child | None = None
        self._probe: ProbeThread | None = None

    def run(self) -> int:
        """Until the end; returns the process's exit code. Call it in the main thread."""
        self._handle_signals()
        try:
            self._start()
            while self._state.exit_code is None:
                self._handle(self._next_event())
            return self._finish(self._state.exit_code)
        finally:
            if self._child is not None:  # only after an error of ours: nothing may outlive us
                self._child.kill()

    def _start(self) -> None:
        self._spawn()
        if not self._options.detach:
            parent.watch_stdin(self._queue.put)
        if self._options.watch_pid is not None:
            parent.watch_pid(self._options.watch_pid, self._queue.put)
        self._log.note(f"version {__version__} listens on {self._endpoint.base_url}")
        self._publish()

    # Events in

    def _handle_signals(self) -> None:
        # SimpleQueue.put is re-entrant (C, no Python lock): the one queue that a signal handler may use.
        for number in proctree.STOP_SIGNALS:
            signal.signal(number, lambda got, _: self._queue.put(StopRequested(signal.Signals(got).name)))
        for number in proctree.HANGUP_SIGNALS:
            if self._options.detach:
                signal.signal(number, signal.SIG_IGN)
            elif signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: self._queue.put(HostGone("the terminal hung up")))

    def _next_event(self) -> Event:
        while True:
            timeout_s = proctree.MAX_WAIT_S
            if self._deadlines:
                name = min(self._deadlines, key=lambda key: self._deadlines[key])
                timeout_s = min(timeout_s, self._deadlines[name] - time.monotonic())
                if timeout_s <= 0:
                    del self._deadlines[name]
                    return Due(name)
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=timeout_s)

    def _handle(self, event: Event) -> None:
        launch = self._child.launch if self._child else 0
        match event:
            case StatusReported(launch=of, message=message) if of == launch:
                self._on_status(message)
            case Probed(launch=of) if of == launch:
                self._on_probe(event)
            case ServerExited(launch=of, returncode=returncode) if of == launch:
                self._on_exit(*proctree.exit_evidence(returncode))
            case HostGone(reason=reason):
                self._stop(reason, host_gone=True)
            case StopRequested(reason=reason):
                self._stop(reason)
            case Due(deadline=name):
                self._on_due(name)

    def _on_due(self, name: str) -> None:
        match name:
            case "spawn":
                self._spawn()
                self._publish()
            case "stop":
                self._escalate()
            case "publish":
                self._publish()
            case "reset":
                self._state.crashes = ()
                self._publish()

    def _on_status(self, message: dict[str, Any]) -> None:
        match message:
            case {"event": "phase", "phase": str(phase)} if phase in SERVER_PHASES:
                if self._state.stop_steps is None:
                    self._enter(phase, message)
            case {"event": "setting", "name": str(name), "value": value} if name in Settings.model_fields:
                self._settings = self._settings.model_copy(update={name: value})
            case {"event": "shutdown_requested"}:
                if self._state.stop_steps is None:
                    self._stop("POST /shutdown")
            case _:
                self._log.note(f"ignored an unknown status of the server: {message}")

    def _enter(self, phase: str, message: dict[str, Any]) -> None:
        same = phase == self._state.phase
        self._state.phase = phase
        self._state.progress = Progress.parse(message.get("progress"))
        if isinstance(device := message.get("device"), str):
            self._state.device = device
        if isinstance(reason := message.get("device_reason"), str):
            self._state.device_reason = reason
        if phase in ("ready", "degraded") and self._state.healthy_since is None:
            self._state.healthy_since = time.monotonic()
            self._state.hang = restart.HangWatch(answered=True)  # start-up is over, and with it the grace
            if self._state.crashes:
                self._deadlines["reset"] = self._state.healthy_since + self._policy.reset_s
            self._announce()
        if same:  # progress may come many times a second; a phase does not wait
            self._deadlines.setdefault("publish", time.monotonic() + PROGRESS_INTERVAL_S)
        else:
            self._log.note(f"phase {phase}")
            self._publish()

    # The server's life

    def _spawn(self) -> None:
        state = self._state
        state.launches += 1
        state.hang, state.hung, state.healthy_since = restart.HangWatch(), "", None
        state.spawned_at = time.monotonic()
        environment = launch_environment(
            self._settings.as_environment(),
            token=self._endpoint.token,
            instance_id=self._endpoint.instance_id,
            restart_count=len(state.crashes),
        )
        try:
            self._child = Child(
                self._command,
                environment,
                self._listener,
                launch=state.launches,
                secret=self._endpoint.token,
                log=self._log,
                put=self._queue.put,
            )
        except OSError as error:
            self._on_spawn_failed(error)
            return
        self._probe = ProbeThread(self._endpoint, self._settings.probe_interval_s, state.launches, self._queue.put)
        state.server = Process.of(self._child.pid)
        self._log.note(f"server {state.launches} started, pid {self._child.pid}")

    def _on_spawn_failed(self, error: OSError) -> None:
        tail = f"[supervisor] cannot start {self._command[0]}: {error.strerror or error}\n"
        self._log.note(tail.strip())
        self._state.last_exit = LastExit(SPAWN_FAILED_CODE, None, time.time(), tail)
        if isinstance(error, FileNotFoundError | PermissionError):  # a missing part does not come back by itself
            self._give_up(f"cannot start {self._command[0]}: {error.strerror}", 1)
        else:
            self._after_crash(SPAWN_FAILED_CODE)

    def _on_probe(self, probed: Probed) -> None:
        state = self._state
        age_s = time.monotonic() - state.spawned_at
        state.hang = state.hang.after_probe(alive=probed.alive, age_s=age_s, grace_s=self._settings.startup_grace_s)
        if probed.alive or state.hang.missed == 0:
            return
        self._log.note(f"probe missed, {state.hang.missed} of {self._settings.probe_misses}: {probed.detail}")
        hung = state.hang.missed >= self._settings.probe_misses
        if hung and not state.hung and state.stop_steps is None and self._child is not None:
            state.hung = f"[supervisor] killed: no answer to {state.hang.missed} probes ({probed.detail})\n"
            self._log.note(state.hung.strip())
            self._child.kill()

    def _on_exit(self, code: int | None, signal_name: str | None) -> None:
        assert self._child is not None
        tail = self._child.stderr_tail() + self._state.hung
        self._log.note(f"server {self._child.launch} (pid {self._child.pid}) ended: {describe_exit(code, signal_name)}")
        self._child = self._state.server = None
        if self._probe is not None:
            self._probe.stop()
        self._deadlines.pop("reset", None)
        if self._state.stop_steps is not None:
            self._state.exit_code = 0
            return
        self._state.last_exit = LastExit(code, signal_name, time.time(), tail)
        self._after_crash(code)

    def _after_crash(self, code: int | None) -> None:
        now = time.monotonic()
        decision = restart.after_crash(
            self._policy,
            self._state.crashes,
            now=now,
            code=code,
            healthy_since=self._state.healthy_since,
            random=random.random,
        )
        self._state.crashes = decision.crashes
        if isinstance(decision, restart.GiveUp):
            self._give_up(decision.reason, decision.exit_code)
            return
        self._state.phase, self._state.progress = "restarting", None
        self._log.note(f"restart {len(self._state.crashes)} in {decision.delay_s:.1f} s")
        if decision.delay_s:
            self._deadlines["spawn"] = now + decision.delay_s
        else:
            self._spawn()
        self._publish()

    def _give_up(self, reason: str, exit_code: int) -> None:
        self._state.phase, self._state.progress = "failed", None
        self._state.exit_code = exit_code
        tail = self._state.last_exit.stderr_tail.strip() if self._state.last_exit else ""
        last_line = f": {tail.splitlines()[-1]}" if tail else ""
        self._log.note(f"failed: {reason}")
        say(f"ml-sidecar failed: {reason}{last_line} (log: {self._log.path})")

    # The end

    def _stop(self, reason: str, *, host_gone: bool = False) -> None:
        state = self._state
        if state.host_gone:
            return
        if state.stop_steps is not None and not host_gone:
            if state.stop_steps:  # a second Ctrl-C: the next rung now
                self._escalate()
            return
        state.host_gone = host_gone
        state.stop_steps = restart.stop_steps(
            drain_s=self._settings.drain_s, term_s=self._settings.term_s, host_gone=host_gone
        )
        self._deadlines.clear()
        if self._probe is not None:
            self._probe.stop()
        state.phase, state.progress = "stopping", None
        self._escalate()  # before the log: a stalled disk must not hold up the end of a host's tree
        self._log.note(f"stopping: {reason}")
        self._publish()

    def _escalate(self) -> None:
        state = self._state
        if self._child is None:
            state.exit_code = 0
        elif not state.stop_steps:
            state.exit_code = 1
            self._log.note(f"pid {self._child.pid} outlived SIGKILL")
        else:
            step, *state.stop_steps = state.stop_steps
            self._take(step, self._child)
            self._deadlines["stop"] = time.monotonic() + step.patience_s

    def _take(self, step: restart.StopStep, child: Child) -> None:
        match step.action:
            case "drain":
                child.send({"op": "stop", "drain_s": self._settings.drain_s})
            case "terminate":
                child.terminate()
            case "kill":
                child.kill()

    def _finish(self, exit_code: int) -> int:
        self._listener.close()
        failed = self._state.phase == "failed"  # its file stays: it is the evidence
        if failed:
            self._publish()
        self._publisher.close(remove=None if failed else self._endpoint.instance_id)
        self._log.note(f"ended with exit code {exit_code}")
        self._log.close()
        return exit_code

    # The handshake out

    @cached_property
    def _me(self) -> Process:
        return Process.of(os.getpid()) or Process(os.getpid(), time.time())

    def _publish(self) -> None:
        self._deadlines.pop("publish", None)
        self._publisher.publish(self._snapshot())

    def _snapshot(self) -> Handshake:
        state = self._state
        crashes = restart.recent(self._policy, state.crashes, now=time.monotonic())
        return Handshake(
            app_version=__version__,
            instance_id=self._endpoint.instance_id,
            phase=state.phase,
            progress=state.progress,
            supervisor=self._me,
            server=state.server,
            host=self._endpoint.host,
            port=self._endpoint.port,
            base_url=self._endpoint.base_url,
            token=self._endpoint.token,
            device=state.device,
            device_reason=state.device_reason,
            restarts=Restarts(len(crashes), self._policy.window_s),
            last_exit=state.last_exit,
            log_dir=str(self._settings.log_dir),
            updated_at=time.time(),
        )

    def _announce(self) -> None:
        if not self._options.events and not self._state.announced:
            say(f"ml-sidecar is ready at {self._endpoint.base_url} (handshake: {self._publisher.file.path})")
        self._state.announced = True
