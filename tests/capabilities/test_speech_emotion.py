"""Speech emotion without a model: names of classes, fusion, limits."""

from typing import Any

import numpy as np
import pytest

from sidecar import wire
from sidecar.capabilities.base import LabelScore, Meta
from sidecar.capabilities.emotion import EmotionResponse
from sidecar.capabilities.speech_emotion import SpeechEmotion, SpeechEmotionRequest, fuse, join
from sidecar.errors import AudioError, AudioTooLongError


def scores(**by_label: float) -> list[tuple[str, float]]:
    return sorted(by_label.items(), key=lambda pair: -pair[1])


def test_the_voice_counts_six_tenths() -> None:
    fused = fuse(scores(anger=0.7, neutral=0.3), scores(anger=0.6, joy=0.4))
    assert fused.speech_weight == 0.6
    assert dict(fused.scores) == pytest.approx({"anger": 0.66, "neutral": 0.18, "joy": 0.16})
    assert (fused.emotion, fused.decided) == ("anger", True)
    assert fused.confidence == pytest.approx(0.66)


def test_a_sure_voice_counts_eight_tenths() -> None:
    fused = fuse(scores(anger=0.71, neutral=0.29), scores(joy=1.0))
    assert fused.speech_weight == 0.8 and fused.emotion == "anger"
    assert fused.confidence == pytest.approx(0.568)


def test_exactly_seven_tenths_is_not_yet_sure() -> None:
    assert fuse(scores(anger=0.7, neutral=0.3), scores(joy=1.0)).speech_weight == 0.6


def test_below_one_half_the_answer_is_neutral() -> None:
    fused = fuse(scores(anger=0.5, neutral=0.3, joy=0.2), scores(joy=0.9, neutral=0.1))
    assert fused.scores[0][0] == "joy" and fused.scores[0][1] < 0.5
    assert (fused.emotion, fused.decided) == ("neutral", False)
    assert fused.confidence == pytest.approx(0.6 * 0.3 + 0.4 * 0.1)


def test_exactly_one_half_decides() -> None:
    fused = fuse(scores(joy=0.5, anger=0.5), scores(joy=0.5, sadness=0.5))
    assert fused.confidence == pytest.approx(0.5) and fused.decided and fused.emotion == "joy"


def test_probabilities_stay_probabilities() -> None:
    fused = fuse(scores(neutral=0.25, joy=0.25, anger=0.25, sadness=0.25), scores(fear=0.4, joy=0.35, surprise=0.25))
    assert sum(score for _, score in fused.scores) == pytest.approx(1.0)
    assert [score for _, score in fused.scores] == sorted((score for _, score in fused.scores), reverse=True)


def test_the_joint_answer_shows_both_channels() -> None:
    heard = SpeechEmotion().finish(scores(sadness=0.8, neutral=0.2), Meta("a-voice", 5.0))
    read = EmotionResponse(
        emotion="joy",
        confidence=0.9,
        all_emotions=[LabelScore(label="joy", score=0.9), LabelScore(label="neutral", score=0.1)],
        processing_time_ms=1.0,
        model="a-text",
    )
    answer = join(heard, read, 7.5)
    assert (answer.emotion, answer.model, answer.processing_time_ms) == ("sadness", "a-voice", 7.5)
    assert answer.channels is not None and answer.channels.disagree and answer.channels.decided
    assert (answer.channels.speech.emotion, answer.channels.speech.weight) == ("sadness", 0.8)
    assert (answer.channels.text.emotion, answer.channels.text.weight) == ("joy", 0.2)
    assert (answer.channels.speech.model, answer.channels.text.model) == ("a-voice", "a-text")
    same = read.model_copy(update={"emotion": "sadness"})
    agreed = join(heard, same, 7.5).channels
    assert agreed is not None and not agreed.disagree


def run(labels: tuple[str, ...], row: list[float]) -> Any:
    class Adapter:
        def labels(self, head: str) -> tuple[str, ...]:
            return labels

        def listen(self, samples: Any, head: str) -> Any:
            assert head == "speech_emotion" and samples.dtype == np.float32
            return np.array(row, np.float32)

    item = wire.decode(wire.encode(wire.Infer(1, "speech_emotion", [np.zeros(16_000, np.float32)]))[4:])
    assert isinstance(item, wire.Infer)
    return SpeechEmotion().run_batch(Adapter(), item.items)[0]


def test_names_of_trained_models_become_ours() -> None:
    found = run(("neu", "hap", "ang", "sad"), [0.1, 0.2, 0.3, 0.4])
    assert [label for label, _ in found] == ["sadness", "anger", "joy", "neutral"]
    assert [score for _, score in found] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_classes_that_are_one_to_us_are_added_up() -> None:
    found = run(("calm", "neutral", "happy", "boredom"), [0.3, 0.25, 0.4, 0.05])
    assert [label for label, _ in found] == ["neutral", "joy", "boredom"]
    assert found[0][1] == pytest.approx(0.55)


@pytest.mark.parametrize(("seconds", "error"), [(0.05, AudioError), (601, AudioTooLongError)])
def test_too_short_and_too_long_is_refused(seconds: float, error: type[Exception]) -> None:
    asked = SpeechEmotionRequest()
    asked.hear(np.zeros(int(seconds * 16_000), np.float32))
    with pytest.raises(error):
        SpeechEmotion().prepare(asked)
