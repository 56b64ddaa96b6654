"""Changing made speech: length, pitch, loudness, silence."""

from typing import Any

import numpy as np
import pytest

from sidecar.runner import prosody

RATE = 22_050


def tone(hz: float, seconds: float, loudness: float = 0.5) -> Any:
    return prosody.to_int16(loudness * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE))


def strongest_hz(audio: Any) -> float:
    middle = audio[len(audio) // 4 : len(audio) * 3 // 4].astype(np.float64)
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * RATE / len(middle))


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.3, 2.0])
def test_stretching_keeps_the_pitch_and_the_loudness(factor: float) -> None:
    audio = tone(200, 2)
    longer = prosody.stretch(audio, factor, RATE)
    assert longer.dtype == np.int16 and len(longer) == pytest.approx(len(audio) * factor, abs=2)
    assert strongest_hz(longer) == pytest.approx(200, abs=3)
    inside = slice(2000, -2000)
    assert np.std(longer[inside]) == pytest.approx(np.std(audio[inside]), rel=0.1)


def test_stretching_nothing_and_little_does_no_harm() -> None:
    for length in (0, 1, 50, 1000):
        assert len(prosody.stretch(np.zeros(length, dtype=np.int16), 2.0, RATE)) in (length, 2 * length)
    assert prosody.stretch(tone(200, 1), 1.0, RATE) is not None


def test_what_a_voice_cannot_do_itself_is_left_over() -> None:
    assert prosody.bounded(1.5, 0.5, 2.0) == (1.5, 1.0)
    native, rest = prosody.bounded(4.0, 0.5, 2.0)
    assert (native, rest) == (2.0, 0.5), "twice as fast already, half as long still to do"


@pytest.mark.parametrize("pitch", [0.94, 1.06])
def test_shifting_moves_pitch_and_length_by_the_same_factor(pitch: float) -> None:
    audio = tone(300, 1)
    shifted = prosody.shift(audio, pitch, RATE)
    assert shifted.dtype == np.int16
    assert strongest_hz(shifted) == pytest.approx(300 * pitch, abs=3)
    assert len(shifted) == pytest.approx(len(audio) / pitch, abs=2)


def test_amplifying_never_clips() -> None:
    loud = prosody.amplify(tone(300, 0.2, 0.9), 2.0)
    assert np.abs(loud.astype(int)).max() == 32767 and np.sum(np.abs(loud.astype(int)) >= 32766) < 200
    assert np.abs(prosody.amplify(tone(300, 0.2, 0.9), 0.5).astype(int)).max() == pytest.approx(0.45 * 32767, abs=20)


def test_trimming_keeps_a_little_silence() -> None:
    audio = np.concatenate((prosody.silence(0.5, RATE), tone(300, 0.4), prosody.silence(0.7, RATE)))
    trimmed, cut = prosody.trim(audio, RATE, 0.05, 0.1)
    assert cut == pytest.approx(0.45 * RATE, abs=5) and len(trimmed) == pytest.approx(0.55 * RATE, abs=80)
    nothing, _ = prosody.trim(prosody.silence(0.5, RATE), RATE, 0.05, 0.1)
    assert len(nothing) == 0
