"""Mouth shapes of a timed pronunciation, for avatars: VRM's five, and nine parameters of Live2D mouths.

Every sound pulls the mouth towards its own shape, strongest at its middle and less with the distance in time; what is
seen is the mean of all pulls. That is the dominance model of Cohen and Massaro ("Modeling coarticulation in synthetic
visual speech", 1993). The shapes follow the articulation of American English.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from sidecar.capabilities.textgrid import Interval

VISEMES = ("aa", "ih", "ou", "ee", "oh")
MOUTH = (
    "mouthOpenY", "jawOpen", "mouthForm", "mouthShrug", "mouthFunnel", "mouthPuckerWiden", "mouthPressLipOpen",
    "mouthX", "cheekPuffC",
)  # fmt: skip

# A sound this far away (s) pulls e times less; longer sounds reach further.
_NEAR_S, _FAR_S = 0.045, 0.2
_SEEN_S = 4 * _FAR_S
_PAUSE_S = 0.12
_CLOSED_AFTER_S = 0.06


class Keyframe(BaseModel):
    """To be joined by straight lines. `visemes` are weights 0 to 1; of `mouth`, mouthForm (frown to smile),
    mouthPuckerWiden (narrow to wide), mouthPressLipOpen (pressed to parted) and mouthX (left to right) are −1 to 1, the
    others 0 to 1."""

    time_ms: float
    visemes: dict[str, float]
    mouth: dict[str, float]


class Shape(NamedTuple):
    """Weights of VISEMES, values of MOUTH, and how strongly the sound insists on them."""

    visemes: tuple[float, ...]
    mouth: tuple[float, ...]
    pull: float


class Target(NamedTuple):
    """A shape at a time, in seconds. `reach` is the distance at which it pulls e times less."""

    time: float
    reach: float
    shape: Shape


_REST = Shape((0,) * 5, (0,) * 9, 0.7)
_CLOSED = Shape((0, 0, 0, 0, 0), (0, 0, 0, 0.1, 0, 0, -0.9, 0, 0.15), 6.0)

#        aa   ih   ou   ee   oh      open  jaw   form shrug funnel widen press x  puff
_SHAPES = {
    "AA": Shape((1.0, 0.0, 0.0, 0.0, 0.1), (0.95, 0.85, 0.0, 0.0, 0.1, 0.0, 0.5, 0, 0), 1.2),
    "AE": Shape((0.7, 0.1, 0.0, 0.4, 0.0), (0.8, 0.65, 0.35, 0.0, 0.0, 0.45, 0.6, 0, 0), 1.2),
    "AH": Shape((0.6, 0.1, 0.0, 0.1, 0.1), (0.55, 0.45, 0.0, 0.0, 0.0, 0.0, 0.35, 0, 0), 1.0),
    "AO": Shape((0.3, 0.0, 0.1, 0.0, 0.8), (0.75, 0.65, -0.1, 0.0, 0.5, -0.4, 0.3, 0, 0), 1.2),
    "EH": Shape((0.2, 0.1, 0.0, 0.8, 0.0), (0.6, 0.45, 0.3, 0.0, 0.0, 0.4, 0.5, 0, 0), 1.1),
    "ER": Shape((0.1, 0.1, 0.4, 0.1, 0.2), (0.35, 0.25, -0.1, 0.0, 0.35, -0.35, 0.3, 0, 0), 1.1),
    "IH": Shape((0.0, 0.7, 0.0, 0.2, 0.0), (0.35, 0.2, 0.35, 0.0, 0.0, 0.4, 0.45, 0, 0), 1.0),
    "IY": Shape((0.0, 0.9, 0.0, 0.2, 0.0), (0.3, 0.12, 0.65, 0.0, 0.0, 0.75, 0.5, 0, 0), 1.2),
    "UH": Shape((0.1, 0.0, 0.6, 0.0, 0.2), (0.35, 0.25, -0.1, 0.0, 0.45, -0.4, 0.25, 0, 0), 1.1),
    "UW": Shape((0.0, 0.0, 1.0, 0.0, 0.0), (0.25, 0.15, -0.15, 0.0, 0.7, -0.9, 0.1, 0, 0), 1.4),
    "OH": Shape((0.1, 0.0, 0.2, 0.0, 0.9), (0.6, 0.5, -0.1, 0.0, 0.65, -0.6, 0.2, 0, 0), 1.3),
    "P": _CLOSED, "B": _CLOSED, "M": _CLOSED,
    "F": Shape((0.0, 0.15, 0.0, 0.05, 0.0), (0.1, 0.08, 0.1, 0.15, 0.0, 0.1, -0.35, 0, 0.05), 4.0),
    "TH": Shape((0.1, 0.2, 0.0, 0.1, 0.0), (0.25, 0.15, 0.1, 0.0, 0.0, 0.1, 0.35, 0, 0), 1.5),
    "S": Shape((0.0, 0.3, 0.0, 0.3, 0.0), (0.15, 0.05, 0.25, 0.0, 0.0, 0.35, 0.55, 0, 0), 1.6),
    "SH": Shape((0.0, 0.1, 0.5, 0.0, 0.1), (0.25, 0.1, -0.1, 0.0, 0.7, -0.5, 0.5, 0, 0), 2.2),
    "T": Shape((0.05, 0.2, 0.0, 0.15, 0.0), (0.2, 0.12, 0.1, 0.0, 0.0, 0.1, 0.3, 0, 0), 0.7),
    "L": Shape((0.15, 0.25, 0.0, 0.1, 0.0), (0.3, 0.2, 0.1, 0.0, 0.0, 0.1, 0.35, 0, 0), 0.8),
    "R": Shape((0.0, 0.1, 0.45, 0.0, 0.1), (0.25, 0.15, -0.1, 0.0, 0.5, -0.5, 0.25, 0, 0), 1.6),
    "W": Shape((0.0, 0.0, 1.0, 0.0, 0.0), (0.15, 0.1, -0.2, 0.0, 0.8, -1.0, 0.05, 0, 0), 3.0),
    "Y": Shape((0.0, 0.7, 0.0, 0.1, 0.0), (0.25, 0.1, 0.5, 0.0, 0.0, 0.6, 0.4, 0, 0), 1.0),
    "K": Shape((0.15, 0.15, 0.0, 0.1, 0.0), (0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.3, 0, 0), 0.5),
    "HH": Shape((0.2, 0.1, 0.0, 0.1, 0.0), (0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.3, 0, 0), 0.3),
}  # fmt: skip
# Seen from outside, these look the same.
_SAME = {"V": "F", "DH": "TH", "Z": "S", "ZH": "SH", "CH": "SH", "JH": "SH", "D": "T", "N": "T", "G": "K", "NG": "K"}
_GLIDES = {"AW": ("AA", "UH"), "AY": ("AA", "IH"), "EY": ("EH", "IY"), "OW": ("OH", "UW"), "OY": ("OH", "IH")}


def keyframes(phones: Sequence[Interval], duration_s: float) -> list[Keyframe]:
    """Keyframes of ARPABET phones (with or without stress) in order, first at 0, last at the end, times ascending."""
    targets = list(_targets(phones, duration_s))
    centres = [target.time for target in targets]
    times = sorted({round(time, 4) for time in centres} | {0.0, round(duration_s, 4)})
    return [
        _keyframe(time, targets[bisect_left(centres, time - _SEEN_S) : bisect_right(centres, time + _SEEN_S)])
        for time in times
    ]


def _targets(phones: Sequence[Interval], duration_s: float) -> Iterator[Target]:
    reached = 0.0
    if not phones or phones[0].start > 0:
        yield Target(0.0, _NEAR_S, _REST)
    for phone in phones:
        yield from _pause(reached, phone.start)
        reached = phone.end
        length = phone.end - phone.start
        name = phone.label.rstrip("012")
        if glide := _GLIDES.get(name):
            for place, part in zip((0.25, 0.8), glide, strict=True):
                yield Target(phone.start + place * length, _reach(length / 3), _SHAPES[part])
        elif shape := _SHAPES.get(_SAME.get(name, name)):
            yield Target(phone.start + length / 2, _reach(length / 2), shape)
    yield from _pause(reached, duration_s)
    if reached < duration_s:
        yield Target(duration_s, _NEAR_S, _REST)


def _reach(length: float) -> float:
    return min(max(length, _NEAR_S), _FAR_S)


def _pause(start: float, end: float) -> Iterator[Target]:
    """The mouth comes to rest only where there is time for it."""
    if end - start < _PAUSE_S:
        return
    yield Target(start + min(_CLOSED_AFTER_S, (end - start) / 2), _NEAR_S, _REST)
    if end - start > 2 * _PAUSE_S:
        yield Target(end - _CLOSED_AFTER_S, _NEAR_S, _REST)


def _keyframe(time: float, near: Sequence[Target]) -> Keyframe:
    shape = _blend(time, near)
    return Keyframe(
        time_ms=round(time * 1000, 1),
        visemes={name: round(value, 3) for name, value in zip(VISEMES, shape.visemes, strict=True)},
        mouth={name: round(value, 3) for name, value in zip(MOUTH, shape.mouth, strict=True)},
    )


def _blend(time: float, near: Sequence[Target]) -> Shape:
    here = next((target.shape for target in near if abs(target.time - time) < 1e-3), None)
    if here is _CLOSED or here is _REST or not near:
        return here or _REST  # lips that are to close do close, whatever stands beside them
    weights = [target.shape.pull * math.exp(-abs(target.time - time) / target.reach) for target in near]
    total = sum(weights)

    def mean(columns: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(sum(map(float.__mul__, weights, map(float, column))) / total for column in columns)

    visemes = mean(zip(*(target.shape.visemes for target in near), strict=True))
    return Shape(visemes, mean(zip(*(target.shape.mouth for target in near), strict=True)), 0.0)
