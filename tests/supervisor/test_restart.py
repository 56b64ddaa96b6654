"""The pure policies, in a table and with a clock of the test's own."""

import pytest

from sidecar.errors import EXIT_BAD_CONFIG, EXIT_PART_MISSING
from sidecar.settings import Settings
from sidecar.supervisor.restart import (
    EXIT_SLACK_S,
    HOST_GONE_TERM_S,
    REAP_S,
    GiveUp,
    HangWatch,
    Restart,
    RestartPolicy,
    StopStep,
    after_crash,
    recent,
    stop_steps,
)

POLICY = RestartPolicy(delays_s=(0.0, 1.0, 5.0, 15.0), limit=5, window_s=600.0, reset_s=60.0)


def crash(
    crashes: tuple[float, ...],
    now: float,
    *,
    code: int | None = 1,
    healthy_since: float | None = None,
    jitter: float = 0.0,
    policy: RestartPolicy = POLICY,
) -> Restart | GiveUp:
    return after_crash(policy, crashes, now=now, code=code, healthy_since=healthy_since, random=lambda: jitter)


def test_delays_grow_until_the_limit_gives_up() -> None:
    crashes: tuple[float, ...] = ()
    delays = []
    now = 1000.0
    for _ in range(4):
        decision = crash(crashes, now)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
        crashes, now = decision.crashes, now + 10
    assert delays == [0.0, 1.0, 5.0, 15.0]
    end = crash(crashes, now)
    assert isinstance(end, GiveUp)
    assert end.exit_code == 1
    assert "5 crashes within 600 s" in end.reason


@pytest.mark.parametrize(
    ("crashes", "now", "healthy_since", "delay_s"),
    [
        ((), 0.0, None, 0.0),
        ((0.0,), 10.0, None, 1.0),
        ((0.0,), 599.0, None, 1.0),
        ((0.0,), 600.0, None, 0.0),  # left the window
        ((0.0, 1.0, 2.0, 3.0), 70.0, 10.0, 0.0),  # healthy for exactly the reset time
        ((0.0, 1.0, 2.0), 69.0, 10.0, 15.0),  # not quite
        ((0.0, 1.0, 2.0, 3.0), 601.5, None, 5.0),  # two of four left the window
    ],
)
def test_what_counts(crashes: tuple[float, ...], now: float, healthy_since: float | None, delay_s: float) -> None:
    decision = crash(crashes, now, healthy_since=healthy_since)
    assert isinstance(decision, Restart)
    assert decision.delay_s == delay_s
    assert decision.crashes[-1] == now


def test_jitter_stretches_by_a_quarter_at_most_and_never_an_instant_restart() -> None:
    first = crash((), 0.0, jitter=0.999)
    third = crash((0.0, 1.0), 2.0, jitter=0.999)
    assert isinstance(first, Restart) and first.delay_s == 0.0
    assert isinstance(third, Restart) and 5.0 < third.delay_s <= 6.25


def test_the_last_delay_repeats_and_no_delays_means_none() -> None:
    patient = RestartPolicy(delays_s=(0.0, 2.0), limit=100, window_s=600.0, reset_s=60.0)
    decision = crash(tuple(map(float, range(50))), 50.0, policy=patient)
    assert isinstance(decision, Restart) and decision.delay_s == 2.0
    bare = RestartPolicy(delays_s=(), limit=100, window_s=600.0, reset_s=60.0)
    decision = crash((1.0,), 2.0, policy=bare)
    assert isinstance(decision, Restart) and decision.delay_s == 0.0


@pytest.mark.parametrize(
    ("code", "why"),
    [(EXIT_BAD_CONFIG, "refused its configuration"), (EXIT_PART_MISSING, "part of the server is missing")],
)
def test_bad_configuration_and_missing_parts_are_never_restarted(code: int, why: str) -> None:
    decision = crash((), 0.0, code=code, healthy_since=-1000.0)
    assert isinstance(decision, GiveUp)
    assert decision.exit_code == code and why in decision.reason


@pytest.mark.parametrize("code", [0, 1, 127, None])
def test_any_other_end_is_a_crash(code: int | None) -> None:
    assert isinstance(crash((), 0.0, code=code), Restart)


def test_recent_and_policy_of_settings() -> None:
    assert recent(POLICY, (0.0, 1.0, 500.0), now=601.0) == (500.0,)
    assert RestartPolicy.of(Settings.load()) == POLICY


def test_hang_watch_spares_a_starting_server_and_counts_in_a_row() -> None:
    watch = HangWatch()
    for age_s in (5.0, 10.0, 29.9):
        watch = watch.after_probe(alive=False, age_s=age_s, grace_s=30.0)
    assert watch.missed == 0
    watch = watch.after_probe(alive=False, age_s=30.0, grace_s=30.0)
    assert watch.missed == 1
    watch = watch.after_probe(alive=True, age_s=35.0, grace_s=30.0)
    assert watch == HangWatch(0, answered=True)
    early = (
        HangWatch().after_probe(alive=True, age_s=1.0, grace_s=30.0).after_probe(alive=False, age_s=2.0, grace_s=30.0)
    )
    assert early.missed == 1, "the grace ends with the first answer"


def test_stop_steps() -> None:
    assert stop_steps(drain_s=5.0, term_s=4.0, host_gone=False) == [
        StopStep("drain", 5.0 + EXIT_SLACK_S),
        StopStep("terminate", 4.0),
        StopStep("kill", REAP_S),
    ]
    gone = stop_steps(drain_s=5.0, term_s=4.0, host_gone=True)
    assert [step.action for step in gone] == ["terminate", "kill"]
    assert gone[0].patience_s == HOST_GONE_TERM_S < 2.0


def test_a_default_stop_takes_15_s_at_most() -> None:
    settings = Settings.load()
    steps = stop_steps(drain_s=settings.drain_s, term_s=settings.term_s, host_gone=False)
    assert sum(step.patience_s for step in steps) <= 15.0
