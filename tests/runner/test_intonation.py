"""Measures of how something is said, on sounds and voices whose manner is known."""

import math
import time

import numpy as np
import pytest
import soxr

from sidecar.runner.espeak import library
from sidecar.runner.intonation import Floats, Manner, measure
from tests.sound import RATE, tone

TEXT = "I really did not expect to see all of you here today, this is quite something."


def speech(text: str, voice: str, wpm: int, pitch: int = 50) -> Floats:
    said = library().speak(text, voice, wpm=wpm, pitch=pitch)
    samples = soxr.resample(said.audio.astype(np.float32) / 32768, library().sample_rate, RATE)
    return np.ascontiguousarray(samples, np.float32)


def spoken(pitch: int = 50, voice: str = "en-us") -> Manner:
    return measure(speech(TEXT, voice, 170, pitch))


@pytest.mark.parametrize("hz", [70, 110, 200, 310, 440])
def test_pitch_of_tones_and_of_buzzes(hz: int) -> None:
    assert measure(tone(2.0, hz)).pitch_hz == pytest.approx(hz, rel=0.01)
    assert measure(np.sign(tone(2.0, hz)) * np.float32(0.2)).pitch_hz == pytest.approx(hz, rel=0.01)


def test_a_glide_has_spread_and_a_rise() -> None:
    hertz = 150 * 2 ** (np.arange(2 * RATE) / (2 * RATE))  # an octave in two seconds
    glide = (0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE)).astype(np.float32)
    rising, falling = measure(glide), measure(glide[::-1].copy())
    assert rising.pitch_spread == pytest.approx(9.6, abs=0.5)  # eight tenths of twelve semitones
    assert rising.final_rise > 4 and falling.final_rise < -4


def test_a_higher_and_a_faster_voice_are_told() -> None:
    plain, high = spoken(), spoken(pitch=80)
    assert high.pitch_hz > plain.pitch_hz * 1.2
    assert spoken(voice="en-us+f3").pitch_hz > 170 > 130 > plain.pitch_hz


SENTENCES = {  # with their syllables
    TEXT: 20,
    "The contract says that nobody may leave before the meeting is over.": 17,
    "Yesterday my sister bought seven tomatoes and a beautiful melon.": 17,
    "Please remember to close every window when you finally go home tonight.": 19,
}


@pytest.mark.parametrize("wpm", [100, 130, 170, 210])
def test_syllables_are_counted(wpm: int) -> None:
    # eSpeak's consonants are random noise. It can hide some of the nuclei of one fast sentence, not of all of them.
    counted = syllables = 0.0
    for text, number in SENTENCES.items():
        for voice in ("en-us", "en-us+f3", "en-gb"):
            for _ in range(3):
                samples = speech(text, voice, wpm)
                manner = measure(samples)
                counted += manner.tempo * len(samples) / RATE
                syllables += number
    assert counted / syllables == pytest.approx(1, abs=0.15)


def test_pauses_are_the_share_of_quiet_within() -> None:
    loud, quiet = tone(1.0, 150), np.zeros(RATE, np.float32)
    assert measure(np.concatenate([quiet, loud, quiet, loud, quiet])).pauses == pytest.approx(1 / 3, abs=0.03)
    assert measure(np.concatenate([quiet, loud, quiet])).pauses < 0.05


def test_effort_is_energy_above_one_kilohertz() -> None:
    soft = tone(1.0, 200)
    pressed = soft + tone(1.0, 2000)
    assert measure(pressed).effort_db > measure(soft).effort_db + 20


def test_loudness_alone_changes_nothing() -> None:
    one, other = (measure(level * tone(1.0, 150)) for level in (0.02, 1.0))
    assert one == pytest.approx(other, abs=0.1)


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.zeros(0, np.float32), np.zeros(99, np.float32)])
def test_nothing_voiced_is_no_pitch(samples: object) -> None:
    manner = measure(samples)  # type: ignore[arg-type]
    assert manner.voiced_s == 0 and math.isnan(manner.pitch_hz)


def test_noise_is_not_voiced() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert measure(noise).voiced_s < 0.1


def test_a_minute_takes_less_than_three_seconds() -> None:
    minute = np.tile(tone(1.0, 150), 60)
    started = time.process_time()
    measure(minute)
    assert time.process_time() - started < 3.0
