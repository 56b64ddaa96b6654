"""Residency: which models stay in memory. Pure functions of what is resident, the budget and the clock."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.bounds import parse_duration_s
from sidecar.errors import InputError

FOREVER = math.inf
_AGES_S = 10 * 365 * 86_400.0


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
    vram_bytes: int = 0
    """Measured memory on the GPU; while it loads, the estimate."""


class Vram(NamedTuple):
    """Memory of the first GPU, and what each process holds of all."""

    total_bytes: int
    by_process: Mapping[int, int]


@dataclass(frozen=True)
class Plan:
    """How to make room: what leaves now, and who is still in the way of the newcomer after that."""

    evict: tuple[str, ...]
    in_the_way: tuple[Resident, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.in_the_way


def parse_keep_alive(value: float | str | None, default_s: float) -> float:
    """Seconds from what a request says, as Ollama reads it: a number (s), "5m", "1h30m", 0, or negative for ever.

    More than ten years are for ever: no calendar holds 1e20 s.

    Raises InputError naming the value.
    """
    if value is None:
        return default_s
    try:
        seconds = parse_duration_s(str(value))
    except ValueError:
        said = f'keep_alive {str(value)[:40]!r} is no duration; write seconds, "5m", 0 or -1'
        raise InputError(said, field="keep_alive") from None
    return FOREVER if seconds < 0 or seconds > _AGES_S else seconds


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
    residents: Sequence[Resident],
    need_bytes: int,
    budget_bytes: int,
    incoming_group: str | None = None,
    *,
    need_vram_bytes: int = 0,
    vram_budget_bytes: float = math.inf,
) -> Plan:
    """Evict the least recently used idle models until `need_bytes` more fit into the budget, and so on the GPU.

    When even all idle models are not enough they leave all the same, and `fits` is False: somebody busy has to be
    waited for. A model larger than the whole budget fits once it is alone: the budget may be exceeded by one model's
    load, never by two. Nobody leaves who holds nothing of the kind of memory that is short.
    """
    short = need_bytes + sum(each.size_bytes for each in residents) - budget_bytes
    vram_short = need_vram_bytes + sum(each.vram_bytes for each in residents) - vram_budget_bytes
    out: list[Resident] = []
    for candidate in sorted(residents, key=lambda each: each.used_at):
        if short <= 0 and vram_short <= 0:
            break
        if candidate in out or not _may_leave(residents, candidate, incoming_group):
            continue
        leaving = [mate for mate in _mates(residents, candidate) if mate not in out]
        freed = sum(mate.size_bytes for mate in leaving)
        vram_freed = sum(mate.vram_bytes for mate in leaving)
        if (short > 0 and freed) or (vram_short > 0 and vram_freed):
            out += leaving
            short -= freed
            vram_short -= vram_freed
    in_the_way = tuple(
        each
        for each in residents
        if each not in out
        and not each.pinned
        and not (incoming_group and each.group == incoming_group)
        and ((short > 0 and each.size_bytes) or (vram_short > 0 and each.vram_bytes))
    )
    return Plan(tuple(each.model_id for each in out), in_the_way)


def preempt(
    in_the_way: Iterable[Resident], ready_since: Mapping[str, float], now: float, quantum_s: float
) -> str | None:
    """The busy model that has to give way when nothing idle can: the one longest in memory, after its quantum."""
    able = [each.model_id for each in in_the_way if now - ready_since.get(each.model_id, now) >= quantum_s]
    return min(able, key=lambda model_id: ready_since[model_id], default=None)


def _mates(residents: Sequence[Resident], one: Resident) -> list[Resident]:
    return [one] if one.group is None else [each for each in residents if each.group == one.group]


def _may_leave(residents: Sequence[Resident], one: Resident, incoming_group: str | None) -> bool:
    if one.group is not None and one.group == incoming_group:
        return False
    return not any(mate.busy or mate.pinned for mate in _mates(residents, one))
