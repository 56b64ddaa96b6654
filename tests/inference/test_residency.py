import math

import pytest

from sidecar.errors import InputError
from sidecar.inference.residency import FOREVER, Plan, Resident, expired, make_room, parse_keep_alive, preempt

GIB = 1 << 30


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 300.0), (0, 0.0), ("0", 0.0), (30, 30.0), (1.5, 1.5), ("45", 45.0), ("5m", 300.0), ("1h30m", 5400.0),
        ("250ms", 0.25), ("90s", 90.0), (-1, FOREVER), ("-1", FOREVER), ("-5m", FOREVER), (" 10s ", 10.0),
        ("99999999999999999999", FOREVER), (1e300, FOREVER), ("87600h", 315_360_000.0),
    ],
)  # fmt: skip
def test_keep_alive_is_read_as_ollama_does(value: "float | str | None", seconds: float) -> None:
    assert parse_keep_alive(value, 300.0) == seconds


@pytest.mark.parametrize("value", ["soon", "5 minutes", "", "m", "1d", math.nan])
def test_a_bad_keep_alive_is_named(value: "float | str") -> None:
    with pytest.raises(InputError, match="keep_alive"):
        parse_keep_alive(value, 300.0)


def model(name: str, gib: float = 1.0, used_at: float = 0.0, **more: object) -> Resident:
    return Resident(name, int(gib * GIB), used_at, **more)  # type: ignore[arg-type]


def test_idle_models_leave_when_their_time_is_over() -> None:
    residents = [
        model("old", used_at=0, keep_alive_s=10),
        model("new", used_at=95, keep_alive_s=10),
        model("busy", used_at=0, keep_alive_s=10, busy=True),
        model("kept", used_at=0, keep_alive_s=FOREVER),
        model("never", used_at=99.9, keep_alive_s=0),
    ]
    assert expired(residents, now=100) == ["old", "never"]


def test_a_group_leaves_together_or_not_at_all() -> None:
    one = model("one", used_at=0, keep_alive_s=10, group="g")
    assert expired([one, model("two", used_at=95, keep_alive_s=10, group="g")], now=100) == []
    assert expired([one, model("two", used_at=5, keep_alive_s=10, group="g")], now=100) == ["one", "two"]


def test_what_fits_evicts_nobody() -> None:
    assert make_room([model("a")], GIB, 2 * GIB) == Plan(())


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    residents = [model("a", used_at=3), model("b", used_at=1), model("c", used_at=2)]
    assert make_room(residents, GIB, 3 * GIB) == Plan(("b",))
    assert make_room(residents, 2 * GIB, 3 * GIB) == Plan(("b", "c"))


def test_busy_and_pinned_models_stay() -> None:
    residents = [model("a", used_at=1, busy=True), model("b", used_at=2, pinned=True), model("c", used_at=3)]
    assert make_room(residents, GIB, 3 * GIB) == Plan(("c",))
    assert make_room(residents, 2 * GIB, 3 * GIB) == Plan(("c",), (residents[0],))


def test_a_model_larger_than_the_budget_loads_once_it_is_alone() -> None:
    assert make_room([model("a")], 10 * GIB, 2 * GIB) == Plan(("a",))
    busy = model("a", busy=True)
    assert make_room([busy], 10 * GIB, 2 * GIB) == Plan((), (busy,))
    assert make_room([model("p", pinned=True)], 10 * GIB, 2 * GIB) == Plan(())


def test_groups_are_evicted_whole_and_never_for_their_own_members() -> None:
    residents = [model("a", used_at=1, group="g"), model("b", used_at=9, group="g"), model("c", used_at=5)]
    assert make_room(residents, GIB, 3 * GIB).evict == ("a", "b")
    assert make_room(residents, GIB, 3 * GIB, incoming_group="g").evict == ("c",)


def test_preemption_takes_the_longest_resident_after_its_quantum() -> None:
    in_the_way = [model("a", busy=True), model("b", busy=True), model("loading", busy=True)]
    since = {"a": 5.0, "b": 1.0, "other": 0.0}
    assert preempt(in_the_way, since, now=6.0, quantum_s=2.0) == "b"
    assert preempt(in_the_way, since, now=2.0, quantum_s=2.0) is None


def test_in_the_way_is_who_holds_what_is_short() -> None:
    cpu, gpu = model("cpu", busy=True), model("gpu", gib=0, busy=True, vram_bytes=GIB)
    pinned, mate = model("p", busy=True, pinned=True), model("m", busy=True, group="g", vram_bytes=GIB)
    residents = [cpu, gpu, pinned, mate]
    assert make_room(residents, GIB, 2 * GIB, "g").in_the_way == (cpu,)
    plan = make_room(residents, 0, 99 * GIB, "g", need_vram_bytes=GIB, vram_budget_bytes=2 * GIB)
    assert plan.in_the_way == (gpu,)


def test_the_gpu_has_a_budget_of_its_own() -> None:
    residents = [
        model("cpu", gib=4, used_at=1),
        model("old", used_at=2, vram_bytes=2 * GIB),
        model("new", used_at=3, vram_bytes=2 * GIB),
    ]
    plan = make_room(residents, GIB, 100 * GIB, need_vram_bytes=2 * GIB, vram_budget_bytes=4 * GIB)
    assert plan == Plan(("old",)), "who holds nothing on the GPU need not leave for its sake"
    assert make_room(residents, GIB, 100 * GIB, need_vram_bytes=0, vram_budget_bytes=4 * GIB) == Plan(())
    both = make_room(residents, 3 * GIB, 6 * GIB, need_vram_bytes=2 * GIB, vram_budget_bytes=4 * GIB)
    assert both == Plan(("cpu", "old"))
    busy = [model("busy", used_at=1, busy=True, vram_bytes=3 * GIB)]
    assert not make_room(busy, GIB, 100 * GIB, need_vram_bytes=2 * GIB, vram_budget_bytes=4 * GIB).fits
    assert make_room([], GIB, 100 * GIB, need_vram_bytes=9 * GIB, vram_budget_bytes=4 * GIB).fits, "alone, it may try"
