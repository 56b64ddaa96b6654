"""What can be measured of how something is said, whatever is said: pitch, effort, loudness, tempo, pauses."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SAMPLE_RATE = 16_000
_HOP = 160
_HOP_S = _HOP / SAMPLE_RATE
_WINDOW = 512
_LAGS = 267  # down to 60 Hz
_SHORTEST_LAG = 32  # up to 500 Hz
_BLOCK_FRAMES = 1000
_APERIODIC = 0.15  # de Cheveigné and Kawahara's absolute threshold
_VOICED = 0.25
_SPOKEN_DB = 30.0
_FLOOR_DB = -75.0
_NUCLEUS_DB = 2.0


class Manner(NamedTuple):
    """How a recording is spoken. Where nothing is voiced, pitch is NaN."""

    voiced_s: float
    pitch_hz: float
    """Median."""
    pitch_spread: float
    """From the 10th to the 90th percentile, semitones."""
    final_rise: float
    """Pitch of the last fifth of the voiced time against the median, semitones."""
    effort_db: float
    """Energy of 1 to 5 kHz against that below 1 kHz in voiced frames: the alpha ratio of GeMAPS (Eyben 2016)."""
    level_spread_db: float
    """Standard deviation of the level while something is said."""
    tempo: float
    """Syllable nuclei a second of the time in which something is said (de Jong and Wempe 2009)."""
    pauses: float
    """Share of the time between first and last sound in which nothing is said."""


def measure(samples: Floats) -> Manner:
    """`samples`: float32, mono, 16 kHz."""
    levels, pitches, efforts = _frames(samples)
    spoken = levels > max(levels.max(initial=-120.0) - _SPOKEN_DB, _FLOOR_DB)
    voiced = spoken & np.isfinite(pitches)
    inside = np.flatnonzero(spoken)
    if not voiced.any():
        return Manner(0.0, np.nan, 0.0, 0.0, np.nan, 0.0, 0.0, 1.0)
    semitones = 12 * np.log2(_smoothed(pitches[voiced]))
    middle = float(np.median(semitones))
    last = semitones[-max(1, len(semitones) // 5) :]
    low, high = np.percentile(semitones, [10, 90])
    spoken_s = len(inside) * _HOP_S
    return Manner(
        voiced_s=float(voiced.sum() * _HOP_S),
        pitch_hz=float(2 ** (middle / 12)),
        pitch_spread=float(high - low),
        final_rise=float(np.median(last)) - middle,
        effort_db=float(np.median(efforts[voiced])),
        level_spread_db=float(levels[spoken].std()),
        tempo=_nuclei(levels, voiced) / spoken_s,
        pauses=1 - len(inside) / (inside[-1] - inside[0] + 1),
    )


def _frames(samples: Floats) -> tuple[Floats, Floats, Floats]:
    """Of every hundredth of a second: level (dB), pitch (Hz, NaN where there is none), effort (dB)."""
    blocks = [(_levels(block), _pitches(block), _efforts(block)) for block in _blocks(samples)]
    if not blocks:
        nothing = np.empty(0, np.float32)
        return nothing, nothing, nothing
    levels, pitches, efforts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return levels, pitches, efforts


def _blocks(samples: Floats) -> Iterator[Floats]:
    """Overlapping frames (count, window + lags), so that memory does not grow with the recording."""
    width = _WINDOW + _LAGS
    frames = len(samples) // _HOP
    padded = np.pad(samples, (width // 2 - _HOP // 2, width))
    views = np.lib.stride_tricks.sliding_window_view(padded, width)[::_HOP][:frames]
    for at in range(0, frames, _BLOCK_FRAMES):
        yield views[at : at + _BLOCK_FRAMES]


def _levels(frames: Floats) -> Floats:
    return np.asarray(10 * np.log10((frames * frames).mean(axis=1) + 1e-12), np.float32)


def _pitches(frames: Floats) -> Floats:
    """YIN (de Cheveigné and Kawahara, J. Acoust. Soc. Am. 111, 2002), with parabolic interpolation."""
    length = 1 << (frames.shape[1] + _WINDOW - 1).bit_length()
    spectrum = np.fft.rfft(frames, length)
    correlation = np.fft.irfft(spectrum * np.fft.rfft(frames[:, :_WINDOW], length).conj(), length)[:, : _LAGS + 1]
    sums = np.cumsum(np.pad(frames.astype(np.float64) ** 2, ((0, 0), (1, 0))), axis=1)
    energy = sums[:, _WINDOW : _WINDOW + _LAGS + 1] - sums[:, : _LAGS + 1]
    difference = np.maximum(energy[:, :1] + energy - 2 * correlation, 0)
    means = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, _LAGS + 1)
    curve = np.ones_like(difference)
    curve[:, 1:] = difference[:, 1:] / np.maximum(means, 1e-12)
    rows = np.arange(len(frames))
    inner = curve[:, _SHORTEST_LAG:_LAGS]
    dips = (inner < _APERIODIC) & (inner <= curve[:, _SHORTEST_LAG + 1 : _LAGS + 1])
    lags = np.where(dips.any(axis=1), dips.argmax(axis=1), inner.argmin(axis=1)) + _SHORTEST_LAG
    before, here, after = curve[rows, lags - 1], curve[rows, lags], curve[rows, lags + 1]
    bend = before - 2 * here + after
    shift = np.where(np.abs(bend) > 1e-9, 0.5 * (before - after) / np.where(np.abs(bend) > 1e-9, bend, 1.0), 0.0)
    hertz = SAMPLE_RATE / (lags + np.clip(shift, -0.5, 0.5))
    return np.asarray(np.where(here < _VOICED, hertz, np.nan), np.float32)


def _efforts(frames: Floats) -> Floats:
    power = np.abs(np.fft.rfft(frames[:, :_WINDOW] * np.hanning(_WINDOW))) ** 2
    bin_hz = SAMPLE_RATE / _WINDOW
    low, middle, high = (round(hertz / bin_hz) for hertz in (50, 1000, 5000))
    ratio = (power[:, middle:high].sum(axis=1) + 1e-12) / (power[:, low:middle].sum(axis=1) + 1e-12)
    return np.asarray(10 * np.log10(ratio), np.float32)


def _smoothed(values: Floats) -> Floats:
    """Median of five: a single frame an octave off is a slip of the detector."""
    padded = np.pad(values, 2, "edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1), np.float32)


def _nuclei(levels: Floats, voiced: NDArray[np.bool_]) -> int:
    """Peaks of the level, voiced and with a dip of 2 dB or more before them."""
    smooth = np.convolve(levels, np.ones(3) / 3, "same")
    count = 0
    lowest = smooth[0] if len(smooth) else 0.0
    peak = -np.inf
    peak_at = 0
    for at, level in enumerate(smooth):
        if level > peak:
            peak, peak_at = level, at
        elif peak - level > _NUCLEUS_DB:
            if peak - lowest > _NUCLEUS_DB and voiced[max(0, peak_at - 2) : peak_at + 3].any():
                count += 1
            lowest, peak = level, -np.inf
        lowest = min(lowest, level)
    return count
