"""Silero by itself: the same numbers as its other users get, whole or in pieces."""

from typing import Any

import numpy as np
import pytest

from sidecar.runner.adapters.silero import Detector
from sidecar.wire import Array, _from_numpy
from tests.prompts import load, prompts
from tests.sound import tone


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


def crossed(state: dict[str, Any]) -> dict[str, Array]:
    return {name: _from_numpy(value) for name, value in state.items()}


def test_the_same_as_faster_whisper_computes(detector: Detector) -> None:
    from faster_whisper.vad import get_vad_model

    sound = load(prompts(10)[3])
    sound = np.pad(sound, (0, -len(sound) % 512))
    expected = np.asarray(get_vad_model()(sound)).reshape(-1)
    found, _ = detector.probabilities(sound, None)
    assert np.abs(found - expected).max() < 1e-5 and found.max() > 0.9


def test_pieces_give_what_the_whole_gives(detector: Detector) -> None:
    sound = load(prompts(10)[5])[: 512 * 90]
    whole, _ = detector.probabilities(sound, None)
    state, parts = None, []
    for start in range(0, len(sound), 512 * 3):
        part, after = detector.probabilities(sound[start : start + 512 * 3], state)
        state = crossed(after)
        parts.append(part)
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-4


def test_longer_than_one_piece_of_the_graph(detector: Detector) -> None:
    speech = load(prompts(10)[1])
    sound = np.concatenate([np.zeros(16_000 * 20, np.float32), speech, np.zeros(16_000 * 20, np.float32)])
    found, _ = detector.probabilities(sound, None)
    first, last = np.flatnonzero(found > 0.5)[[0, -1]] * 0.032
    assert len(found) == -(-len(sound) // 512)
    assert 19.8 < first < 21.0 and first + 1.0 < last < 20.2 + len(speech) / 16_000


def test_neither_silence_nor_a_tone_is_speech(detector: Detector) -> None:
    for sound in (np.zeros(16_000, np.float32), tone(1.0), np.zeros(1, np.float32)):
        assert detector.probabilities(sound, None)[0].max() < 0.5
    assert len(detector.probabilities(np.empty(0, np.float32), None)[0]) == 0
