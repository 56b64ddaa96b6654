"""Pure decisions: restart or give up, hung or not, the steps of a stop. No clock and no randomness of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sidecar.errors import EXIT_BAD_CONFIG, EXIT_PART_MISSING
from sidecar.settings import Settings

NEVER_RESTART = {
    EXIT_BAD_CONFIG: "the server refused its configuration",
    EXIT_PART_MISSING: "a part of the server is missing",
}
JITTER = 0.25  # a delay is stretched by up to this part, so that several sidecars do not come back in step
EXIT_SLACK_S = 1.0  # what a server needs to end its runners after the drain
HOST_GONE_TERM_S = 0.7
REAP_S = 2.0  # a process that outlives SIGKILL for so long hangs in the kernel; waiting longer changes nothing


@dataclass(frozen=True)
class RestartPolicy:
    """Delays before the 1st, 2nd, … restart (the last one repeats); `limit` crashes within `window_s` are the end."""

    delays_s: tuple[float, ...]
    limit: int
    window_s: float
    reset_s: float

    @classmethod
    def of(cls, settings: Settings) -> "RestartPolicy":
        return cls(
            settings.restart_delays_s, settings.restart_limit, settings.restart_window_s, settings.restart_reset_s
        )


@dataclass(frozen=True)
class Restart:
    delay_s: float
    crashes: tuple[float, ...]


@dataclass(frozen=True)
class GiveUp:
    reason: str
    exit_code: int
    crashes: tuple[float, ...]


def after_crash(
    policy: RestartPolicy,
    crashes: tuple[float, ...],
    *,
    now: float,
    code: int | None,
    healthy_since: float | None,
    random: Callable[[], float],
) -> Restart | GiveUp:
    """Decide what follows a server exit that nobody asked for.

    Args:
        crashes: times of the earlier crashes, on the clock of `now` (s).
        code: exit code, None after a signal.
        healthy_since: when this server became ready, None if it never did.
        random: uniform in [0, 1), for the jitter.
    """
    healthy = healthy_since is not None and now - healthy_since >= policy.reset_s
    crashes = (*(() if healthy else recent(policy, crashes, now=now)), now)
    if code is not None and code in NEVER_RESTART:
        return GiveUp(f"{NEVER_RESTART[code]} (exit code {code})", code, crashes)
    if len(crashes) >= policy.limit:
        return GiveUp(f"{len(crashes)} crashes within {policy.window_s:g} s", 1, crashes)
    delay_s = policy.delays_s[min(len(crashes), len(policy.delays_s)) - 1] if policy.delays_s else 0.0
    return Restart(delay_s * (1 + JITTER * random()), crashes)


def recent(policy: RestartPolicy, crashes: tuple[float, ...], *, now: float) -> tuple[float, ...]:
    """The crashes that still count."""
    return tuple(at for at in crashes if now - at < policy.window_s)


@dataclass(frozen=True)
class HangWatch:
    """Probes missed in a row by one server process; before its first answer it has a start-up grace."""

    missed: int = 0
    answered: bool = False

    def after_probe(self, *, alive: bool, age_s: float, grace_s: float) -> "HangWatch":
        if alive:
            return HangWatch(0, True)
        return self if not self.answered and age_s < grace_s else HangWatch(self.missed + 1, self.answered)


@dataclass(frozen=True)
class StopStep:
    """One rung of the escalation and how long it gets before the next one (s)."""

    action: Literal["drain", "terminate", "kill"]
    patience_s: float


def stop_steps(*, drain_s: float, term_s: float, host_gone: bool) -> list[StopStep]:
    """The rungs of a stop. With the host gone nobody is left to drain for."""
    kill = StopStep("kill", REAP_S)
    if host_gone:
        return [StopStep("terminate", HOST_GONE_TERM_S), kill]
    return [StopStep("drain", drain_s + EXIT_SLACK_S), StopStep("terminate", term_s), kill]
