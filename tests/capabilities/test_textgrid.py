"""TextGrids, read back by the rules of Praat's long text format."""

import re
from collections.abc import Iterator
from itertools import pairwise

from sidecar.capabilities.textgrid import Interval, textgrid


def read(text: str) -> tuple[float, dict[str, list[Interval]]]:
    """End of the whole and intervals by tier, checking everything that Praat checks."""
    lines: Iterator[str] = iter(text.splitlines())

    def field(pattern: str) -> str:
        line = next(lines).strip()
        match = re.fullmatch(pattern, line)
        assert match, f"{line!r} is no {pattern!r}"
        return match[1] if match.groups() else ""

    def number(name: str) -> float:
        return float(field(rf"{name} = ([\d.]+)"))

    def quoted(name: str) -> str:
        return field(rf'{name} = "((?:[^"]|"")*)"').replace('""', '"')

    field('File type = "ooTextFile"')
    field('Object class = "TextGrid"')
    field("")
    assert number("xmin") == 0
    end = number("xmax")
    field("tiers\\? <exists>")
    count = int(number("size"))
    field(r"item \[\]:")
    tiers = {}
    for tier in range(1, count + 1):
        field(rf"item \[{tier}\]:")
        assert quoted("class") == "IntervalTier"
        name = quoted("name")
        assert number("xmin") == 0 and number("xmax") == end
        intervals = []
        for place in range(1, int(number("intervals: size")) + 1):
            field(rf"intervals \[{place}\]:")
            intervals.append(Interval(number("xmin"), number("xmax"), quoted("text")))
        assert intervals[0].start == 0 and intervals[-1].end == end
        assert all(one.end == other.start for one, other in pairwise(intervals))
        assert all(each.start < each.end for each in intervals)
        tiers[name] = intervals
    assert not "".join(lines).strip()
    return end, tiers


def test_gaps_are_filled_and_labels_kept() -> None:
    words = [Interval(0.1, 0.5, "Hello"), Interval(0.5, 0.9, "there")]
    end, tiers = read(textgrid({"words": words, "phones": [Interval(0.1, 0.2, "HH")]}, 1.25))
    assert end == 1.25
    assert tiers["words"] == [Interval(0, 0.1, ""), *words, Interval(0.9, 1.25, "")]
    assert tiers["phones"] == [Interval(0, 0.1, ""), Interval(0.1, 0.2, "HH"), Interval(0.2, 1.25, "")]


def test_quotes_are_doubled_and_lines_kept_whole() -> None:
    _, tiers = read(textgrid({'the "words"': [Interval(0, 1, 'say "hi"\nnow')]}, 1.0))
    assert tiers == {'the "words"': [Interval(0, 1, 'say "hi" now')]}


def test_what_lies_beyond_the_end_is_cut() -> None:
    _, tiers = read(textgrid({"words": [Interval(0.2, 1.1, "a"), Interval(1.1, 1.2, "b")]}, 1.0))
    assert tiers["words"] == [Interval(0, 0.2, ""), Interval(0.2, 1.0, "a")]


def test_a_tier_without_labels_is_one_empty_interval() -> None:
    assert read(textgrid({"words": []}, 2.0))[1] == {"words": [Interval(0, 2.0, "")]}
