"""Beginnings and ends, on made-up probabilities."""

from sidecar.capabilities.vad import FRAME_S
from sidecar.sessions.endpointing import Endpointer, Turn


def turns(
    text: str, min_speech: int = 2, silence: int = 3, longest: int = 1000, step: int = 1000
) -> list[tuple[str, int]]:
    """`text`: a digit for each frame, tenths of the probability; the other arguments in frames."""
    endpointer = Endpointer(0.5, min_speech * FRAME_S, silence * FRAME_S, longest * FRAME_S)
    values = [int(letter) / 10 for letter in text]
    found: list[Turn] = []
    for start in range(0, len(values), step):
        found += endpointer.push(values[start : start + step])
    return [(turn.kind, turn.frame) for turn in [*found, *endpointer.finish()]]


def test_an_utterance_begins_and_ends_where_its_speech_does() -> None:
    assert turns("00999900000") == [("begin", 2), ("end", 6)]
    assert turns("00900099000") == [("begin", 6), ("end", 8)]


def test_short_pauses_belong_to_it() -> None:
    assert turns("09900990000") == [("begin", 1), ("end", 7)]


def test_between_the_thresholds_speech_goes_on_but_does_not_begin() -> None:
    assert turns("0444400000") == []
    assert turns("0994444000") == [("begin", 1), ("end", 7)]


def test_the_end_of_the_sound_ends_it() -> None:
    assert turns("0099990") == [("begin", 2), ("end", 7)]
    assert turns("0") == [] and turns("") == []


def test_pieces_do_not_matter() -> None:
    text = "0990099900009990404900000990"
    for step in (1, 2, 3, 7):
        assert turns(text, step=step) == turns(text)


def test_what_becomes_too_long_is_cut_at_its_quietest() -> None:
    assert turns("9" * 7 + "6" + "9" * 12, longest=10) == [
        ("begin", 0), ("end", 8), ("begin", 8), ("end", 16), ("begin", 16), ("end", 20),
    ]  # fmt: skip


def test_sound_that_is_not_needed_may_be_forgotten() -> None:
    endpointer = Endpointer(0.5, 0.1, 0.1, 10)
    assert list(endpointer.push([0.0] * 10)) == [] and endpointer.quiet_since == 10
    assert list(endpointer.push([0.9])) == [] and endpointer.quiet_since == 10 and endpointer.begun is None
