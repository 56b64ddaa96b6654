"""Residency: which models stay in memory. Pure functions of what is resident, the budget and the clock."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sidecar.errors import InputError

FOREVER = math.inf

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


@dataclass(frozen=True)
class Resident:
    """One model that is in memory or on its way there."""

    model_id: str
    size_bytes: int
    """Measured memory of its runners; while it loads, the estimate."""
    used_at: float
    """When its last request ended (s, monotonic)."""
    keep_alive_s: float = 300.0
    """How long it stays idle; 0 leaves at once, FOREVER never."""
    busy: bool = False
    """Loading, or with requests queued or running."""
    pinned: bool = False
    """Never evicted for another one's sake."""
    group: str | None = None
    """Members of a group load and leave together."""


@dataclass(frozen=True)
class Plan:
    """How to make room: what leaves now, and whether the newcomer fits after that."""

    evict: tuple[str, ...]
    fits: bool


def parse_keep_alive(value: float | str | None, default_s: float) -> float:
    """Seconds from what a request says, as Ollama reads it: a number (s), "5m", "1h30m", 0, or negative for ever.

    Raises InputError naming the value.
    """
    if value is None:
        return default_s
    if isinstance(value, str):
        text = value.strip()
        sign = -1.0 if text.startswith("-") else 1.0
        text = text.lstrip("+-")
        if _DURATION.fullmatch(text):
            seconds = sign * sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
        else:
            try:
                seconds = sign * float(text)
            except ValueError:
                raise InputError(f'keep_alive {value!r} is no duration; write seconds, "5m", 0 or -1') from None
    else:
        seconds = float(value)
    if math.isnan(seconds):
        raise InputError('keep_alive is not a number; write seconds, "5m", 0 or -1')
    return FOREVER if seconds < 0 or math.isinf(seconds) else seconds


def expired(residents: Iterable[Resident], now: float) -> list[str]:
    """Idle models whose keep-alive has run out. A group leaves when all of its members may."""
    residents = list(residents)
    over = {each.model_id for each in residents if not each.busy and now - each.used_at >= each.keep_alive_s}
    return [
        each.model_id
        for each in residents
        if each.model_id in over
        and (each.group is None or all(mate.model_id in over for mate in _mates(residents, each)))
    ]


def make_room(
    residents: Sequence[Resident], need_bytes: int, budget_bytes: int, incoming_group: str | None = None
) -> Plan:
    """Evict the least recently used idle models until `need_bytes` more fit into the budget.

    When even all idle models are not enough they leave all the same, and `fits` is False: somebody busy has to be
    waited for. A model larger than the whole budget fits once it is alone: the budget may be exceeded by one model's
    load, never by two.
    """
    used = sum(each.size_bytes for each in residents)
    out: list[Resident] = []
    candidates = sorted(residents, key=lambda each: each.used_at)
    for candidate in candidates:
        if used + need_bytes <= budget_bytes:
            break
        if candidate in out or not _may_leave(residents, candidate, incoming_group):
            continue
        leaving = [mate for mate in _mates(residents, candidate) if mate not in out]
        out += leaving
        used -= sum(mate.size_bytes for mate in leaving)
    staying = [each for each in residents if each not in out]
    alone = all(each.pinned or (incoming_group and each.group == incoming_group) for each in staying)
    fits = used + need_bytes <= budget_bytes or alone
    return Plan(tuple(each.model_id for each in out), fits)


def preempt(residents: Iterable[Resident], ready_since: dict[str, float], now: float, quantum_s: float) -> str | None:
    """The busy model that has to give way when nothing idle can: the one longest in memory, after its quantum."""
    able = [each for each in residents if not each.pinned and now - ready_since.get(each.model_id, now) >= quantum_s]
    return min(able, key=lambda each: ready_since[each.model_id]).model_id if able else None


def _mates(residents: Sequence[Resident], one: Resident) -> list[Resident]:
    return [one] if one.group is None else [each for each in residents if each.group == one.group]


def _may_leave(residents: Sequence[Resident], one: Resident, incoming_group: str | None) -> bool:
    if one.group is not None and one.group == incoming_group:
        return False
    return not any(mate.busy or mate.pinned for mate in _mates(residents, one))
