"""Mouth shapes: what is seen must be what is articulated, in order and in range."""

import time
from itertools import pairwise

import pytest

from sidecar.capabilities.textgrid import Interval
from sidecar.capabilities.visemes import _GLIDES, _SAME, _SHAPES, MOUTH, VISEMES, Keyframe, keyframes

ALL = ("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH").split()  # noqa: SIM905


def timed(phones: str, each_s: float = 0.1, start_s: float = 0.3) -> list[Interval]:
    return [
        Interval(start_s + number * each_s, start_s + (number + 1) * each_s, phone)
        for number, phone in enumerate(phones.split())
    ]


def frame_at(frames: list[Keyframe], time_s: float) -> Keyframe:
    return min(frames, key=lambda frame: abs(frame.time_ms - time_s * 1000))


def strongest(frame: Keyframe) -> str:
    return max(frame.visemes, key=lambda name: frame.visemes[name])


def test_every_phone_has_a_shape() -> None:
    assert all(phone in _GLIDES or _SAME.get(phone, phone) in _SHAPES for phone in ALL)


@pytest.mark.parametrize(
    ("vowel", "viseme"),
    [("AA1", "aa"), ("IY1", "ih"), ("UW1", "ou"), ("EH1", "ee"), ("AO1", "oh"), ("AE1", "aa"), ("IH0", "ih")],
)
def test_vowels_have_their_viseme(vowel: str, viseme: str) -> None:
    frames = keyframes(timed(f"K {vowel} T"), 1.0)
    assert strongest(frame_at(frames, 0.45)) == viseme


@pytest.mark.parametrize(("vowel", "first", "last"), [("AW1", "aa", "ou"), ("EY1", "ee", "ih"), ("OY1", "oh", "ih")])
def test_diphthongs_glide(vowel: str, first: str, last: str) -> None:
    frames = keyframes([Interval(0.3, 0.7, vowel)], 1.0)
    assert strongest(frame_at(frames, 0.4)) == first and strongest(frame_at(frames, 0.62)) == last


@pytest.mark.parametrize("lips", ["P", "B", "M"])
def test_lips_close_where_they_close(lips: str) -> None:
    frame = frame_at(keyframes(timed(f"AA1 {lips} AA1"), 1.0), 0.45)
    assert frame.mouth["mouthOpenY"] == frame.mouth["jawOpen"] == 0 and not any(frame.visemes.values())
    assert frame.mouth["mouthPressLipOpen"] < -0.5


def test_lips_round_and_spread() -> None:
    rounded = frame_at(keyframes(timed("W UW1"), 1.0), 0.45)
    spread = frame_at(keyframes(timed("S IY1"), 1.0), 0.45)
    assert rounded.mouth["mouthPuckerWiden"] < -0.5 < 0.5 < spread.mouth["mouthPuckerWiden"]
    assert rounded.mouth["mouthFunnel"] > 0.4 > 0.1 > spread.mouth["mouthFunnel"]
    assert spread.mouth["mouthForm"] > 0.3 > 0 > rounded.mouth["mouthForm"]


def test_neighbours_colour_a_sound() -> None:
    """The t of "too" is rounder than that of "tea": that is what coarticulation is."""
    before_oo = frame_at(keyframes(timed("T UW1"), 1.0), 0.35)
    before_ee = frame_at(keyframes(timed("T IY1"), 1.0), 0.35)
    assert before_oo.mouth["mouthPuckerWiden"] < 0 < before_ee.mouth["mouthPuckerWiden"]


def test_the_mouth_rests_before_after_and_in_pauses() -> None:
    spoken = [*timed("AA1 T", start_s=0.3), *timed("AA1 T", start_s=1.5)]
    frames = keyframes(spoken, 2.5)
    for time_s in (0.0, 1.0, 2.5):
        assert frame_at(frames, time_s).mouth["mouthOpenY"] == 0
    pressed = keyframes([*timed("AA1", start_s=0.3), *timed("AA1", start_s=0.45)], 1.0)
    assert all(frame.mouth["mouthOpenY"] > 0.3 for frame in pressed if 300 < frame.time_ms < 550)


def test_frames_are_in_order_in_range_and_complete() -> None:
    frames = keyframes(timed(" ".join(ALL), 0.07), 4.0)
    assert frames[0].time_ms == 0 and frames[-1].time_ms == 4000
    assert all(one.time_ms < other.time_ms for one, other in pairwise(frames))
    for frame in frames:
        assert tuple(frame.visemes) == VISEMES and tuple(frame.mouth) == MOUTH
        assert all(0 <= value <= 1 for value in frame.visemes.values())
        for name, value in frame.mouth.items():
            signed = name in ("mouthForm", "mouthPuckerWiden", "mouthPressLipOpen", "mouthX")
            assert (-1 if signed else 0) <= value <= 1
        assert frame.mouth["mouthX"] == 0


def test_nothing_said_is_a_mouth_at_rest() -> None:
    frames = keyframes([], 1.0)
    assert all(not any(frame.visemes.values()) and not any(frame.mouth.values()) for frame in frames)


def test_ten_minutes_take_less_than_two_seconds() -> None:
    phones = timed(" ".join(ALL * 154), 0.1)
    started = time.process_time()
    frames = keyframes(phones, 601.0)
    assert time.process_time() - started < 2.0 and len(frames) > 6000
