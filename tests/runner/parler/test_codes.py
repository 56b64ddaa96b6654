"""The delayed rows: which codes are whose frame, what the decoder reads, and when it is over."""

from dataclasses import replace

import pytest

from sidecar.runner.parler.checkpoint import Drawing
from sidecar.runner.parler.codes import Utterance

B, E = 17, 16
DRAWING = Drawing(
    begin=B, end=E, pad=E, start=B, longest=9, shortest=0, sampled=False, temperature=1.0, top_k=0, top_p=1.0
)


def fed(utterance: Utterance, *columns: list[int]) -> list[list[int]]:
    return [utterance.add(column) for column in columns]


def test_rows_are_late_by_their_number_and_padded_alike_at_the_end() -> None:
    utterance = Utterance(DRAWING, 3)
    read = fed(utterance, *([place, place, place] for place in range(1, 9)))
    assert read == [
        [1, B, B],
        [2, 2, B],
        [3, 3, 3],
        [4, 4, 4],
        [5, 5, 5],
        [6, 6, 6],
        [E, 7, 7],
        [E, E, 8],
    ]
    assert utterance.over, "as many columns as there may be"
    assert list(utterance.frames(16)) == [[place, place + 1, place + 2] for place in range(1, 7)]
    assert list(utterance.frames(16)) == [], "each is given once"


def test_a_frame_is_given_as_soon_as_its_last_row_is_there() -> None:
    utterance = Utterance(DRAWING, 3)
    given = []
    for place in range(1, 6):
        utterance.add([place] * 3)
        given.append(list(utterance.frames(16)))
    assert given == [[], [], [[1, 2, 3]], [[2, 3, 4]], [[3, 4, 5]]]


def test_an_end_goes_down_the_rows_and_is_no_sound() -> None:
    utterance = Utterance(replace(DRAWING, longest=40), 3)
    assert utterance.endless() == [1, 2]
    fed(utterance, [1, 1, 1], [2, 2, 2], [E, 3, 3])
    assert utterance.endless() == [2] and not utterance.over
    fed(utterance, [4, E, 4])
    assert utterance.endless() == [] and not utterance.over
    assert fed(utterance, [5, 5, E]) == [[E, E, E]], "what has ended is padding, whatever is drawn"
    assert utterance.over
    assert list(utterance.frames(16)) == [[1, 2, 3], [2, 3, 4]]


def test_rows_may_not_end_before_the_one_above_nor_too_early() -> None:
    utterance = Utterance(replace(DRAWING, longest=40, shortest=2), 2)
    assert utterance.endless() == [0, 1]
    utterance.add([1, 1])
    assert utterance.endless() == [0, 1]
    utterance.add([2, 2])
    assert utterance.endless() == [1]
    utterance.add([E, 3])
    assert utterance.endless() == []


def test_codes_that_stand_for_no_sound_are_left_out() -> None:
    utterance = Utterance(DRAWING, 2)
    fed(utterance, [1, 1], [99, 2], [3, 3], [4, 4])
    assert list(utterance.frames(16)) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("longest", [6, 9, 20])
def test_it_is_over_at_the_length_that_is_allowed(longest: int) -> None:
    utterance = Utterance(replace(DRAWING, longest=longest), 3)
    count = 0
    while not utterance.over:
        utterance.add([1, 1, 1])
        count += 1
    assert count == longest - 1 and len(list(utterance.frames(16))) == longest - 3
