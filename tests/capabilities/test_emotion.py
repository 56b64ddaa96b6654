from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.capabilities.base import Meta, text_cost
from sidecar.capabilities.emotion import LABELS, Emotion, EmotionBatchRequest, EmotionRequest

EMOTION = Emotion()


class Logits:
    """An adapter that gives known logits."""

    def __init__(self, logits: Any) -> None:
        self._logits = np.array(logits, dtype=np.float32)

    def labels(self, head: str) -> tuple[str, ...]:
        assert head == "emotion"
        return LABELS

    def classify(self, texts: Any, head: str) -> Any:
        return self._logits[: len(texts)]


def test_labels_are_the_contract() -> None:
    assert LABELS == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000", "\u2003 \r\n"])
def test_blank_is_neutral_without_a_model(text: str) -> None:
    answer = EMOTION.shortcut(EmotionRequest(text=text), "minilm")
    assert answer is not None
    assert answer.model_dump() == {
        "emotion": "neutral",
        "confidence": 1.0,
        "all_emotions": [{"label": "neutral", "score": 1.0}],
        "processing_time_ms": 0.0,
        "model": "minilm",
    }


def test_text_that_is_not_blank_goes_to_the_model() -> None:
    assert EMOTION.shortcut(EmotionRequest(text=" . "), "minilm") is None


def test_scores_are_a_distribution_in_descending_order() -> None:
    outputs = EMOTION.run_batch(Logits([[0, 0, 0, 3, 1, 0, 0], [9, 0, 0, 0, 0, 0, 80.0]]), ["a", "b"])
    answer = EMOTION.finish(outputs[0], Meta("m", 1.25))
    assert (answer.emotion, answer.model, answer.processing_time_ms) == ("joy", "m", 1.25)
    scores = [entry["score"] for entry in answer.all_emotions]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)
    assert answer.confidence == scores[0]
    assert {entry["label"] for entry in answer.all_emotions} == set(LABELS)
    assert EMOTION.finish(outputs[1], Meta("m", 0)).emotion == "surprise"


def test_a_huge_text_does_not_cross_the_wire_whole() -> None:
    assert len(EMOTION.prepare(EmotionRequest(text="word " * 100_000))) < 10_000


def test_cost_grows_with_length_up_to_the_window() -> None:
    costs = [text_cost("x" * size) for size in (0, 10, 100, 1000, 100_000)]
    assert costs == sorted(costs) and costs[0] > 0 and costs[-1] == costs[-2] + 256 - costs[-2]


def test_a_batch_splits_and_joins_in_order() -> None:
    endpoint = EMOTION.endpoints[1]
    parts = endpoint.split(EmotionBatchRequest(texts=["a", "b"]))
    assert [part.text for part in parts] == ["a", "b"]
    answers = [EMOTION.shortcut(EmotionRequest(text=""), name) for name in "xy"]
    assert [result.model for result in endpoint.join(answers).results] == ["x", "y"]


def test_a_batch_is_bounded() -> None:
    with pytest.raises(ValidationError):
        EmotionBatchRequest(texts=["x"] * 257)
