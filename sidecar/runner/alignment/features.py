"""Cepstra as the CMU Sphinx acoustic models were trained on: MFCC, 25 bands, with first and second differences.

Parameters are those of the model's `feat.params` (pocketsphinx 5.1.1, en-us); the mel filters have unit area and edges
rounded to bins of the transform, as its front end has them. Spectral subtraction (`remove_noise`) is left out: on
speech with known times it moved no boundary for the better, in white noise or without.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SAMPLE_RATE = 16_000
FRAME_S = 0.01
SHIFT = 160
STREAMS = 3
"""Static, first and second difference: the model has Gaussians of its own for each."""

_WINDOW = 410
_TRANSFORM = 512
_BANDS = 25
_LOW_HZ, _HIGH_HZ = 130.0, 6800.0
_CEPSTRA = 13
_LIFTER = 22
_PREEMPHASIS = 0.97
_BLOCK_FRAMES = 1000
_SCALE = 32768.0  # the model was trained on 16-bit samples


def features(samples: Floats) -> tuple[Floats, ...]:
    """`samples`, float32 mono 16 kHz −1..1, at least 10 ms → three arrays of shape (frames, 13).

    Frame t is centred on the interval from t to t + 1 hundredths of a second. The mean of the recording is taken off.
    """
    frames = len(samples) // SHIFT
    # One bit of noise: in digital silence the logarithm would otherwise find nothing but its own floor.
    noise = np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
    signal = samples * np.float32(_SCALE) + noise
    signal[1:] -= np.float32(_PREEMPHASIS) * signal[:-1]
    padded = np.pad(signal, (_WINDOW // 2 - SHIFT // 2, _WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::SHIFT][:frames]
    blocks = [_cepstra(windows[at : at + _BLOCK_FRAMES]) for at in range(0, frames, _BLOCK_FRAMES)]
    cepstra = np.concatenate(blocks)
    mean: Floats = cepstra.mean(axis=0)
    return _differences(cepstra - mean)


def loudness(samples: Floats) -> Floats:
    """Level of each frame in dB, under the same windows as `features`."""
    frames = len(samples) // SHIFT
    powers = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(frames) * SHIFT + SHIFT // 2 - _WINDOW // 2
    ends = np.minimum(starts + _WINDOW, len(samples))
    means = (powers[ends] - powers[np.maximum(starts, 0)]) / _WINDOW
    levels: Floats = (10 * np.log10(np.maximum(means, 0) + 1e-10)).astype(np.float32)
    return levels


def _cepstra(windows: Floats) -> Floats:
    power = np.abs(np.fft.rfft(windows * np.hamming(_WINDOW), _TRANSFORM)) ** 2
    bands = np.log(np.maximum(power @ _mel_filters().T, 1e-4))
    return (bands @ _cosines().T).astype(np.float32)


def _differences(cepstra: Floats) -> tuple[Floats, ...]:
    """Over two frames to either side; the second ones are differences of those, one frame to either side."""
    count = len(cepstra)
    padded = np.pad(cepstra, ((3, 3), (0, 0)), "edge")

    def shifted(by: int) -> Floats:
        return padded[3 + by : 3 + by + count]

    first = shifted(2) - shifted(-2)
    second = (shifted(3) - shifted(-1)) - (shifted(1) - shifted(-3))
    return cepstra, first, second


@cache
def _mel_filters() -> NDArray[np.float64]:
    bin_hz = SAMPLE_RATE / _TRANSFORM

    def mel(hz: float) -> float:
        return float(2595 * np.log10(1 + hz / 700))

    edges = 700 * (10 ** (np.linspace(mel(_LOW_HZ), mel(_HIGH_HZ), _BANDS + 2) / 2595) - 1)
    edges = np.floor(edges / bin_hz + 0.5) * bin_hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.arange(_TRANSFORM // 2 + 1)[None] * bin_hz
    triangles = np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre))
    return np.asarray(np.maximum(triangles, 0) * 2 / (right - left))


@cache
def _cosines() -> NDArray[np.float64]:
    """Orthonormal DCT-II, liftered."""
    order = np.arange(_CEPSTRA)[:, None]
    transform = np.cos(np.pi * order * (np.arange(_BANDS)[None] + 0.5) / _BANDS) * np.sqrt(2 / _BANDS)
    transform[0] = np.sqrt(1 / _BANDS)
    return np.asarray(transform * (1 + _LIFTER / 2 * np.sin(order * np.pi / _LIFTER)))
