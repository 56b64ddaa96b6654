"""Changing speech that is already made: its length, its pitch, its loudness, and the silence round it.

Audio is int16 of shape (samples,), mono.
"""

from typing import Any

import numpy as np

_FRAME_S = 0.025
_SEARCH_S = 0.01
_QUIET = 10 ** (-50 / 20)


def bounded(speed: float, low: float, high: float) -> tuple[float, float]:
    """`speed` as what a synthesiser can do itself and the factor that is left to `stretch`."""
    native = min(high, max(low, speed))
    return native, native / speed


def stretch(audio: Any, factor: float, sample_rate: int) -> Any:
    """Make it `factor` times as long at the same pitch (WSOLA: Verhelst and Roelands, ICASSP 1993)."""
    half = int(_FRAME_S * sample_rate) // 2
    search = int(_SEARCH_S * sample_rate)
    length = round(len(audio) * factor)
    if abs(factor - 1) < 1e-3 or len(audio) < 4 * (half + search):
        return audio
    source = np.pad(audio.astype(np.float32), (search, 3 * half + 2 * search))
    window = np.hanning(2 * half + 1)[:-1].astype(np.float32)
    output = np.zeros(length + 3 * half, dtype=np.float32)
    position = search
    for start in range(0, length, half):
        output[start : start + 2 * half] += source[position : position + 2 * half] * window
        # What would come next in the source is what the next frame should be most like.
        natural = source[position + half : position + 3 * half]
        wanted = min(search + round((start + half) / factor), len(source) - 2 * half - search)
        near = source[wanted - search : wanted + search + 2 * half]
        position = wanted - search + int(np.argmax(np.correlate(near, natural, "valid")))
        position = min(position, len(source) - 3 * half)
    return _int16(output[:length])


def shift(audio: Any, pitch: float, sample_rate: int) -> Any:
    """Raise the pitch by a factor near 1, which makes it shorter by the same factor."""
    if abs(pitch - 1) < 1e-3 or not len(audio):
        return audio
    import soxr  # which the torch profile has not: its voices change their pitch themselves

    return soxr.resample(audio, sample_rate * pitch, sample_rate)


def amplify(audio: Any, volume: float) -> Any:
    """Louder or softer by a factor; what would be too loud is limited as a whole, not cut off."""
    if volume == 1.0 or not len(audio):
        return audio
    peak = float(np.abs(audio.astype(np.int32)).max())
    return _int16(audio * min(volume, max(1.0, 32767 / max(peak, 1.0))))


def trim(audio: Any, sample_rate: int, before_s: float, after_s: float) -> tuple[Any, int]:
    """Without the silence at both ends, save that much; also how many samples went at the beginning."""
    loud = np.flatnonzero(np.abs(audio.astype(np.int32)) > 32767 * _QUIET)
    if not len(loud):
        return audio[:0], 0
    first = max(0, int(loud[0]) - int(before_s * sample_rate))
    return audio[first : int(loud[-1]) + 1 + int(after_s * sample_rate)], first


def silence(duration_s: float, sample_rate: int) -> Any:
    """As it says."""
    return np.zeros(int(duration_s * sample_rate), dtype=np.int16)


def to_int16(audio: Any) -> Any:
    """From float32, -1 to 1."""
    return _int16(audio * 32767)


def _int16(audio: Any) -> Any:
    return np.clip(np.rint(audio), -32768, 32767).astype(np.int16)
