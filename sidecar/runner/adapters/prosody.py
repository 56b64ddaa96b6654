"""Emotion by how something is said, without any training: rules after what reviews of vocal expression agree on.

It is a baseline that answers everywhere at once, and knows little: such measures hear how aroused a voice is, hardly
whether pleasantly so. Its probabilities therefore stay low, and a trained model takes over as soon as there is one.
"""

from typing import Any, NamedTuple

import numpy as np

from sidecar.catalogue.spec import ModelSpec
from sidecar.runner.adapters import Report
from sidecar.runner.intonation import SAMPLE_RATE, Manner, measure


class _Cues(NamedTuple):
    """Standard deviations above (+) or below (−) an everyday voice."""

    pitch: float = 0.0
    spread: float = 0.0
    rise: float = 0.0
    effort: float = 0.0
    level: float = 0.0
    tempo: float = 0.0
    pauses: float = 0.0


# Anger, fear, joy, sadness: after the summary of cues in Juslin and Laukka (Psychological Bulletin 129, 2003). Disgust:
# Murray and Arnott (J. Acoust. Soc. Am. 93, 1993). Surprise: high, wide, and rising at the end as a question does.
_PROFILES = {
    "anger": _Cues(pitch=1, spread=1, effort=2, level=1, tempo=1, pauses=-1),
    "disgust": _Cues(pitch=-1.5, spread=0.5, level=-0.5, tempo=-2, pauses=0.5),
    "fear": _Cues(pitch=2, spread=-1, effort=-0.5, level=0.5, tempo=1.5, pauses=-0.5),
    "joy": _Cues(pitch=1.5, spread=1.5, effort=1, level=0.5, tempo=0.5, pauses=-0.5),
    "sadness": _Cues(pitch=-1, spread=-1.5, effort=-1.5, level=-0.5, tempo=-1.5, pauses=1.5),
    "surprise": _Cues(pitch=1.5, spread=1, rise=2, tempo=0.5),
}
LABELS = tuple(sorted([*_PROFILES, "neutral"]))

# Everyday voices: means and deviations. Pitch 120 Hz for men and 210 Hz for women, and its spread, by Traunmüller and
# Eriksson (1995); the others by these very measures over recorded prompts and read speech.
_MEN_HZ, _WOMEN_HZ = 120.0, 210.0
_PITCH_SD = 3.0
_USUAL = {"spread": (7.0, 3.0), "rise": (-1.5, 2.5), "effort": (-16.0, 4.0), "level": (7.0, 1.5), "tempo": (4.1, 0.8),
          "pauses": (0.1, 0.1)}  # fmt: skip
_FARTHEST = 2.5
_SLOPE = 0.8
_NEUTRAL = 1.2
_ENOUGH_S = 1.0
_SLOWEST = 1.5  # syllables a second; what has fewer is a tone, a hum or music


class ProsodyAdapter:
    """Offers `SoundClassifier`."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "the measures are computed on the CPU"

    def load(self, report: Report) -> None:
        self.listen(np.zeros(SAMPLE_RATE, np.float32), "speech_emotion")

    def labels(self, head: str) -> tuple[str, ...]:
        return LABELS

    def listen(self, samples: Any, head: str) -> Any:
        """Probabilities, float32 (labels,). The less is voiced, or sounds like syllables, the closer to neutral."""
        manner = measure(samples)
        enough = min(1.0, manner.voiced_s / _ENOUGH_S) * min(1.0, manner.tempo / _SLOWEST)
        cues = np.array(_cues(manner)) * enough
        logits = {name: _SLOPE * float(cues @ profile) / _length(profile) for name, profile in _PROFILES.items()}
        values = np.exp([logits.get(label, _NEUTRAL) for label in LABELS])
        return (values / values.sum()).astype(np.float32)


def _cues(manner: Manner) -> _Cues:
    if not manner.voiced_s:
        return _Cues()
    usual_hz = _MEN_HZ if manner.pitch_hz < np.sqrt(_MEN_HZ * _WOMEN_HZ) else _WOMEN_HZ
    measured = {
        "spread": manner.pitch_spread,
        "rise": manner.final_rise,
        "effort": manner.effort_db,
        "level": manner.level_spread_db,
        "tempo": manner.tempo,
        "pauses": manner.pauses,
    }
    cues = {name: (value - _USUAL[name][0]) / _USUAL[name][1] for name, value in measured.items()}
    cues["pitch"] = 12 * np.log2(manner.pitch_hz / usual_hz) / _PITCH_SD
    return _Cues(**{name: float(np.clip(value, -_FARTHEST, _FARTHEST)) for name, value in cues.items()})


def _length(profile: _Cues) -> float:
    return float(np.linalg.norm(profile))
