"""Frames into segments, on made-up probabilities."""

import numpy as np
import pytest

from sidecar.capabilities.vad import FRAME_S, Knobs, Vad, find_speech

BARE = Knobs(min_speech_ms=0, min_silence_ms=0, speech_pad_ms=0)


def segments(text: str, knobs: Knobs = BARE) -> list[tuple[float, float]]:
    """`text`: a digit for each frame, tenths of the probability; the result in frames."""
    values = np.array([int(letter) / 10 for letter in text], np.float32)
    found = find_speech(values, len(values) * FRAME_S, knobs)
    return [(start / FRAME_S, end / FRAME_S) for start, end in found]


def test_speech_is_above_the_threshold() -> None:
    assert segments("0099900990") == [(2, 5), (7, 9)]
    assert segments("999") == [(0, 3)]
    assert segments("000") == [] and segments("") == []


def test_between_the_thresholds_nothing_changes() -> None:
    assert segments("04440") == []
    assert segments("0944490") == [(1, 6)]
    assert segments("09444390") == [(1, 5), (6, 7)]


def test_short_pauses_are_closed_and_short_segments_dropped() -> None:
    assert segments("099000990", BARE._replace(min_silence_ms=97)) == [(1, 8)]
    assert segments("099000990", BARE._replace(min_silence_ms=96)) == [(1, 3), (6, 8)]
    assert segments("0900099990", BARE._replace(min_speech_ms=65)) == [(5, 9)]
    # Together they are long enough: pauses are closed first.
    assert segments("09090", BARE._replace(min_speech_ms=90, min_silence_ms=40)) == [(1, 4)]


def test_padding_stays_within_the_recording_and_meets_in_the_middle() -> None:
    assert segments("099000990", BARE._replace(speech_pad_ms=32)) == [(0, 4), (5, 9)]
    assert segments("990009900", BARE._replace(speech_pad_ms=320)) == [(0, 3.5), (3.5, 9)]


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_the_segmentation_frame_by_frame(seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = np.clip(np.repeat(chance.random(60), 5) + chance.normal(0, 0.1, 300), 0, 1)
    speaking, expected = False, []
    for number, value in enumerate(values):
        if value >= 0.5 and not speaking:
            expected.append([number, len(values)])
            speaking = True
        elif value < 0.35 and speaking:
            expected[-1][1] = number
            speaking = False
    found = find_speech(values, 300 * FRAME_S, BARE)
    assert [[round(start / FRAME_S), round(end / FRAME_S)] for start, end in found] == expected


def test_the_answer_counts_what_is_spoken() -> None:
    from sidecar.capabilities.base import Meta

    answer = Vad().finish({"segments": [(0.0, 1.0), (2.0, 3.0)], "duration_s": 4.0}, Meta("m", 1.0))
    assert answer.speech_ratio == 0.5 and [each.start for each in answer.segments] == [0.0, 2.0]
    assert Vad().finish({"segments": [], "duration_s": 0.0}, Meta("m", 1.0)).speech_ratio == 0.0
