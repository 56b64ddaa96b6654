"""Praat's TextGrid, long text format (Praat manual, "TextGrid file formats")."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A label from `start` to `end`, in seconds."""

    start: float
    end: float
    label: str


def textgrid(tiers: Mapping[str, Sequence[Interval]], duration_s: float) -> str:
    """Interval tiers in order; each one's intervals in order and without overlap. What lies between has no label."""
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {duration_s:.6f}"]
    head += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    body = (
        line for number, (name, spans) in enumerate(tiers.items(), 1) for line in _tier(number, name, spans, duration_s)
    )
    return "\n".join([*head, *body, ""])


def _tier(number: int, name: str, spans: Iterable[Interval], duration_s: float) -> Iterator[str]:
    filled = list(_without_gaps(spans, duration_s))
    yield f"    item [{number}]:"
    yield '        class = "IntervalTier"'
    yield f"        name = {_quoted(name)}"
    yield "        xmin = 0"
    yield f"        xmax = {duration_s:.6f}"
    yield f"        intervals: size = {len(filled)}"
    for place, span in enumerate(filled, 1):
        yield f"        intervals [{place}]:"
        yield f"            xmin = {span.start:.6f}"
        yield f"            xmax = {span.end:.6f}"
        yield f"            text = {_quoted(span.label)}"


def _without_gaps(spans: Iterable[Interval], duration_s: float) -> Iterator[Interval]:
    """Praat wants every tier to cover the whole time."""
    reached = 0.0
    for span in spans:
        start, end = min(span.start, duration_s), min(span.end, duration_s)
        if end <= start:
            continue
        if start > reached:
            yield Interval(reached, start, "")
        yield Interval(start, end, span.label)
        reached = end
    if reached < duration_s:
        yield Interval(reached, duration_s, "")


def _quoted(label: str) -> str:
    return '"' + label.replace('"', '""').replace("\n", " ") + '"'
